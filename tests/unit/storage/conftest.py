from collections.abc import Iterator
from pathlib import Path

import pytest

from app.storage.database import Database
from app.storage.datasets import DatasetStore
from app.storage.migrations import migrate


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/gradserve.db")
    migrate(database)
    yield database
    database.close()


@pytest.fixture
def store(tmp_path: Path, database: Database) -> DatasetStore:
    return DatasetStore(tmp_path / "datasets", database, max_bytes=2**26, max_columns=100)
