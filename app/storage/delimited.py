"""Comma, semicolon, tab and bar separated values."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
from polars.exceptions import PolarsError

from app.errors import InvalidInput, TooLarge, Unparseable
from app.storage.blocks import row_blocks
from app.storage.columns import MISSING, check_names, finite, spelled_values
from app.storage.dialects import Dialect, not_utf8, sniff_dialect
from app.storage.formats import MAX_LINE_BYTES

_BLANK = " blank"  # no column's name begins with a space
_NAMELESS = " nameless"
_ONE_LINE = (
    "; all of it is one line: if the file has more, curl -d took its line breaks out, which -T FILE and --data-binary "
    "@FILE keep"
)
_FLAGS = ("quoted", "odd", "odd_outside_of_quotes", "padded")


def open_delimited(path: Path, max_columns: int, has_header: bool = True) -> tuple[Path, Dialect]:
    """The file and how it is written, once it is sure that every row is as wide as the header, or the first one.

    What polars would not read (quotes within fields, lines that end as old Macintoshes had it) is written anew, beside
    the file.

    Raises:
        Unparseable, InvalidInput, TooLarge
    """
    dialect = sniff_dialect(path, has_header)
    hint = _ONE_LINE if has_header and _is_one_line(path) else ""
    if dialect.width > max_columns:
        raise TooLarge(f"the table has {dialect.width} columns; at most {max_columns} are allowed{hint}")
    if hint:
        raise InvalidInput.at("", f"the table has no rows{hint}")
    check_names(dialect.names or ("",) * dialect.num_nameless, max_columns)
    path, dialect = _readable(path, dialect)
    if dialect.num_nameless:
        _refuse_nameless(path, dialect)
    return path, dialect


def _is_one_line(path: Path) -> bool:
    with path.open("rb") as file:
        first = file.readline(MAX_LINE_BYTES)
        return b"\r" not in first.rstrip() and not file.read(1)


def scan_delimited(source: Path | io.BytesIO, dialect: Dialect, numeric: Mapping[str, pl.DataType]) -> pl.LazyFrame:
    """All rows, blank lines among them; all columns as text but the `numeric` ones, which must hold nothing else."""
    return _scan(source, dialect, numeric).select(dialect.names)


def without_blank_rows(table: pl.LazyFrame) -> pl.LazyFrame:
    """Without rows that have no value, as blank lines and lines of nothing but separators make them.

    In a table of one column, each row may be such a value.
    """
    if len(table.collect_schema()) == 1:
        return table
    blank = pl.all_horizontal(pl.all().is_null()).alias(_BLANK)  # as a filter's expression it takes minutes to plan
    return table.with_columns(blank).filter(~pl.col(_BLANK)).drop(_BLANK)


def _scan(source: Path | io.BytesIO, dialect: Dialect, numeric: Mapping[str, pl.DataType]) -> pl.LazyFrame:
    table = pl.scan_csv(
        source,
        has_header=False,
        skip_lines=dialect.num_header_lines,
        schema={name: numeric.get(name, pl.String()) for name in (*dialect.names, *_nameless(dialect))},
        null_values=list(MISSING),
        separator=dialect.separator,
        quote_char='"' if dialect.quoted else None,
        glob=False,
    )
    return table.select(
        spelled_values(pl.col(name)) if dtype == pl.String else finite(pl.col(name)) if dtype.is_float() else name
        for name, dtype in table.collect_schema().items()
    )


def _nameless(dialect: Dialect) -> list[str]:
    return [f"{_NAMELESS} {place}" for place in range(dialect.num_nameless)]


def _refuse_nameless(path: Path, dialect: Dialect) -> None:
    """Columns without a name are what separators at the ends of lines make, and hold nothing; else, raise."""
    nameless = _scan(path, dialect, {}).select(_nameless(dialect))
    counts = nameless.count().collect(engine="streaming").row(0)
    for place, count in enumerate(counts):
        if count:
            values = nameless.select(pl.nth(place).drop_nulls().first()).collect(engine="streaming")
            raise InvalidInput.at(
                "", f"column {len(dialect.names) + place + 1} has no name, but values, such as {values.item()[:60]!r}"
            )


def _readable(path: Path, dialect: Dialect) -> tuple[Path, Dialect]:
    """Outside of quotes a line is as wide as its separators say, which is quick to count; only a file in which that
    does not come out (it may have line ends inside of quotes) is read row by row.
    """
    rewritten = dialect.line_end != "\n"
    if rewritten:
        path, dialect = _rewritten(path, dialect)
    try:
        seen = _look_through(path, dialect)
    except PolarsError:
        check_rows(path, dialect)
        raise
    dialect = replace(dialect, quoted=seen["quoted"], padded=seen["padded"])
    if seen["odd_outside_of_quotes"] and dialect.quoted and not rewritten:
        return _rewritten(path, dialect)
    if seen["odd"] and not dialect.quoted:
        check_rows(path, dialect)
    return path, dialect


def _look_through(path: Path, dialect: Dialect) -> dict[str, bool]:
    """Whether a field begins with a quote; a line's width is odd, as it is and outside of quotes; zeros may lead."""
    line = pl.col("line").str.strip_chars_end("\r")
    bare = line.str.replace_all(r'"[^"]*"', "")
    separator = f"\\{dialect.separator}"
    always = (
        _is_odd(line, dialect).any().alias("odd"),
        line.str.contains(rf'(?:^|{separator})[ "]*[+-]?0\d+[ "]*(?:{separator}|$)').any().alias("padded"),
    )
    quotes = (
        line.str.contains(f'(?:^|{separator})"').any().alias("quoted"),
        (_is_odd(bare, dialect) | bare.str.contains('"', literal=True)).any().alias("odd_outside_of_quotes"),
    )
    found = dict.fromkeys(_FLAGS, False)
    for block in row_blocks(path, dialect.num_header_lines, quoted=False):
        lines = pl.scan_lines(io.BytesIO(block))
        seen = lines.select(*always, *(quotes if b'"' in block else ())).collect().row(0, named=True)
        seen.setdefault("odd_outside_of_quotes", seen["odd"])
        found |= {name: found[name] or value for name, value in seen.items()}
    return found


def _is_odd(line: pl.Expr, dialect: Dialect) -> pl.Expr:
    return (line != "") & (line.str.count_matches(dialect.separator, literal=True) != dialect.width - 1)


def check_rows(path: Path, dialect: Dialect, then: Callable[[Iterable[Any]], object] = lambda row: None) -> None:
    """Read row by row, slowly, to raise Unparseable for the first that is not right, with the number of its line."""
    num_skipped = dialect.num_header_lines
    first = "header" if dialect.has_header else "first row"
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            for number, row in dialect.rows(islice(file, num_skipped, None), num_skipped):
                if len(row) != dialect.width:
                    raise Unparseable(f"line {number} has {len(row)} fields, but the {first} has {dialect.width}")
                then(row)
        except UnicodeDecodeError as error:
            raise not_utf8(path) from error


def _rewritten(path: Path, dialect: Dialect) -> tuple[Path, Dialect]:
    """The rows alone, in a file in which every quote is where it belongs. Raises Unparseable."""
    plain = path.with_suffix(".plain")
    with plain.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=dialect.separator, lineterminator="\n")
        check_rows(path, dialect, writer.writerow)
    return plain, replace(dialect, line_end="\n", num_header_lines=0)
