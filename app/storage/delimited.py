"""Comma, semicolon, tab and bar separated values."""

import codecs
import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from app.errors import Unparseable
from app.storage.columns import check_names, spelled_values

_SEPARATORS = ",;\t|"
_HEAD_BYTES = 2**20
_SNIFFED_ROWS = 100


@dataclass(frozen=True)
class Dialect:
    """How a file is written. `num_header_lines` counts up to and with the line of the column names."""

    separator: str
    line_end: str
    names: tuple[str, ...]
    num_header_lines: int


def scan_delimited(path: Path, max_columns: int) -> tuple[pl.LazyFrame, Dialect]:
    """Every column as text, every row as wide as the header and with at least one value. Raises Unparseable, InvalidInput, TooLarge."""
    dialect = sniff_dialect(path)
    check_names(dialect.names, max_columns)
    check_widths(path, dialect)
    table = pl.scan_csv(
        path,
        has_header=False,
        skip_lines=dialect.num_header_lines,
        schema=dict.fromkeys(dialect.names, pl.String),
        separator=dialect.separator,
        eol_char=dialect.line_end,
        glob=False,
    )
    table = table.select(spelled_values(pl.all()))
    if len(dialect.names) > 1:  # a blank line, or one of nothing but separators, is no row
        table = table.filter(~pl.all_horizontal(pl.all().is_null()))
    return table, dialect


def sniff_dialect(path: Path) -> Dialect:
    """The separator under which most of the first rows are as wide as the header; the wider, the better."""
    head = _head(path)
    line_end = "\r" if "\r" in head and "\n" not in head else "\n"
    scored = [(*_fit(head, separator), separator) for separator in _SEPARATORS]
    _, width, separator = max(scored, key=lambda score: score[:2])
    with _csv_errors():
        reader = csv.reader(io.StringIO(head, newline=""), delimiter=separator if width > 1 else ",", strict=False)
        header = next(row for row in reader if row)
        return Dialect(separator, line_end, tuple(name.strip() for name in header), reader.line_num)


def _head(path: Path) -> str:
    """The first lines, whole ones only."""
    with path.open("rb") as file:
        block = file.read(_HEAD_BYTES)
        whole = len(block) < _HEAD_BYTES
    if not whole:
        end = max(block.rfind(b"\n"), block.rfind(b"\r"))
        if end < 0:
            raise Unparseable(f"The first line is longer than {_HEAD_BYTES} bytes.")
        block = block[: end + 1]
    try:
        return block.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path) from error


def _fit(head: str, separator: str) -> tuple[float, int]:
    """The share of rows that are as wide as the first, and its width, which counts only if there is a separator."""
    with _csv_errors():
        rows = csv.reader(io.StringIO(head, newline=""), delimiter=separator)
        widths = [len(row) for row, _ in zip(filter(None, rows), range(_SNIFFED_ROWS), strict=False)]
    width = widths[0]
    return (widths.count(width) / len(widths), width) if width > 1 else (0.0, 1)


def check_widths(path: Path, dialect: Dialect) -> None:
    """Raises Unparseable for the first row that is not as wide as the header.

    Outside of quotes a line is as wide as its separators say, which is quick to count; only a file in which that does
    not come out (it may have line ends inside of quotes) is read row by row.
    """
    num_separators = len(dialect.names) - 1
    bare = pl.col("line").str.strip_chars_end("\r").str.replace_all(r'"[^"]*"', "")
    fits = bare.str.count_matches(dialect.separator, literal=True) == num_separators
    odd = ~(fits | (bare == "")) | bare.str.contains('"', literal=True)
    lines = pl.scan_lines(path, glob=False).slice(dialect.num_header_lines)
    if dialect.line_end == "\n" and not lines.select(odd.any()).collect(engine="streaming").item():
        return
    with path.open(encoding="utf-8-sig", newline="") as file, _csv_errors():
        reader = csv.reader(file, delimiter=dialect.separator)
        for row in reader:
            if row and len(row) != len(dialect.names):
                raise Unparseable(
                    f"Line {reader.line_num} has {len(row)} fields, but the header has {len(dialect.names)}."
                )


@contextmanager
def _csv_errors() -> Iterator[None]:
    try:
        yield
    except csv.Error as error:
        raise Unparseable(f"The CSV cannot be read: {error}.") from error


def not_utf8(path: Path) -> Unparseable:
    """The error for a file with bytes that are no UTF-8, naming their line."""
    decoder, num_lines = codecs.getincrementaldecoder("utf-8")(), 1
    with path.open("rb") as file:
        for block in iter(lambda: file.read(_HEAD_BYTES), b""):
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                num_lines += block.count(b"\n", 0, error.start)
                break
            num_lines += block.count(b"\n")
    return Unparseable(
        f"The text is not UTF-8 (line {num_lines}). Save it as UTF-8, or convert it: iconv -f latin1 -t utf-8 FILE."
    )
