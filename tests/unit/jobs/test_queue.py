"""The state machine: every request from every state, and what many do at once."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.errors import Conflict, InvalidInput, JobNotFound, Overloaded
from app.jobs.queue import ACTIVE, TERMINAL, TRANSITIONS, Batch, JobQueue
from app.storage import jobs as rows
from app.storage.database import Database
from app.storage.jobs import Job, NewEvent


def job_in(queue: JobQueue, database: Database, state: str) -> Job:
    job = queue.submit({}, "m")
    with database.write() as connection:
        rows.update_job(connection, job.id, state=state)
    return queue.get(job.id)


REQUESTS = {  # from each state: what cancel, pause and resume lead to; None is a conflict
    "queued": ("cancelled", "paused", None),
    "running": ("cancelling", "pausing", None),
    "pausing": ("cancelling", "pausing", None),
    "paused": ("cancelled", None, "queued"),
    "cancelling": ("cancelling", None, None),
    "succeeded": (None, None, None),
    "failed": (None, None, None),
    "cancelled": (None, None, None),
}


@pytest.mark.parametrize("request_number", range(3))
@pytest.mark.parametrize("state", TRANSITIONS)
def test_requests(queue: JobQueue, database: Database, state: str, request_number: int) -> None:
    request = (queue.cancel, queue.pause, queue.resume)[request_number]
    job, to = job_in(queue, database, state), REQUESTS[state][request_number]
    if to is None:
        with pytest.raises(Conflict, match=f"is {state} and can't"):
            request(job.id)
        assert queue.get(job.id).state == state
    else:
        assert request(job.id).state == to
        assert (queue.get(job.id).finished_at is not None) == (to in TERMINAL)


def test_every_change_of_state_is_an_event(queue: JobQueue) -> None:
    job = queue.submit({}, "m")
    queue.pause(job.id)
    queue.resume(job.id)
    queue.claim(1)
    queue.cancel(job.id)
    queue.cancel(job.id)
    queue.finish(job.id, "failed", error={"code": "x", "detail": "y"})
    told = [event.data["state"] for event in queue.events(job.id)]
    assert told == ["queued", "paused", "queued", "running", "cancelling", "cancelled"]
    assert queue.get(job.id).error is None


STEPS = ("cancel", "pause", "resume", "claim", "paused", "succeeded", "failed")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(STEPS), max_size=12))
def test_whatever_is_asked_the_events_are_a_walk_through_the_table(queue: JobQueue, steps: list[str]) -> None:
    job = queue.submit({}, "m")
    for step in steps:
        if step in ("cancel", "pause", "resume"):
            with suppress(Conflict):
                getattr(queue, step)(job.id)
        elif step == "claim":
            queue.claim(1000)
        elif step in TRANSITIONS[queue.get(job.id).state] and queue.get(job.id).state in ACTIVE:
            queue.finish(job.id, step)  # type: ignore[arg-type]
    walk = [event.data["state"] for event in queue.events(job.id)]
    assert walk[0] == "queued"
    assert all(after in TRANSITIONS[before] for before, after in pairwise(walk))
    assert walk[-1] == queue.get(job.id).state


def test_unknown_jobs_are_not_found(queue: JobQueue) -> None:
    for call in (queue.get, queue.cancel, queue.pause, queue.resume, queue.delete, queue.events, queue.history):
        with pytest.raises(JobNotFound, match="no job 'nowhere'"):
            call("nowhere")


def test_ids_are_in_the_order_of_time(queue: JobQueue) -> None:
    first, second = queue.submit({}, "m"), queue.submit({}, "m")
    assert first.id[:12] <= second.id[:12]
    assert len(first.id) == 32


def test_512_submits_at_once_are_all_taken_once(queue: JobQueue) -> None:
    with ThreadPoolExecutor(512) as threads:
        jobs = list(threads.map(lambda seed: queue.submit({"seed": seed}, "m"), range(512)))
    stored = {job.spec["seed"]: job.id for job in queue.claim(1000)}
    assert stored == {job.spec["seed"]: job.id for job in jobs}
    assert len(stored) == 512


class TestIdempotency:
    def test_the_same_request_is_the_same_job(self, queue: JobQueue) -> None:
        with ThreadPoolExecutor(16) as threads:
            call = lambda _: queue.submit({}, "m", idempotency_key="k", request_digest="d")  # noqa: E731
            assert len({job.id for job in threads.map(call, range(16))}) == 1
        assert queue.counts()["queued"] == 1

    def test_another_request_with_the_key_is_refused(self, queue: JobQueue) -> None:
        queue.submit({}, "m", idempotency_key="k", request_digest="d")
        with pytest.raises(InvalidInput) as raised:
            queue.submit({}, "m", idempotency_key="k", request_digest="e")
        assert raised.value.code == "idempotency_key_reused"

    def test_it_is_answered_when_the_queue_is_full(self, database: Database) -> None:
        queue = JobQueue(database, max_queued_jobs=1)
        job = queue.submit({}, "m", idempotency_key="k", request_digest="d")
        assert queue.submit({}, "m", idempotency_key="k", request_digest="d").id == job.id


def test_a_full_queue_says_so_and_when_to_come_back(database: Database) -> None:
    queue = JobQueue(database, max_queued_jobs=2)
    queue.submit({}, "m")
    queue.submit({}, "m")
    with pytest.raises(Overloaded, match="2 jobs are waiting") as raised:
        queue.submit({}, "m")
    assert raised.value.retry_after_seconds > 0
    queue.claim(1)
    queue.submit({}, "m")


def test_one_key_s_jobs_leave_room_for_others(database: Database) -> None:
    queue = JobQueue(database, max_queued_jobs=9, max_queued_jobs_per_key=2)
    jobs = [queue.submit({}, "m", submitted_by="a") for _ in range(2)]
    queue.pause(jobs[1].id)  # a paused one can come back at any moment, so it counts
    with pytest.raises(Overloaded, match="2 jobs of this key") as raised:
        queue.submit({}, "m", submitted_by="a")
    assert raised.value.retry_after_seconds > 0
    for other in ("b", "b", None, None, None):
        assert queue.submit({}, "m", submitted_by=other).submitted_by == other
    queue.claim(1)
    queue.submit({}, "m", submitted_by="a")


def test_jobs_are_claimed_in_order_and_a_resumed_one_has_its_old_place(queue: JobQueue) -> None:
    first, second, third = (queue.submit({}, "m") for _ in range(3))
    queue.pause(first.id)
    queue.resume(first.id)
    claimed = queue.claim(2)
    assert [job.id for job in claimed] == [first.id, second.id]
    assert all(job.state == "running" and job.started_at for job in claimed)
    assert queue.get(third.id).queue_position == 1
    assert [job.id for job in queue.claim(5)] == [third.id]
    assert queue.claim(5) == []


def test_who_has_to_wait_holds_back_all_behind_and_is_told_once(queue: JobQueue) -> None:
    jobs = [queue.submit({}, "m") for _ in range(3)]

    claimed = queue.claim(5, lambda job, before: "too large" if job.id == jobs[1].id else None)
    assert [job.id for job in claimed] == [jobs[0].id]
    assert [queue.get(job.id).wait_reason for job in jobs] == [None, "too large", None]
    last = queue.last_event_id()
    assert queue.claim(5, lambda job, before: "too large") == []
    assert queue.last_event_id() == last
    seen: list[int] = []
    claimed = queue.claim(5, lambda job, before: seen.append(len(before)))
    assert [job.id for job in claimed] == [jobs[1].id, jobs[2].id]
    assert seen == [0, 0, 1]
    assert queue.get(jobs[1].id).wait_reason is None


def test_pages_end_with_no_cursor(queue: JobQueue) -> None:
    jobs = [queue.submit({}, "m").id for _ in range(4)]
    page, following = queue.page(limit=2)
    rest, end = queue.page(limit=2, after=following)
    assert [job.id for job in page + rest] == jobs[::-1]
    assert end is None
    with pytest.raises(InvalidInput, match="not a cursor"):
        queue.page(after="x")


def test_only_a_finished_job_can_be_deleted(queue: JobQueue, database: Database) -> None:
    for state in TRANSITIONS:
        job = job_in(queue, database, state)
        if state in TERMINAL:
            queue.delete(job.id)
            with pytest.raises(JobNotFound):
                queue.get(job.id)
        else:
            with pytest.raises(Conflict, match=f"is {state}; only a finished job"):
                queue.delete(job.id)


def test_digests_in_use_are_those_of_all_jobs_until_they_are_deleted(queue: JobQueue) -> None:
    ended = queue.submit({"data": {"digest": "sha256:a"}, "validation": None}, "m")
    queue.submit({"data": {"digest": "sha256:b"}, "validation": {"digest": "sha256:c"}}, "m")
    queue.submit({"data": {"digest": "sha256:d"}, "validation": {"fraction": 0.1}}, "m")
    queue.cancel(ended.id)
    assert queue.digests_in_use() == {"sha256:a", "sha256:b", "sha256:c", "sha256:d"}
    queue.delete(ended.id)
    assert queue.digests_in_use() == {"sha256:b", "sha256:c", "sha256:d"}


def test_records_become_events_history_progress_and_warnings(queue: JobQueue) -> None:
    job = queue.submit({}, "m", warnings=["at first"])
    warning = NewEvent(job.id, "warning", {"detail": "later"}, 0.0)
    metrics = [NewEvent(job.id, "metrics", {"epoch": epoch, "train_loss": float("inf")}, 0.0) for epoch in (1, 2)]
    queue.record({job.id: Batch([*metrics, warning], {"epoch": 2})})
    assert queue.history(job.id) == [{"epoch": 1, "train_loss": None}, {"epoch": 2, "train_loss": None}]
    assert queue.last_epoch(job.id) == 2
    job = queue.get(job.id)
    assert job.progress == {"epoch": 2}
    assert job.warnings == ["at first", "later"]


def test_a_cancelled_job_gets_no_version_but_one_that_has_its_version_keeps_it(queue: JobQueue) -> None:
    early, late = queue.submit({}, "m"), queue.submit({}, "m")
    queue.claim(2)
    queue.cancel(early.id)
    assert not queue.reserve(early.id, "1", {}, None)
    assert queue.finish(early.id, "paused").state == "cancelled"
    assert queue.reserve(late.id, "1", {"val_loss": 0.5}, "patience")
    queue.cancel(late.id)
    done = queue.finish(late.id, "succeeded")
    assert (done.state, done.version) == ("succeeded", "1")
    last = queue.events(late.id)[-1].data
    assert last == {"state": "succeeded", "version": "1", "metrics": {"val_loss": 0.5}, "stop_reason": "patience"}


def test_a_reserved_version_that_was_not_published_is_no_version_of_the_job(queue: JobQueue) -> None:
    job = queue.submit({}, "m")
    queue.claim(1)
    queue.reserve(job.id, "1", {"loss": 0.5}, "max_epochs")
    failed = queue.finish(job.id, "failed", error={"code": "storage_full", "detail": "…"})
    assert failed.version is None
    assert "version" not in queue.events(job.id)[-1].data


def test_a_clock_that_goes_back_turns_no_order_round(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [2e9]
    monkeypatch.setattr("time.time", lambda: now[0])
    jobs = []
    for _ in range(4):
        jobs.append(queue.submit({}, "m"))
        now[0] -= 3600
    assert [job.id for job in queue.page()[0]] == [job.id for job in reversed(jobs)]
    assert [job.id for job in queue.claim(4)] == [job.id for job in jobs]
    for job in jobs:
        now[0] -= 3600
        done = queue.finish(job.id, "succeeded")
        assert done.started_at is not None
        assert done.finished_at is not None
        assert done.created_at <= done.started_at <= done.finished_at
        events = queue.events(job.id)
        assert [event.data["state"] for event in events] == ["queued", "running", "succeeded"]
        assert [event.created_at for event in events] == sorted(event.created_at for event in events)


def test_deaths_are_counted_in_a_row(queue: JobQueue) -> None:
    job = queue.submit({}, "m")
    counts = [queue.count_death(job.id, progressed=far) for far in (False, False, True, False)]
    assert counts == [1, 2, 1, 2]
    last_words = Batch([NewEvent(job.id, "warning", {"detail": "help"}, 0.0)], {"epoch": 3})
    queue.count_death(job.id, progressed=True, told={job.id: last_words})
    job = queue.get(job.id)
    assert (job.attempts, job.warnings, job.progress) == (1, ["help"], {"epoch": 3})
    assert queue.events(job.id)[-1].data == {"detail": "help"}


def test_listeners_are_told_after_the_commit(queue: JobQueue) -> None:
    seen: list[int] = []
    listener = lambda: seen.append(queue.counts()["queued"])  # noqa: E731
    queue.add_listener(listener)
    queue.submit({}, "m")
    queue.claim(1)
    queue.remove_listener(listener)
    queue.submit({}, "m")
    assert seen == [1, 0]


def test_active_and_terminal_states_are_apart() -> None:
    assert not TERMINAL & set(ACTIVE)
    assert set(TRANSITIONS) == TERMINAL | set(ACTIVE) | {"queued", "paused"}
