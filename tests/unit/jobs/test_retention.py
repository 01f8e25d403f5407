"""What is forgotten of finished jobs, and what never is."""

import time
from contextlib import closing

import pytest

from app.jobs import retention
from app.jobs.queue import TERMINAL, JobQueue
from app.jobs.retention import DAY_SECONDS, Keep, Retention
from app.storage import jobs as rows
from app.storage.database import Database
from app.storage.jobs import NewEvent

DAY = DAY_SECONDS
NOW = 1000 * DAY


def add_job(database: Database, queue: JobQueue, state: str, ended: float, num_epochs: int = 3) -> str:
    """A job that ended at a time (or was submitted then, if it has not ended), with an event of progress an epoch."""
    job_id = queue.submit({"seed": 0}, "m").id
    told = [
        NewEvent(job_id, type_, {"epoch": epoch}, ended)
        for epoch in range(1, num_epochs + 1)
        for type_ in ("progress", "metrics")
    ]
    finished_at = ended if state in TERMINAL else None
    with database.write() as connection:
        rows.insert_events(connection, [*told, NewEvent(job_id, "state", {"state": state}, ended)])
        rows.update_job(connection, job_id, state=state, created_at=ended - 60, finished_at=finished_at)
    return job_id


def types_of(queue: JobQueue, job_id: str) -> list[str]:
    return [event.type for event in queue.events(job_id, limit=100_000)]


def ids(queue: JobQueue) -> set[str]:
    return {job.id for job in queue.page(limit=1000)[0]}


@pytest.mark.parametrize("jobs_at_once", [1, 10])
@pytest.mark.parametrize("page", [1, 500])
def test_jobs_are_forgotten_so_many_days_after_their_end(
    database: Database, queue: JobQueue, monkeypatch: pytest.MonkeyPatch, jobs_at_once: int, page: int
) -> None:
    monkeypatch.setattr(retention, "JOBS_AT_ONCE", jobs_at_once)
    monkeypatch.setattr(retention, "PAGE", page)
    old = [add_job(database, queue, state, NOW - 11 * DAY) for state in ("succeeded", "failed", "cancelled")]
    kept = {add_job(database, queue, state, NOW - 11 * DAY) for state in ("queued", "running", "paused", "pausing")}
    kept |= {add_job(database, queue, "succeeded", NOW - 9 * DAY) for _ in range(3)}
    Retention(database, Keep(jobs_days=10)).run(NOW)
    assert ids(queue) == kept
    with database.read() as connection:
        assert [rows.count_events(connection, job_id) for job_id in old] == [0, 0, 0]


def test_as_many_finished_jobs_are_kept_as_is_said(database: Database, queue: JobQueue) -> None:
    waiting = add_job(database, queue, "queued", NOW)
    finished = [add_job(database, queue, "failed", NOW) for _ in range(25)]
    Retention(database, Keep(num_jobs=7)).run(NOW)
    assert ids(queue) == {waiting, *finished[-7:]}
    Retention(database, Keep(num_jobs=100)).run(NOW)
    assert len(ids(queue)) == 8


def test_old_events_go_and_the_last_stays(database: Database, queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "EVENTS_AT_ONCE", 2)
    old, new = (add_job(database, queue, "succeeded", NOW - days * DAY) for days in (31, 29))
    running = add_job(database, queue, "running", NOW - 31 * DAY)
    for _ in range(2):  # the second has nothing to do
        Retention(database, Keep(events_days=30)).run(NOW)
        assert [event.data for event in queue.events(old)] == [{"state": "succeeded"}]
        assert len(types_of(queue, new)) == len(types_of(queue, running)) == 8
    assert len(ids(queue)) == 3


def test_of_many_events_progress_goes_first(database: Database, queue: JobQueue) -> None:
    running = add_job(database, queue, "running", NOW, num_epochs=300)
    ended = add_job(database, queue, "succeeded", NOW, num_epochs=300)
    few = add_job(database, queue, "succeeded", NOW)
    sweeper = Retention(database, Keep(events_per_job=400))
    sweeper.run(NOW)
    for job_id in (running, ended):
        types = types_of(queue, job_id)
        assert (types.count("progress"), types.count("metrics"), types.count("state")) == (98, 300, 2)
    assert len(types_of(queue, few)) == 8
    sweeper = Retention(database, Keep(events_per_job=100))
    sweeper.run(NOW)
    assert len(queue.history(running)) == 300  # which the run goes on from
    assert queue.last_epoch(running) == 300
    assert [row["epoch"] for row in queue.history(ended)] == list(range(202, 301))
    assert types_of(queue, ended)[-1] == "state"
    queue.finish(running, "failed")
    sweeper.run(NOW)
    assert len(types_of(queue, running)) == 100
    Retention(database, Keep(events_per_job=7)).run(NOW)
    assert types_of(queue, few).count("progress") == 2  # one too many is, too


def test_nothing_is_removed_unless_that_is_said(database: Database, queue: JobQueue) -> None:
    job_id = add_job(database, queue, "succeeded", 0.0)
    Retention(database, Keep()).run(NOW)
    assert len(types_of(queue, job_id)) == 8


def test_the_database_shrinks(database: Database, queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "SPARE_PAGES", 10)
    monkeypatch.setattr(retention, "PAUSE_SECONDS", 0)
    for _ in range(10):
        add_job(database, queue, "succeeded", NOW - 2 * DAY, num_epochs=1000)
    add_job(database, queue, "succeeded", NOW, num_epochs=1)
    before = num_pages(database)
    Retention(database, Keep(jobs_days=1)).run(NOW)
    assert num_pages(database) < before / 10
    assert len(ids(queue)) == 1


def num_pages(database: Database) -> int:
    with database.read() as connection:
        return int(connection.exec_driver_sql("PRAGMA page_count").scalar_one())


def test_others_write_between_the_bites(database: Database, queue: JobQueue) -> None:
    """A sweep of many bites; another process's writes need not wait for its end."""
    for _ in range(6):
        add_job(database, queue, "succeeded", NOW - 2 * DAY, num_epochs=200)
    written = 0
    with closing(Database(database.engine.url.render_as_string())) as other:
        others = JobQueue(other, max_queued_jobs=10**6)
        for _ in Retention(database, Keep(jobs_days=1))._bites(NOW):
            others.submit({}, "m")
            written += 1
    assert written >= 6 * 2 + 1  # of each job 200 events, then two, so that 200 are left; then all jobs
    assert queue.counts()["succeeded"] == 0
    assert queue.counts()["queued"] == written


def test_it_can_be_stopped_and_goes_on_later(database: Database, queue: JobQueue) -> None:
    for _ in range(40):
        add_job(database, queue, "succeeded", NOW - 2 * DAY, num_epochs=1)
    sweeper = Retention(database, Keep(jobs_days=1))
    sweeper.stop()
    started = time.monotonic()
    sweeper.run(NOW)
    assert len(ids(queue)) == 40 - retention.JOBS_AT_ONCE
    assert time.monotonic() - started < 10
    Retention(database, Keep(jobs_days=1)).run(NOW)
    assert ids(queue) == set()
