"""The rows of an upload one part after another, in their order, in memory that their number does not matter to."""

import io
import re
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from app.errors import UnsupportedMedia
from app.storage.arrow_stream import check_arrow_file, write_arrow_file
from app.storage.blocks import row_blocks
from app.storage.columns import storable_table
from app.storage.delimited import open_delimited, scan_delimited
from app.storage.dialects import Dialect
from app.storage.formats import NAMES, check_declared
from app.storage.uploads import Upload, check_lines, polars_errors, unpack

CELLS_AT_ONCE = 2**18
_BLANK_LINE = re.compile(rb"^\r?\n", re.MULTILINE)
_QUOTED_OR_BLANK = re.compile(rb'"[^"]*"|^\r?\n', re.MULTILINE)


@dataclass(frozen=True)
class RowStream:
    """`parts` are frames with all of the columns `names`; `untyped`: all of them text, as CSV has it; `has_header`:
    whether the names are the file's own.

    Who does not take all parts closes them, as a file is open meanwhile.
    """

    names: tuple[str, ...]
    untyped: bool
    decimal_comma: bool
    has_header: bool
    parts: Generator[pl.DataFrame]


def open_rows(upload: Upload, max_columns: int) -> RowStream:
    """The rows of a CSV or Arrow IPC upload, which has been looked through for what can be wrong with it.

    Raises:
        Unparseable, UnsupportedMedia, InvalidInput, TooLarge
    """
    body, found = unpack(upload)
    check_declared(upload.declared, found)
    with polars_errors(found):
        if found == "csv":
            check_lines(body)
            body, dialect = open_delimited(body, max_columns, upload.has_header)
            parts = _csv_parts(body, dialect)
            return RowStream(dialect.names, True, dialect.separator != ",", dialect.has_header, parts)
        if found == "arrow_stream":
            body, stream = body.with_suffix(".arrow"), body
            write_arrow_file(stream, body)
        elif found == "arrow_file":
            check_arrow_file(body)
        else:
            raise UnsupportedMedia(f"rows to predict can be CSV or Arrow IPC, not {NAMES[found]}")
        table = storable_table(pl.scan_ipc(body, glob=False), max_columns)
        names = tuple(table.collect_schema().names())
        num_rows = table.select(pl.len()).collect().item()
    return RowStream(names, False, False, True, _slices(table, num_rows))


def _slices(table: pl.LazyFrame, num_rows: int) -> Generator[pl.DataFrame]:
    rows_at_once = max(1, CELLS_AT_ONCE // len(table.collect_schema()))
    for start in range(0, num_rows, rows_at_once):
        with polars_errors("arrow_file"):
            part = table.slice(start, rows_at_once).collect()
        yield part


def _csv_parts(path: Path, dialect: Dialect) -> Generator[pl.DataFrame]:
    """Every line is a row, also one of separators alone, so that each gets its answer; but for the blank ones, and for
    those at the end that hold nothing, as spreadsheets leave them.
    """
    parts = _parsed(path, replace(dialect, num_header_lines=0), dialect.num_header_lines)
    if len(dialect.names) == 1:
        yield from parts
        return
    num_held = 0
    for part in parts:
        with_values = part.select(pl.any_horizontal(pl.all().is_not_null())).to_series().arg_true()
        end = with_values[-1] + 1 if len(with_values) else 0
        if end:
            while num_held:
                empty = part.clear(min(num_held, max(1, CELLS_AT_ONCE // part.width)))
                num_held -= empty.height
                yield empty
            yield part.head(end)
        num_held += part.height - end


def _parsed(path: Path, dialect: Dialect, num_header_lines: int) -> Generator[pl.DataFrame]:
    for block in row_blocks(path, num_header_lines, quoted=dialect.quoted):
        with polars_errors("csv"):
            part = scan_delimited(io.BytesIO(_without_blank_lines(block, dialect)), dialect, {}).collect()
        if part.height:
            yield part


def _without_blank_lines(block: bytes, dialect: Dialect) -> bytes:
    if len(dialect.names) == 1 or not _BLANK_LINE.search(block):
        return block
    if not dialect.quoted:
        return _BLANK_LINE.sub(b"", block)
    return _QUOTED_OR_BLANK.sub(lambda found: found[0] if found[0].startswith(b'"') else b"", block)
