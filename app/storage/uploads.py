"""From the bytes of an upload to a typed Parquet file."""

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
from polars.exceptions import ComputeError, PanicException, PolarsError

from app.errors import DISK_FAILED, DISK_FULL, InvalidInput, TooLarge, Unparseable
from app.storage.arrow_stream import check_arrow_file, write_arrow_file
from app.storage.blocks import BLOCK_BYTES
from app.storage.columns import (
    DECIMAL_COMMA_READINGS,
    TYPED_READINGS,
    UNTYPED_READINGS,
    group_rows,
    grouped_columns,
    padded_columns,
    settle_types,
    storable_table,
)
from app.storage.delimited import check_rows, open_delimited, scan_delimited, without_blank_rows
from app.storage.dialects import Dialect
from app.storage.formats import MAX_LINE_BYTES, NAMES, Format, check_declared, detect_format, gunzip
from app.storage.ndjson import scan_ndjson
from app.storage.parquet_pages import check_parquet

_HEAD_BYTES = 4096
_FIRST_CELLS = 2**20
_MAX_GZIP_LAYERS = 2
_FREE_CELLS = 2**30
_MAX_CELLS_PER_BYTE = 100
_OF_SYSTEM = re.compile(rf"\(os error ({'|'.join(map(str, DISK_FULL + DISK_FAILED))})\)$")
_BOM = b"\xef\xbb\xbf"


class Upload:
    """A body on its way to disk, hashed and counted as it is written.

    `folder` also takes what is made of it; `declared` is the format that the sender named; `has_header`, whether a CSV
    begins with names.
    """

    def __init__(self, folder: Path, max_bytes: int, declared: Format | None, has_header: bool = True) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.declared, self.has_header = declared, has_header
        self.num_bytes = 0
        self._hash = hashlib.sha256()
        self.body = folder / "body"
        self._file = self.body.open("wb")

    def write(self, chunk: bytes | bytearray) -> None:
        """Raises TooLarge as soon as the body is."""
        self.num_bytes += len(chunk)
        if self.num_bytes > self.max_bytes:
            raise TooLarge(f"the body is larger than {self.max_bytes} bytes, the most that a dataset may have")
        self._hash.update(chunk)
        self._file.write(chunk)

    def close(self) -> None:
        self._file.close()

    def check(self) -> None:
        """Raises Unparseable for a whole body that is no table, or not the kind that its sender named."""
        self._file.flush()
        found = _format_of(self.body)
        if found != "gzip":
            check_declared(self.declared, found)

    @property
    def digest(self) -> str:
        """Of the bytes; of those that are rows from the first on, another one, as they make another table."""
        whole = self._hash.copy()
        whole.update(b"" if self.has_header else b"; header=absent")
        return f"sha256:{whole.hexdigest()}"


def read_upload(upload: Upload, max_columns: int) -> Path:
    """The upload as a Parquet file of stored columns, alone in its folder; its size does not matter to memory.

    Raises Unparseable, InvalidInput or TooLarge, with a sentence about what is wrong and where.
    """
    body, found = unpack(upload)
    check_declared(upload.declared, found)
    table = upload.folder / "table" / "table.parquet"
    table.parent.mkdir()
    with polars_errors(found):
        settled = _settled(body, found, upload.folder / "staged.parquet", max_columns, upload.has_header)
        write_parquet(settled, table)
        if not pl.scan_parquet(table, glob=False).select(pl.len()).collect().item():
            raise InvalidInput.at("", "the table has no rows")
    return table


def unpack(upload: Upload) -> tuple[Path, Format]:
    """The file within the gzip, if it is one, and its format."""
    upload.close()
    path = upload.body
    for layer in range(_MAX_GZIP_LAYERS + 1):
        found = _format_of(path)
        if found != "gzip":
            return path, found
        packed, path = path, upload.folder / f"unpacked{layer}"
        gunzip(packed, path, upload.max_bytes)
        packed.unlink()
    raise Unparseable(f"the body is gzipped more than {_MAX_GZIP_LAYERS} times")


def _format_of(path: Path) -> Format:
    with path.open("rb") as file:
        return detect_format(file.read(_HEAD_BYTES))


def _settled(body: Path, found: Format, staged: Path, max_columns: int, has_header: bool) -> pl.LazyFrame:
    """The file's table with its final types. Text is parsed once, into `staged`, and then typed by all of its rows."""
    if found == "csv":
        check_lines(body)
        body, dialect = open_delimited(body, max_columns, has_header)
        try:
            return _settled_csv(body, dialect, staged)
        except PolarsError:
            check_rows(body, dialect)  # to say where
            raise
    if found == "ndjson":
        table = scan_ndjson(_without_bom(body), max_columns)
        write_parquet(storable_table(table, max_columns), staged)
        return settle_types(pl.scan_parquet(staged, glob=False), TYPED_READINGS)
    if found == "arrow_stream":
        body, stream = body.with_suffix(".arrow"), body
        write_arrow_file(stream, body)
    elif found == "arrow_file":
        check_arrow_file(body)
    elif found == "parquet":
        check_parquet(body)
    table = pl.scan_parquet(body, glob=False) if found == "parquet" else pl.scan_ipc(body, glob=False)
    _check_cells(table, body.stat().st_size)
    return settle_types(storable_table(table, max_columns), TYPED_READINGS)


def _check_cells(table: pl.LazyFrame, num_bytes: int) -> None:
    """Raises TooLarge for a file that holds far more values than files of its size do; to unpack it could take days."""
    num_cells = table.select(pl.len()).collect(engine="streaming").item() * len(table.collect_schema())
    if num_cells > max(_FREE_CELLS, _MAX_CELLS_PER_BYTE * num_bytes):
        raise TooLarge(f"the table has {num_cells} cells in {num_bytes} bytes, which is too large to be unpacked")


def _settled_csv(body: Path, dialect: Dialect, staged: Path) -> pl.LazyFrame:
    """Columns that begin with numbers are parsed as such, which is quick; if one does not go on so, all as text."""
    readings = UNTYPED_READINGS if dialect.separator == "," else DECIMAL_COMMA_READINGS
    num_rows = max(100, min(1000, _FIRST_CELLS // len(dialect.names)))
    text = without_blank_rows(scan_delimited(body, dialect, {}))
    if dialect.padded:  # zeros that numbers would lose
        write_parquet(text, staged)
        table = pl.scan_parquet(staged, glob=False)
        return settle_types(table, readings, padded_columns(table))
    head = text.head(num_rows).collect(engine="streaming")
    first = settle_types(head.lazy(), readings).collect()
    grouped = grouped_columns(head, first)
    read = first.drop(grouped)
    numeric = {column.name: column.dtype for column in read if column.dtype.is_numeric() and column.count()}
    try:
        write_parquet(without_blank_rows(scan_delimited(body, dialect, numeric)), staged)
    except ComputeError:
        staged = staged.with_stem("staged_as_text")  # polars may go on writing for a while where it has failed
        write_parquet(text, staged)
    return settle_types(pl.scan_parquet(staged, glob=False), readings, grouped)


def write_parquet(table: pl.LazyFrame, path: Path) -> None:
    """Streams the table into a file, in row groups that fit into memory however many columns there are."""
    num_rows = group_rows(len(table.collect_schema()))
    table.sink_parquet(path, compression="zstd", row_group_size=num_rows, engine="streaming")


def check_lines(path: Path) -> None:
    """Raises Unparseable for a line that would have to be held in memory at a size that no row of a table has."""
    num_bytes = 0  # since the last line's end
    with path.open("rb") as file:
        for block in iter(lambda: file.read(BLOCK_BYTES), b""):
            end = max(block.rfind(b"\n"), block.rfind(b"\r"))
            num_bytes = len(block) - 1 - end if end >= 0 else num_bytes + len(block)
            if num_bytes > MAX_LINE_BYTES:
                raise Unparseable(f"the body has a line longer than {MAX_LINE_BYTES} bytes")


def _without_bom(path: Path) -> Path:
    """The file, copied without the byte order mark if it has one."""
    with path.open("rb") as file:
        if file.read(len(_BOM)) != _BOM:
            return path
        plain = path.with_suffix(".plain")
        with plain.open("wb") as copy:
            for block in iter(lambda: file.read(2**20), b""):
                copy.write(block)
    return plain


@contextmanager
def polars_errors(found: Format) -> Iterator[None]:
    try:
        yield
    except (PolarsError, PanicException, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # the disk's fault, not the body's
            raise
        if told := _OF_SYSTEM.search(str(error)):  # so is this, which polars tells in words
            raise OSError(int(told[1]), os.strerror(int(told[1]))) from error
        reason = str(error).strip().partition("\n")[0]
        raise Unparseable(f"the body cannot be read as {NAMES[found]}: {reason}") from error
