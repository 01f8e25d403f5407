"""The database: its tables, and the one way to read and to write it.

SQLite runs in WAL mode: readers never wait; writers take turns, in a process by a lock and between processes by
`BEGIN IMMEDIATE` (on PostgreSQL by an advisory lock), so that the ids of events grow in the order of their commits.
"""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
)
from sqlalchemy.exc import ArgumentError, DatabaseError, DataError, IntegrityError, NotSupportedError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.errors import StorageFailed, StorageFull

POSTGRESQL_FULL = "53100"
MAX_JOURNAL_BYTES = 2**24

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),  # the order of submission
    Column("id", String(40), nullable=False, unique=True),
    Column("state", String(16), nullable=False),
    Column("model", String(64), nullable=False),
    Column("version", String(20)),
    Column("spec", JSON, nullable=False),
    Column("idempotency_key", String(255), unique=True),
    Column("request_digest", String(80)),
    Column("progress", JSON),
    Column("metrics", JSON),
    Column("stop_reason", String(40)),
    Column("warnings", JSON, nullable=False),
    Column("error", JSON),
    Column("attempts", Integer, nullable=False, default=0),
    Column("created_at", Float, nullable=False),  # seconds since 1970, UTC
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("submitted_by", String(40)),  # the id of a key
    Column("request_id", String(128)),
    Column("memory", JSON),  # what the run was foretold to take
    Column("wait_reason", String(400)),
    Index("jobs_by_state", "state", "number"),
    Index("jobs_by_model", "model", "number"),
    sqlite_autoincrement=True,
)

events = Table(
    "events",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("job_id", String(40), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("type", String(16), nullable=False),
    Column("data", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    Index("events_by_job", "job_id", "id"),
    sqlite_autoincrement=True,
)

datasets = Table(
    "datasets",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("digest", String(80), nullable=False),
    Column("num_rows", BigInteger, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("columns", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    Index("datasets_by_digest", "digest"),
)


class Database:
    """An engine with `read()` and `write()` transactions, safe to share between threads."""

    def __init__(self, url: str) -> None:
        """Raises StorageFailed for a URL that leads to no kind of database that is installed."""
        try:
            self.engine = create_engine(url, json_serializer=_to_json, json_deserializer=orjson.loads)
        except (ArgumentError, ImportError, ValueError) as error:
            raise StorageFailed(
                f"the database's URL can't be used: {error}; it begins with sqlite:/// or, "
                "where 'gradserve[postgresql]' is installed, with postgresql+psycopg://"
            ) from error
        self._writer = threading.Lock()
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        if self.is_sqlite:
            if self.engine.url.database:
                Path(self.engine.url.database).parent.mkdir(parents=True, exist_ok=True)
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        else:
            event.listen(self.engine, "begin", _begin_postgresql)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database and changes nothing. Raises StorageFailed."""
        with _explained(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:
        """A transaction that is on disk once the block has ended, or leaves no trace if it raises.

        One that is not `durable` outlives the death of every process, but a power failure may undo it (and what was
        written after it, up to the next durable one): for what would then be done again. It takes no wait for the disk.

        Raises StorageFailed or StorageFull; the block has left no trace then either.
        """
        with _explained(), self._writer, self.engine.connect() as connection:
            connection = connection.execution_options(gradserve_write="FULL" if durable else "NORMAL")
            with connection.begin():
                yield connection

    def allow_to_shrink(self) -> None:
        """Have SQLite keep track of pages that hold nothing, which takes a copy of a file that was made without."""
        if not self.is_sqlite:
            return
        with _explained(), closing(self.engine.raw_connection()) as connection, closing(connection.cursor()) as cursor:
            if cursor.execute("PRAGMA auto_vacuum").fetchone()[0] == 0:
                cursor.execute("PRAGMA auto_vacuum=INCREMENTAL")
                cursor.execute("VACUUM")

    def give_back(self, max_pages: int, *, spare: int) -> bool:
        """Give pages that hold nothing back to the disk; False where there are no more than are to spare.

        PostgreSQL sees to that itself.
        """
        if not self.is_sqlite:
            return False
        with self.read() as connection:
            num_free = connection.exec_driver_sql("PRAGMA freelist_count").scalar_one()
        if num_free <= spare:
            return False
        with self.write(durable=False) as connection:
            for _ in range(min(max_pages, num_free - spare)):
                connection.exec_driver_sql("PRAGMA incremental_vacuum(1)")  # of more, the driver takes one step only
        return True

    def close(self) -> None:
        self.engine.dispose()


class ChangeWatch:
    """Tells, for microseconds, whether anyone in any process has written since it was last asked.

    Not safe to share between threads. Where the database cannot tell, the answer is always yes.
    """

    def __init__(self, database: Database) -> None:
        self._connection = database.engine.raw_connection() if database.is_sqlite else None
        self._seen: Any = None
        if self._connection is not None:
            self._connection.detach()  # it lives as long as the watch; the pool opens another in its place

    def changed(self) -> bool:
        if self._connection is None:
            return True
        cursor = self._connection.cursor()
        cursor.execute("PRAGMA data_version")
        before, self._seen = self._seen, cursor.fetchone()
        cursor.close()
        return bool(before != self._seen)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


WRONGLY_ASKED = (DataError, IntegrityError, NotSupportedError, ProgrammingError)


@contextmanager
def _explained() -> Iterator[None]:
    """What the database can't do, apart from what it was wrongly asked, in our words."""
    try:
        yield
    except WRONGLY_ASKED:
        raise
    except (DatabaseError, PoolTimeout) as error:
        cause = getattr(error, "orig", error)
        is_full = (
            getattr(cause, "sqlite_errorname", "") == "SQLITE_FULL" or getattr(cause, "sqlstate", "") == POSTGRESQL_FULL
        )
        kind = StorageFull if is_full else StorageFailed
        raise kind(f"the database failed: {cause}") from error


def _to_json(value: Any) -> str:
    return orjson.dumps(value).decode()  # NaN and infinity become null


def _prepare_sqlite(dbapi_connection: Any, _record: Any) -> None:
    dbapi_connection.isolation_level = None  # the driver begins nothing by itself; _begin_sqlite does
    dbapi_connection.execute("PRAGMA busy_timeout=30000").close()
    if dbapi_connection.execute("PRAGMA page_count").fetchone() == (0,):
        dbapi_connection.execute("PRAGMA auto_vacuum=INCREMENTAL").close()  # writes, though it is set already
    for pragma in (
        "journal_mode=WAL",
        f"journal_size_limit={MAX_JOURNAL_BYTES}",  # to which the journal is cut when all of it is in the database
        "foreign_keys=ON",
    ):
        dbapi_connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    synchronous = connection.get_execution_options().get("gradserve_write")
    if synchronous:
        connection.exec_driver_sql(f"PRAGMA synchronous={synchronous}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if synchronous else "BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    synchronous = connection.get_execution_options().get("gradserve_write")
    if synchronous:
        connection.exec_driver_sql(f"SET LOCAL synchronous_commit = {'on' if synchronous == 'FULL' else 'off'}")
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7212)")
