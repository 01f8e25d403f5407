"""The schema's history, as Alembic revisions; `migrate` brings any database up to date when a service starts.

A new database gets the tables of today at once: Alembic, which takes 0.1 s and 10 MB, is imported for old ones only.

Each file in versions/ is named after its revision, `NNNN_what.py`, and follows the one before it.
"""

from pathlib import Path

import structlog
from sqlalchemy import Column, Connection, MetaData, String, Table, insert, inspect, select

from app.errors import GradserveError, StorageFailed
from app.storage.database import Database, metadata

_HERE = Path(__file__).parent
_REVISION = Table(
    "alembic_version", MetaData(), Column("version_num", String(32), primary_key=True)
)  # as Alembic has it

log = structlog.get_logger()


def head() -> str:
    """The revision that this code is written for, known without importing Alembic."""
    return max(file.name.partition("_")[0] for file in (_HERE / "versions").glob("[0-9]*_*.py"))


def migrate(database: Database) -> None:
    """Bring the schema to `head`, in one transaction; processes that start together take turns.

    Raises:
        GradserveError: `database_too_new`, a later Gradserve has written to it.
    """
    with database.read() as connection:
        is_current = _is_current(connection)
    if not is_current:
        with database.write() as connection:
            if not inspect(connection).get_table_names():
                _create(connection)
            elif not _is_current(connection):
                _upgrade(connection)
    try:
        database.allow_to_shrink()
    except StorageFailed as error:
        log.warning("the database keeps its size on disk, whatever is removed from it", reason=error.detail)


def _is_current(connection: Connection) -> bool:
    if not inspect(connection).has_table(_REVISION.name):
        return False
    revision = connection.execute(select(_REVISION.c.version_num)).scalar() or ""
    if revision > head():
        raise GradserveError(
            f"the database is at revision {revision}, newer than this Gradserve ({head()}): start the newer release, "
            "or restore the database's backup",
            code="database_too_new",
        )
    return revision == head()


def _create(connection: Connection) -> None:
    metadata.create_all(connection)
    _REVISION.create(connection)
    connection.execute(insert(_REVISION).values(version_num=head()))


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", _HERE.as_posix().replace("%", "%%"))
    command.upgrade(config, "head")
