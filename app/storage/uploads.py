"""From the bytes of an upload to a typed Parquet file."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
from polars.exceptions import PanicException, PolarsError

from app.errors import InvalidInput, TooLarge, Unparseable
from app.storage.columns import (
    DECIMAL_COMMA_READINGS,
    TYPED_READINGS,
    UNTYPED_READINGS,
    check_names,
    settle_types,
    storable,
)
from app.storage.delimited import scan_delimited
from app.storage.formats import Format, check_declared, detect_format, gunzip
from app.storage.ndjson import scan_ndjson

MAX_LINE_BYTES = 2**24

_HEAD_BYTES = 4096
_MAX_GZIP_LAYERS = 2
_CELLS_PER_ROW_GROUP = 2**23
_BOM = b"\xef\xbb\xbf"


class Upload:
    """A body on its way to disk, hashed and counted as it is written.

    `folder` also takes what is made of it; `declared` is the format that the sender named.
    """

    def __init__(self, folder: Path, max_bytes: int, declared: Format | None) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.declared = declared
        self.num_bytes = 0
        self._hash = hashlib.sha256()
        self._file = (folder / "body").open("wb")

    def write(self, chunk: bytes) -> None:
        """Raises TooLarge as soon as the body is."""
        self.num_bytes += len(chunk)
        if self.num_bytes > self.max_bytes:
            raise TooLarge(f"The body is larger than {self.max_bytes} bytes, the most that a dataset may have.")
        self._hash.update(chunk)
        self._file.write(chunk)

    def close(self) -> Path:
        """The file that has the whole body."""
        self._file.close()
        return self.folder / "body"

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def read_upload(upload: Upload, max_columns: int) -> Path:
    """The upload as a Parquet file of stored columns, alone in its folder; its size does not matter to memory.

    Raises Unparseable, InvalidInput or TooLarge, with a sentence about what is wrong and where.
    """
    body, found = _unpacked(upload)
    check_declared(upload.declared, found)
    table = upload.folder / "table" / "table.parquet"
    table.parent.mkdir()
    with _polars_errors(found):
        settled = _settled(body, found, upload.folder / "staged.parquet", max_columns)
        write_parquet(settled, table)
        if not pl.scan_parquet(table, glob=False).select(pl.len()).collect().item():
            raise InvalidInput("The table has no rows.")
    return table


def _unpacked(upload: Upload) -> tuple[Path, Format]:
    """The file within the gzip, if it is one, and its format."""
    path = upload.close()
    for layer in range(_MAX_GZIP_LAYERS + 1):
        with path.open("rb") as file:
            found = detect_format(file.read(_HEAD_BYTES))
        if found != "gzip":
            return path, found
        packed, path = path, upload.folder / f"unpacked{layer}"
        gunzip(packed, path, upload.max_bytes)
        packed.unlink()
    raise Unparseable(f"The body is gzipped more than {_MAX_GZIP_LAYERS} times.")


def _settled(body: Path, found: Format, staged: Path, max_columns: int) -> pl.LazyFrame:
    """The file's table with its final types. Text is parsed once, into `staged`, and then typed by all of its rows."""
    if found == "csv":
        _check_lines(body)
        table, dialect = scan_delimited(body, max_columns)
        write_parquet(table, staged)
        readings = UNTYPED_READINGS if dialect.separator == "," else DECIMAL_COMMA_READINGS
        return settle_types(pl.scan_parquet(staged, glob=False), readings)
    if found == "ndjson":
        write_parquet(_storable(scan_ndjson(_without_bom(body), max_columns), max_columns), staged)
    elif found == "arrow_stream":
        write_parquet(_storable(pl.read_ipc_stream(body).lazy(), max_columns), staged)
    else:
        scan = pl.scan_parquet if found == "parquet" else pl.scan_ipc
        return settle_types(_storable(scan(body, glob=False), max_columns), TYPED_READINGS)
    return settle_types(pl.scan_parquet(staged, glob=False), TYPED_READINGS)


def _storable(table: pl.LazyFrame, max_columns: int) -> pl.LazyFrame:
    schema = table.collect_schema()
    if not schema:
        raise InvalidInput("The table has no columns.")
    check_names(schema.names(), max_columns)
    return table.select(storable(name, dtype) for name, dtype in schema.items())


def write_parquet(table: pl.LazyFrame, path: Path) -> None:
    """Streams the table into a file, in row groups that fit into memory however many columns there are."""
    num_columns = len(table.collect_schema())
    row_group_size = max(1024, min(2**17, _CELLS_PER_ROW_GROUP // num_columns))
    table.sink_parquet(path, compression="zstd", row_group_size=row_group_size, engine="streaming")


def _check_lines(path: Path) -> None:
    """Raises Unparseable for a line that would have to be held in memory at a size that no row of a table has."""
    with path.open("rb") as file:
        for block in iter(lambda: file.read(MAX_LINE_BYTES), b""):
            if len(block) == MAX_LINE_BYTES and b"\n" not in block and b"\r" not in block:
                raise Unparseable(f"The file has a line longer than {MAX_LINE_BYTES} bytes.")


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
def _polars_errors(found: Format) -> Iterator[None]:
    try:
        yield
    except (PolarsError, PanicException) as error:
        reason = str(error).strip().partition("\n")[0]
        raise Unparseable(f"The body cannot be read as {found}: {reason}") from error
