"""The SQL of jobs and events; the rules are tested with app.jobs.queue."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.storage import jobs as rows
from app.storage.database import Database
from app.storage.jobs import NewEvent
from tests.databases import new_database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = new_database(tmp_path / "gradserve.db")
    with database.write() as connection:
        for number, state in enumerate(("queued", "running", "queued", "paused", "queued"), start=1):
            rows.insert_job(
                connection, id=f"j{number}", state=state, model="ab"[number % 2], spec={"seed": number}, warnings=[],
                attempts=0, created_at=float(number),
            )  # fmt: skip
    yield database
    database.close()


def test_queue_positions_count_the_queued_jobs_before(database: Database) -> None:
    with database.read() as connection:
        found = {job.id: job.queue_position for job in rows.page_of_jobs(connection, **EVERYTHING)}
        alone = rows.get_job(connection, "j3")
    assert found == {"j1": 1, "j2": None, "j3": 2, "j4": None, "j5": 3}
    assert alone is not None
    assert alone.queue_position == 2


EVERYTHING = {"state": None, "model": None, "before": None, "limit": 100}


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ({}, ["j5", "j4", "j3", "j2", "j1"]),
        ({"limit": 2}, ["j5", "j4"]),
        ({"before": 4, "limit": 2}, ["j3", "j2"]),
        ({"state": "queued"}, ["j5", "j3", "j1"]),
        ({"model": "a"}, ["j4", "j2"]),
        ({"model": "a", "state": "queued"}, []),
    ],
)
def test_pages_are_newest_first(database: Database, query: dict[str, object], ids: list[str]) -> None:
    with database.read() as connection:
        assert [job.id for job in rows.page_of_jobs(connection, **EVERYTHING | query)] == ids


def test_deleting_a_job_deletes_its_events_alone_and_ids_are_never_used_again(database: Database) -> None:
    with database.write() as connection:
        rows.insert_events(connection, [NewEvent(job, "metrics", {"epoch": 1}, 0.0) for job in ("j1", "j2", "j1")])
        rows.delete_job(connection, "j1")
        rows.insert_events(connection, [NewEvent("j2", "metrics", {"epoch": 2}, 0.0)])
        assert rows.get_job(connection, "j1") is None
        assert [event.id for event in rows.events_of_all(connection, after=0, limit=10)] == [2, 4]
        assert rows.metrics_of_job(connection, "j2") == [{"epoch": 1}, {"epoch": 2}]


def test_no_events_is_no_statement(database: Database) -> None:
    with database.write() as connection:
        rows.insert_events(connection, [])
        assert rows.last_event_id(connection) == 0
