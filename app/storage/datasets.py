"""Stored tables by what is in them, and datasets: the names that users give to tables.

A table is the folder `<sha256>/` with `table.parquet` and `profile.json`, written in `.uploads`, renamed into place and
never changed afterwards. A dataset is a row of the database that names one; replacing or deleting it touches no file.
Tables that nobody names any more are removed by `sweep`.
"""

import hashlib
import io
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
from sqlalchemy import Row, delete, insert, select

from app.errors import DatasetNotFound
from app.specs.sentences import nearest
from app.specs.table import ColumnProfile, Table
from app.storage.columns import TYPED_READINGS, check_names, settle_types
from app.storage.database import Database, datasets
from app.storage.files import changed_at, sync_folder, write_synced
from app.storage.formats import declared_format, has_header
from app.storage.profile import plain_value, profile_table
from app.storage.uploads import Upload, read_upload


@dataclass(frozen=True)
class Dataset:
    """A named table. `num_bytes` is the size of what was uploaded."""

    name: str
    digest: str
    num_rows: int
    num_bytes: int
    columns: tuple[ColumnProfile, ...]
    created_at: datetime


def table_path(root: Path, digest: str) -> Path:
    """The Parquet file of a stored table; `root` is the folder of all tables."""
    return _folder(root, digest) / "table.parquet"


def read_facts(root: Path, digest: str) -> Table:
    """What a stored table's columns hold."""
    return Table.model_validate_json((_folder(root, digest) / "profile.json").read_bytes())


def _folder(root: Path, digest: str) -> Path:
    return root / digest.removeprefix("sha256:")


class DatasetStore:
    """Safe to share between threads and processes.

    Reading an upload takes the longer the larger it is, so `put` and `put_upload` are not for an event loop.
    """

    def __init__(self, root: Path, database: Database, max_bytes: int, max_columns: int) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self.max_columns = max_columns
        self._database = database
        self._uploads = root / ".uploads"

    # ---- datasets

    @contextmanager
    def upload(self, content_type: str = "", content_encoding: str = "") -> Iterator[Upload]:
        """A place on disk for a body, for as long as the block lasts. Raises UnsupportedMedia before any byte came."""
        declared = declared_format(content_type, content_encoding)
        with self._scratch() as folder:
            upload = Upload(folder, self.max_bytes, declared, has_header(content_type))
            try:
                yield upload
            finally:
                upload.close()

    def put(
        self, name: str, chunks: Iterable[bytes], content_type: str = "", content_encoding: str = ""
    ) -> tuple[Dataset, bool]:
        """Store a whole body under a name. For a body that arrives over time: `upload`, then `put_upload`."""
        with self.upload(content_type, content_encoding) as upload:
            for chunk in chunks:
                upload.write(chunk)
            return self.put_upload(name, upload)

    def put_upload(self, name: str, upload: Upload) -> tuple[Dataset, bool]:
        """Make an upload the dataset of this name. Returns it, and whether the name is new.

        Raises:
            Unparseable, InvalidInput, TooLarge: the upload is no table; the name is as it was.
        """
        upload.check()
        if not self._touch(upload.digest):
            path = read_upload(upload, self.max_columns)
            self._publish(path, profile_table(pl.scan_parquet(path, glob=False), upload.digest))
        table = read_facts(self.root, upload.digest)
        dataset = Dataset(name, table.digest, table.num_rows, upload.num_bytes, table.columns, datetime.now(UTC))
        with self._database.write() as connection:
            replaced = connection.execute(delete(datasets).where(datasets.c.name == name)).rowcount
            connection.execute(insert(datasets).values(_row(dataset)))
        return dataset, not replaced

    def get(self, name: str) -> Dataset:
        """Raises DatasetNotFound."""
        with self._database.read() as connection:
            row = connection.execute(select(datasets).where(datasets.c.name == name)).one_or_none()
            if row is None:
                near = nearest(name, connection.execute(select(datasets.c.name)).scalars().all())
                hint = f"PUT /datasets/{name} makes one" if near is None else f"did you mean {near!r}?"
                raise DatasetNotFound(f"there is no dataset {name!r}; {hint}")
        return _dataset(row)

    def rows(self, name: str, limit: int) -> list[dict[str, Any]]:
        """The first rows. Raises DatasetNotFound."""
        path = self.path(self.get(name).digest)
        head = pl.scan_parquet(path, glob=False).head(limit).collect()
        return [{column: plain_value(value) for column, value in row.items()} for row in head.iter_rows(named=True)]

    def list(self, limit: int, after: str | None = None) -> tuple[Sequence[Dataset], str | None]:
        """Datasets by name, and the cursor of the next page, if there is one."""
        query = select(datasets).order_by(datasets.c.name).limit(limit + 1)
        if after is not None:
            query = query.where(datasets.c.name > after)
        with self._database.read() as connection:
            found = [_dataset(row) for row in connection.execute(query)]
        return found[:limit], found[limit - 1].name if len(found) > limit else None

    def delete(self, name: str) -> None:
        """Forget the name. Raises DatasetNotFound."""
        with self._database.write() as connection:
            if not connection.execute(delete(datasets).where(datasets.c.name == name)).rowcount:
                raise DatasetNotFound(f"there is no dataset {name!r}")

    # ---- tables

    def add_table(self, frame: pl.DataFrame) -> Table:
        """Store a table without a name, by the digest of its Parquet bytes. Raises TooLarge, InvalidInput."""
        check_names(frame.columns, self.max_columns)
        table = settle_types(frame.lazy(), TYPED_READINGS).collect()
        content = io.BytesIO()
        table.write_parquet(content)
        digest = f"sha256:{hashlib.sha256(content.getbuffer()).hexdigest()}"
        if not self._touch(digest):
            with self._scratch() as folder:
                path = folder / "table" / "table.parquet"
                path.parent.mkdir()
                path.write_bytes(content.getbuffer())
                self._publish(path, profile_table(table.lazy(), digest))
        return read_facts(self.root, digest)

    def table(self, digest: str) -> Table:
        """A stored table's facts; asking for them keeps the table until after the deadline of `sweep`.

        Raises DatasetNotFound.
        """
        if not self._touch(digest):
            raise DatasetNotFound(f"there is no stored table with the digest {digest}")
        return read_facts(self.root, digest)

    def path(self, digest: str) -> Path:
        return table_path(self.root, digest)

    def sweep(self, digests_in_use: Iterable[str], deadline: float) -> None:
        """Remove the tables that no dataset names, that are not in use, and that nobody has asked for since.

        What crashed uploads left behind goes too.
        """
        with self._database.read() as connection:
            named = set(connection.execute(select(datasets.c.digest)).scalars())
        kept = {digest.removeprefix("sha256:") for digest in named | set(digests_in_use)}
        for folder in _subfolders(self.root):
            if folder.name not in kept and not folder.name.startswith(".") and _used_at(folder) < deadline:
                self._remove(folder, deadline)
        for folder in _subfolders(self._uploads):
            if changed_at(folder) < deadline:
                shutil.rmtree(folder, ignore_errors=True)

    # ---- files

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        folder = self._uploads / os.urandom(8).hex()
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _touch(self, digest: str) -> bool:
        """Whether the table is there; if so, it counts as used now."""
        try:
            os.utime(_folder(self.root, digest))
        except FileNotFoundError:
            return False
        return True

    def _publish(self, path: Path, table: Table) -> None:
        """Rename a table's folder into its place; where another process was quicker with the same one, its stays."""
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        write_synced(path.with_name("profile.json"), table.model_dump_json().encode())
        sync_folder(path.parent)
        try:
            path.parent.rename(_folder(self.root, table.digest))
        except OSError:
            if not self._touch(table.digest):
                raise
        sync_folder(self.root)

    def _remove(self, folder: Path, deadline: float) -> None:
        """Take the folder away first and look again then: who used it in between gets it back."""
        with self._scratch() as parent:
            away = parent / folder.name
            folder.rename(away)
            if _used_at(away) >= deadline and not folder.exists():
                away.rename(folder)


def _used_at(folder: Path) -> float:
    return folder.stat().st_mtime


def _subfolders(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []


def _row(dataset: Dataset) -> dict[str, Any]:
    columns = [column.model_dump(mode="json") for column in dataset.columns]
    return vars(dataset) | {"columns": columns, "created_at": dataset.created_at.timestamp()}


def _dataset(row: Row[Any]) -> Dataset:
    columns = tuple(ColumnProfile.model_validate(column) for column in row.columns)
    created_at = datetime.fromtimestamp(row.created_at, UTC)
    return Dataset(row.name, row.digest, row.num_rows, row.num_bytes, columns, created_at)
