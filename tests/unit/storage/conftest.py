from collections.abc import Iterator
from pathlib import Path

import pytest

from app.storage.database import Database
from app.storage.datasets import DatasetStore
from tests.databases import new_database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = new_database(tmp_path / "gradserve.db")
    yield database
    database.close()


@pytest.fixture
def store(tmp_path: Path, database: Database) -> DatasetStore:
    return DatasetStore(tmp_path / "datasets", database, max_bytes=2**26, max_columns=100)
