"""Comma, semicolon, tab and bar separated values."""

import codecs
import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import polars as pl
from polars.exceptions import PolarsError

from app.errors import Unparseable
from app.storage.blocks import row_blocks
from app.storage.columns import MISSING, check_names, finite, spelled_values
from app.storage.formats import MAX_LINE_BYTES

csv.field_size_limit(MAX_LINE_BYTES)  # for the whole process, as the csv module has it

_SEPARATORS = ",;\t|"
_HEAD_BYTES = 2**20
_SNIFFED_ROWS = 100
_BLANK = " blank"  # no column's name begins with a space


@dataclass(frozen=True)
class Dialect:
    """How a file is written.

    `num_header_lines` counts up to and with the line of the column names. Where no field begins with a quote, the file
    is not `quoted`: a quote is a character like others, as in `5" pipe`.
    """

    separator: str
    line_end: str
    names: tuple[str, ...]
    num_header_lines: int
    quoted: bool = True

    def rows(self, lines: Iterator[str], num_skipped: int = 0) -> Iterator[tuple[int, list[str]]]:
        """The rows that are not blank, with the numbers of their lines, of a file whose first lines were skipped.

        Raises Unparseable for quotes out of place.
        """
        reader = csv.reader(
            lines, delimiter=self.separator, quoting=csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE, strict=True
        )
        try:
            for row in reader:
                if row:
                    yield num_skipped + reader.line_num, row
        except csv.Error as error:
            raise Unparseable(f"line {num_skipped + reader.line_num} of the CSV cannot be read: {error}") from error


def read_dialect(path: Path, max_columns: int) -> Dialect:
    """How a file is written, once it is sure that every row is as wide as the header.

    Raises:
        Unparseable, InvalidInput, TooLarge
    """
    dialect = sniff_dialect(_head(path))
    check_names(dialect.names, max_columns)
    return _checked(path, dialect)


def scan_delimited(source: Path | io.BytesIO, dialect: Dialect, numeric: Mapping[str, pl.DataType]) -> pl.LazyFrame:
    """The rows that have a value; all columns as text but the `numeric` ones, which must hold nothing else."""
    table = pl.scan_csv(
        source,
        has_header=False,
        skip_lines=dialect.num_header_lines,
        schema={name: numeric.get(name, pl.String()) for name in dialect.names},
        null_values=list(MISSING),
        separator=dialect.separator,
        quote_char='"' if dialect.quoted else None,
        eol_char=dialect.line_end,
        glob=False,
    )
    table = table.select(
        spelled_values(pl.col(name)) if dtype == pl.String else finite(pl.col(name)) if dtype.is_float() else name
        for name, dtype in table.collect_schema().items()
    )
    if len(dialect.names) > 1:  # a blank line, or one of nothing but separators, is no row
        blank = pl.all_horizontal(pl.all().is_null()).alias(_BLANK)  # as a filter's expression it takes minutes to plan
        table = table.with_columns(blank).filter(~pl.col(_BLANK)).drop(_BLANK)
    return table


def sniff_dialect(head: str) -> Dialect:
    """The separator under which most of the first rows are as wide as the first; then the one that makes them widest.

    A first line `sep=;`, as spreadsheets write it, settles it.
    """
    line_end = "\r" if "\r" in head and "\n" not in head else "\n"
    first, _, rest = head.partition(line_end)
    told = first.strip().lower().removeprefix("sep=") if first[:4].lower() == "sep=" else ""
    if told and told in _SEPARATORS:
        dialect = _header(rest, told, line_end)
        return replace(dialect, num_header_lines=dialect.num_header_lines + 1)
    share, width, separator = max((*_fit(head, separator), separator) for separator in _SEPARATORS)
    return _header(head, separator if width > 1 and share > 0 else ",", line_end)


def _header(head: str, separator: str, line_end: str) -> Dialect:
    number, names = next(Dialect(separator, line_end, (), 0).rows(_lines(head)), (0, []))
    return Dialect(separator, line_end, tuple(name.strip() for name in names), number)


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
        raise _not_utf8(path) from error


def _lines(text: str) -> Iterator[str]:
    return io.StringIO(text, newline="")


def _checked(path: Path, dialect: Dialect) -> Dialect:
    """The dialect, with what is known of its quotes. Raises Unparseable for a row that is not as wide as the header.

    Outside of quotes a line is as wide as its separators say, which is quick to count; only a file in which that does
    not come out (it may have line ends inside of quotes) is read row by row.
    """
    if dialect.line_end == "\n":
        try:
            quoted, odd, odd_outside_of_quotes = _look_through(path, dialect)
        except PolarsError:
            check_rows(path, dialect)
            raise
        dialect = replace(dialect, quoted=quoted)
        if not (odd_outside_of_quotes if quoted else odd):
            return dialect
    check_rows(path, dialect)
    return dialect


def _look_through(path: Path, dialect: Dialect) -> tuple[bool, bool, bool]:
    """Whether a field begins with a quote, and whether a line's width is odd: as it is, and outside of quotes."""
    line = pl.col("line").str.strip_chars_end("\r")
    bare = line.str.replace_all(r'"[^"]*"', "")
    odd = _is_odd(line, dialect).any().alias("odd")
    quotes = (
        line.str.contains(f'(?:^|\\{dialect.separator})"').any().alias("quoted"),
        (_is_odd(bare, dialect) | bare.str.contains('"', literal=True)).any().alias("odd_outside_of_quotes"),
    )
    found = {"quoted": False, "odd": False, "odd_outside_of_quotes": False}
    for block in row_blocks(path, dialect.num_header_lines, dialect.line_end, quoted=False):
        lines = pl.scan_lines(io.BytesIO(block))
        seen = lines.select(odd, *(quotes if b'"' in block else ())).collect().row(0, named=True)
        seen.setdefault("odd_outside_of_quotes", seen["odd"])
        found |= {name: found[name] or value for name, value in seen.items()}
    return found["quoted"], found["odd"], found["odd_outside_of_quotes"]


def _is_odd(line: pl.Expr, dialect: Dialect) -> pl.Expr:
    return (line != "") & (line.str.count_matches(dialect.separator, literal=True) != len(dialect.names) - 1)


def check_rows(path: Path, dialect: Dialect) -> None:
    """Read row by row, slowly, to raise Unparseable for the first that is not right, with the number of its line."""
    num_skipped = dialect.num_header_lines
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            for number, row in dialect.rows(islice(file, num_skipped, None), num_skipped):
                if len(row) != len(dialect.names):
                    raise Unparseable(f"line {number} has {len(row)} fields, but the header has {len(dialect.names)}")
        except UnicodeDecodeError as error:
            raise _not_utf8(path) from error


def _not_utf8(path: Path) -> Unparseable:
    """The error for a file with bytes that are no UTF-8, naming their line."""
    decoder, num_lines = codecs.getincrementaldecoder("utf-8")(), 1
    with path.open("rb") as file:
        for block in iter(lambda: file.read(_HEAD_BYTES), b""):
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                num_lines += error.object.count(b"\n", 0, error.start)
                break
            num_lines += block.count(b"\n")
    return Unparseable(
        f"the text is not UTF-8 (line {num_lines}); save it as UTF-8, or convert it: iconv -f latin1 -t utf-8 FILE"
    )
