"""Reads bytes as an upload, the whole way."""

import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from app.specs.table import ColumnProfile, Table
from app.storage.formats import declared_format, has_header
from app.storage.profile import profile_table
from app.storage.uploads import Upload, read_upload


def read(content: bytes, content_type: str = "", *, max_bytes: int = 2**24, max_columns: int = 100) -> pl.DataFrame:
    """The table in an upload."""
    with tempfile.TemporaryDirectory() as folder:
        upload = Upload(Path(folder), max_bytes, declared_format(content_type), has_header(content_type))
        upload.write(content)
        return pl.read_parquet(read_upload(upload, max_columns))


def profile(content: bytes, content_type: str = "") -> Table:
    return profile_table(read(content, content_type).lazy(), f"sha256:{'0' * 64}")


def column(content: bytes, name: str) -> ColumnProfile:
    found = profile(content).column(name)
    assert found is not None
    return found


def parquet(columns: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    pl.DataFrame(columns).write_parquet(file)
    return file.getvalue()
