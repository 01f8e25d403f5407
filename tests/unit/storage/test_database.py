"""The database: transactions, migrations, and seeing what others write."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import delete, insert, inspect, select, text

from app.errors import GradserveError, StorageFailed, StorageFull
from app.storage import migrations
from app.storage.database import ChangeWatch, Database, datasets, metadata
from app.storage.migrations import head, migrate

ROW = {"name": "penguins", "digest": "d", "num_rows": 1, "num_bytes": 2, "columns": [], "created_at": 0.0}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/data/gradserve.db")
    migrate(database)
    yield database
    database.close()


def schema_of(database: Database) -> dict[str, Any]:
    """Of every table: its columns, its keys, its indexes."""
    with database.read() as connection:
        seen = inspect(connection)
        return {
            table: (
                [{**column, "type": str(column["type"])} for column in seen.get_columns(table)],
                seen.get_pk_constraint(table)["constrained_columns"],
                [{**key, "name": None} for key in seen.get_foreign_keys(table)],
                sorted(seen.get_indexes(table), key=str),
                sorted(seen.get_unique_constraints(table), key=str),
            )
            for table in seen.get_table_names()
        }


def test_a_new_database_is_as_one_that_all_revisions_have_made(database: Database, tmp_path: Path) -> None:
    old = Database(f"sqlite:///{tmp_path}/old.db")
    with old.write() as connection:
        migrations._upgrade(connection)
    assert set(schema_of(old)) == {*metadata.tables, "alembic_version"}
    assert schema_of(database) == schema_of(old)
    for each in (database, old):
        with each.read() as connection:
            assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == [head()]
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    old.close()


def test_head_is_the_last_revision_and_every_revision_has_a_file_of_its_name() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_heads() == [head()]
    assert all(Path(script.path).name.startswith(f"{script.revision}_") for script in scripts.walk_revisions())


def test_only_an_old_database_needs_alembic(database: Database, tmp_path: Path) -> None:
    current = database.engine.url.render_as_string()
    code = (
        "import sys; from app.storage.database import Database; from app.storage.migrations import migrate;"
        f"migrate(Database({current!r})); migrate(Database('sqlite:///{tmp_path}/new.db'));"
        "assert 'alembic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(Path.cwd())})


def test_processes_that_start_together_migrate_once(tmp_path: Path) -> None:
    code = (
        "from app.storage.database import Database; from app.storage.migrations import migrate;"
        f"migrate(Database('sqlite:///{tmp_path}/new.db'))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], env={"PYTHONPATH": str(Path.cwd())}) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0, 0, 0, 0]


def test_a_database_of_a_later_release_is_refused(database: Database) -> None:
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(GradserveError, match="newer than this Gradserve") as raised:
        migrate(database)
    assert raised.value.code == "database_too_new"


def test_a_failed_write_leaves_no_trace(database: Database) -> None:
    def fail() -> None:
        with database.write() as connection:
            connection.execute(insert(datasets).values(ROW))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with database.read() as connection:
        assert connection.execute(select(datasets)).all() == []


def test_a_reader_sees_one_state_while_others_write(database: Database) -> None:
    with database.read() as reader:
        assert reader.execute(select(datasets)).all() == []
        with database.write() as writer:
            writer.execute(insert(datasets).values(ROW))
        assert reader.execute(select(datasets)).all() == []
    with database.read() as reader:
        assert len(reader.execute(select(datasets)).all()) == 1


def test_a_new_connection_waits_for_nobody_and_writes_nothing(database: Database) -> None:
    watch, other = ChangeWatch(database), Database(str(database.engine.url))
    watch.changed()
    with closing(watch), closing(other):
        with database.write(), other.read() as connection:
            assert connection.execute(select(datasets)).all() == []
        assert not watch.changed()


def test_what_json_cannot_say_is_null(database: Database) -> None:
    with database.write() as connection:
        connection.execute(insert(datasets).values(ROW | {"columns": [float("nan"), float("inf"), 1.5]}))
    with database.read() as connection:
        assert connection.execute(select(datasets.c.columns)).scalar_one() == [None, None, 1.5]


def test_a_commit_is_forced_to_disk_unless_it_can_be_done_again(database: Database) -> None:
    full, normal = 2, 1
    for durable in (True, False, True):
        with database.write(durable=durable) as connection:
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == (full if durable else normal)
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def test_many_threads_write_through_two_engines(database: Database) -> None:
    """Two engines are as two processes: neither's lock keeps the other out."""
    other = Database(database.engine.url.render_as_string())

    def write(number: int) -> None:
        with (database, other)[number % 2].write() as connection:
            connection.execute(insert(datasets).values(ROW | {"name": f"d{number}"}))

    with ThreadPoolExecutor(32) as threads:
        list(threads.map(write, range(200)))
    with database.read() as connection:
        assert len(connection.execute(select(datasets)).all()) == 200
    other.close()


def test_a_watch_sees_each_commit_once(database: Database) -> None:
    other = Database(database.engine.url.render_as_string())
    watch = ChangeWatch(database)
    watch.changed()
    assert not watch.changed()
    for writer in (database, other):
        with writer.write() as connection:
            connection.execute(insert(datasets).values(ROW | {"name": f"d{id(writer)}"}))
        assert watch.changed()
        assert not watch.changed()
    watch.close()
    other.close()


def test_a_full_database_says_so_and_has_no_trace_of_what_did_not_fit(database: Database) -> None:
    with database.write() as connection:
        pages = connection.execute(text("PRAGMA page_count")).scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        connection.execute(insert(datasets).values(ROW))
    rows = [ROW | {"name": "small"}, ROW | {"name": "large", "digest": "d" * 2**16}]
    with pytest.raises(StorageFull, match="full"), database.write() as connection:
        connection.execute(insert(datasets), rows)
    with database.read() as connection:
        assert connection.execute(select(datasets.c.name)).scalars().all() == ["penguins"]
        connection.exec_driver_sql("PRAGMA max_page_count=1000000")
    with database.write() as connection:
        connection.execute(insert(datasets).values(ROW | {"name": "large", "digest": "d" * 2**16}))


def test_a_database_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}")  # a folder
    with pytest.raises(StorageFailed, match="unable to open"), database.read():
        pass
    database.close()


def test_a_database_that_could_not_shrink_can_after_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE kept (x)")
        connection.execute("INSERT INTO kept VALUES (7)")
        connection.commit()
    database = Database(f"sqlite:///{path}")
    migrate(database)
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA auto_vacuum").scalar_one() == 2
        assert connection.exec_driver_sql("SELECT x FROM kept").scalar_one() == 7
    database.close()


def test_pages_that_hold_nothing_are_given_back_but_for_those_to_spare(database: Database) -> None:
    with database.write() as connection:
        connection.execute(insert(datasets), [ROW | {"name": f"n{i}", "digest": "d" * 80} for i in range(5000)])
    with database.write() as connection:
        connection.execute(delete(datasets))

    def pragma(name: str) -> int:
        with database.read() as connection:
            return int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())

    free, pages = pragma("freelist_count"), pragma("page_count")
    assert free > 50
    assert database.give_back(7, spare=20)
    assert (pragma("freelist_count"), pragma("page_count")) == (free - 7, pages - 7)
    while database.give_back(1000, spare=20):
        pass
    assert pragma("freelist_count") == 20


@pytest.mark.parametrize("url", ["gradserve.db", "oracledb://there/where", "nothing+at+all://x"])
def test_a_url_of_no_database_is_told(url: str) -> None:
    with pytest.raises(StorageFailed, match=r"URL can't be used.*begins with sqlite:///"):
        Database(url)
