"""Databases for tests: migrated once, then copied."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from app.storage.database import Database
from app.storage.migrations import migrate


def new_database(path: Path) -> Database:
    """An empty database of the newest schema in a file at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_template(), path)
    return Database(f"sqlite:///{path}")


@cache
def _template() -> Path:
    folder = tempfile.mkdtemp(prefix="gradserve-tests-")
    atexit.register(shutil.rmtree, folder)
    path = Path(folder) / "template.db"
    database = Database(f"sqlite:///{path}")
    migrate(database)
    database.close()  # the last connection: all is in the one file
    return path
