"""How a file of separated values is written, told by its first lines."""

import codecs
import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from pathlib import Path

from app.errors import Unparseable
from app.storage.formats import MAX_LINE_BYTES

csv.field_size_limit(MAX_LINE_BYTES)  # for the whole process, as the csv module has it

_SEPARATORS = ",;\t|"
_HEAD_BYTES = 2**20
_BLOCK_BYTES = 4096
_SNIFFED_ROWS = 100


@dataclass(frozen=True)
class Dialect:
    """How a file is written.

    `num_header_lines` counts up to and with the line of the column names; where there is none, the columns are `x0`,
    `x1`, …, and it counts up to the first row. `num_nameless` columns without one follow those that have one. Where no
    field begins with a quote, the file is not `quoted`: a quote is a character like others, as in `5" pipe`. `padded`:
    there may be whole numbers with leading zeros, as zip codes have them.
    """

    separator: str
    line_end: str
    names: tuple[str, ...]
    num_header_lines: int
    num_nameless: int = 0
    quoted: bool = True
    padded: bool = True
    has_header: bool = True

    @property
    def width(self) -> int:
        return len(self.names) + self.num_nameless

    def rows(self, lines: Iterator[str], num_skipped: int = 0) -> Iterator[tuple[int, list[str]]]:
        """The rows that are not blank, with the numbers of their lines, of a file whose first lines were skipped.

        In a table of one column, a blank line is a row. Raises Unparseable for quotes out of place.
        """
        reader = csv.reader(
            lines, delimiter=self.separator, quoting=csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE, strict=True
        )
        try:
            for row in reader:
                if row or self.width == 1:
                    yield num_skipped + reader.line_num, row or [""]
        except csv.Error as error:
            raise Unparseable(f"line {num_skipped + reader.line_num} of the CSV cannot be read: {error}") from error


def sniff_dialect(path: Path, has_header: bool = True) -> Dialect:
    """The separator under which most of the first rows are as wide as the first; then the one that makes them widest.

    A first line `sep=;`, as spreadsheets write it, settles it. Raises Unparseable.
    """
    head = _head(path)
    line_end = "\r" if "\r" in head and "\n" not in head else "\n"
    first, _, rest = head.partition(line_end)
    told = first.strip().lower().removeprefix("sep=") if first[:4].lower() == "sep=" else ""
    if told and told in _SEPARATORS:
        dialect = _header(rest, told, line_end, has_header)
        return replace(dialect, num_header_lines=dialect.num_header_lines + 1)
    share, width, separator = max((*_fit(head, separator), separator) for separator in _SEPARATORS)
    return _header(head, separator if width > 1 and share > 0 else ",", line_end, has_header)


def _header(head: str, separator: str, line_end: str, has_header: bool) -> Dialect:
    number, row = next(Dialect(separator, line_end, (), 0).rows(_lines(head)), (0, []))
    if not has_header:
        num_blank = sum(1 for _ in takewhile(lambda line: not line.strip("\r\n"), _lines(head))) if len(row) > 1 else 0
        return Dialect(
            separator, line_end, tuple(f"x{place}" for place in range(len(row))), num_blank, has_header=False
        )
    width, names = len(row), [name.strip() for name in row]
    while names and not names[-1]:
        names.pop()
    return Dialect(separator, line_end, tuple(names), number, num_nameless=width - len(names))


def _fit(head: str, separator: str) -> tuple[float, int]:
    """The share of rows that are as wide as the first, and how wide that is."""
    rows = Dialect(separator, "\n", (), 0).rows(_lines(head))
    try:
        widths = [len(row) for _, row in islice(rows, _SNIFFED_ROWS)]
    except Unparseable:  # under another separator the quotes may be in place
        return 0.0, 0
    return (widths.count(widths[0]) / len(widths), widths[0]) if widths[0] > 1 else (0.0, 1)


def _head(path: Path) -> str:
    """The first lines, whole ones only."""
    with path.open("rb") as file:
        block = file.read(_HEAD_BYTES)
    if len(block) == _HEAD_BYTES:
        end = max(block.rfind(b"\n"), block.rfind(b"\r"))
        if end < 0:
            raise Unparseable(f"the first line is longer than {_HEAD_BYTES} bytes")
        block = block[: end + 1]
    try:
        return block.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path) from error


def _lines(text: str) -> Iterator[str]:
    return io.StringIO(text, newline="")


def not_utf8(path: Path) -> Unparseable:
    """The error for a file with bytes that are no UTF-8, naming their line."""
    decoder, num_lines = codecs.getincrementaldecoder("utf-8")(), 1
    with path.open("rb") as file:
        for block in iter(lambda: file.read(_BLOCK_BYTES), b""):
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                num_lines += error.object.count(b"\n", 0, error.start)
                break
            num_lines += block.count(b"\n")
    return Unparseable(
        f"the text is not UTF-8 (line {num_lines}); save it as UTF-8, or convert it: iconv -f cp1252 -t utf-8 FILE"
    )
