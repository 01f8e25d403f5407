"""The state machine of a job. Every change of state is one short transaction that also writes the `state` event.

            ┌──────────────── resume ────────────────┐
            v                                        │
  submit > queued ──> running ──> pausing ──────> paused
            │            │           │               │
            │            ├──────> cancelling         │
            v            v           v               v
       cancelled    succeeded, failed, cancelled   cancelled

Requests (`cancel`, `pause`, `resume`) may come from any process. What a running job does next is decided by the
supervisor alone, through `claim`, `record`, `reserve`, `count_death` and `finish`.
"""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from app.errors import Conflict, InvalidInput, JobNotFound, Overloaded
from app.storage import jobs as rows
from app.storage.database import ChangeWatch, Database
from app.storage.jobs import Event, Job, NewEvent

State = Literal["queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled"]
TRANSITIONS: dict[str, frozenset[str]] = {
    "queued": frozenset({"running", "paused", "cancelled"}),
    "running": frozenset({"pausing", "cancelling", "succeeded", "failed"}),
    "pausing": frozenset({"paused", "cancelling", "succeeded", "failed"}),
    "paused": frozenset({"queued", "cancelled"}),
    "cancelling": frozenset({"cancelled", "succeeded"}),  # succeeded: its version had its place already
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
TERMINAL = frozenset(state for state, following in TRANSITIONS.items() if not following)
ACTIVE = ("running", "pausing", "cancelling")
WAITING = ("queued", "paused")  # which a resumed job is again, whatever the queue holds by then


@dataclass
class Batch:
    """What one job's worker has told since the last `record`: events in order, and the latest progress."""

    events: list[NewEvent] = field(default_factory=list)
    progress: dict[str, Any] | None = None


Told = Mapping[str, Batch]
"""What workers have told, by job."""
NOTHING: Told = {}
WhyWait = Callable[[Job, Sequence[Job]], str | None]
"""Why a job can't start yet, beside those that were claimed just before it; None where it can."""


class JobQueue:
    """Jobs in the database, for threads and processes alike."""

    def __init__(self, database: Database, *, max_queued_jobs: int, max_queued_jobs_per_key: int | None = None) -> None:
        self._database = database
        self._max_queued_jobs = max_queued_jobs
        self._max_queued_jobs_per_key = max_queued_jobs_per_key or max_queued_jobs
        self._listeners: list[Callable[[], None]] = []

    # ---- being told

    def add_listener(self, listener: Callable[[], None]) -> None:
        """`listener` is called, in the writer's thread, after each change that this process has committed."""
        self._listeners.append(listener)

    def remove_listener(self, listener: Callable[[], None]) -> None:
        self._listeners.remove(listener)

    def _notify(self) -> None:
        for listener in tuple(self._listeners):
            listener()

    def watch(self) -> ChangeWatch:
        """A watch that sees what other processes commit, too."""
        return ChangeWatch(self._database)

    # ---- requests

    def submit(
        self,
        spec: dict[str, Any],
        model: str,
        *,
        idempotency_key: str | None = None,
        request_digest: str | None = None,
        submitted_by: str | None = None,
        request_id: str | None = None,
        warnings: Sequence[str] = (),
        memory: dict[str, int] | None = None,
    ) -> Job:
        """A new job, on disk once this returns; or the job of an earlier request with the same key and digest.

        Raises:
            InvalidInput: `idempotency_key_reused`, the key came with another request.
            Overloaded: `max_queued_jobs` are waiting, or as many of this key's as one key's may.
        """
        with self._database.write() as connection:
            known = idempotency_key is not None and rows.job_by_key(connection, idempotency_key)
            if known:
                return _same_request(known, request_digest)
            self._check_room(connection, submitted_by)
            job_id, now = _new_id(), time.time()
            rows.insert_job(
                connection, id=job_id, state="queued", model=model, spec=spec, warnings=list(warnings), attempts=0,
                idempotency_key=idempotency_key, request_digest=request_digest, created_at=now,
                submitted_by=submitted_by, request_id=request_id, memory=memory,
            )  # fmt: skip
            rows.insert_events(connection, [NewEvent(job_id, "state", {"state": "queued"}, now)])
            job = _get(connection, job_id)
        self._notify()
        return job

    def submitted(self, idempotency_key: str, request_digest: str) -> Job | None:
        """The job of an earlier request with this key.

        Raises:
            InvalidInput: as `submit` does.
        """
        with self._database.read() as connection:
            known = rows.job_by_key(connection, idempotency_key)
        return known and _same_request(known, request_digest)

    def _check_room(self, connection: Any, submitted_by: str | None) -> None:
        num_queued = rows.count_jobs(connection, ["queued"])
        if num_queued >= self._max_queued_jobs:
            raise Overloaded(
                f"{num_queued} jobs are waiting, the most that are taken; try again", retry_after_seconds=5
            )
        own = rows.count_jobs(connection, WAITING, submitted_by) if submitted_by is not None else 0
        if own >= self._max_queued_jobs_per_key:
            raise Overloaded(f"{own} jobs of this key are waiting, its most; try again", retry_after_seconds=5)

    def cancel(self, job_id: str) -> Job:
        """At once where the job is not running.

        Raises:
            JobNotFound, Conflict
        """
        return self._request(job_id, "cancelled", "cancelling", "be cancelled")

    def pause(self, job_id: str) -> Job:
        """At once where the job is queued.

        Raises:
            JobNotFound, Conflict
        """
        return self._request(job_id, "paused", "pausing", "be paused")

    def resume(self, job_id: str) -> Job:
        """Back to its place in the queue.

        Raises:
            JobNotFound, Conflict
        """
        return self._request(job_id, "queued", "queued", "be resumed")

    def _request(self, job_id: str, end: State, way: State, verb: str) -> Job:
        """Go to `end` where the state allows that, else to `way`; asking twice is as asking once."""
        with self._database.write() as connection:
            job = _get(connection, job_id)
            if job.state == way != end:
                return job
            to = end if end in TRANSITIONS[job.state] else way
            if to not in TRANSITIONS[job.state]:
                raise Conflict(f"job {job_id} is {job.state} and can't {verb}", code="job_state_conflict")
            job = _move(connection, job, to)
        self._notify()
        return job

    def delete(self, job_id: str) -> None:
        """Forget a finished job and its events; its version stays.

        Raises:
            JobNotFound
            Conflict: it has not finished.
        """
        with self._database.write() as connection:
            job = _get(connection, job_id)
            if job.state not in TERMINAL:
                raise Conflict(
                    f"job {job_id} is {job.state}; only a finished job can be deleted: cancel it first",
                    code="job_state_conflict",
                )
            rows.delete_job(connection, job_id)

    # ---- reading

    def get(self, job_id: str) -> Job:
        """Raises JobNotFound."""
        with self._database.read() as connection:
            return _get(connection, job_id)

    def page(
        self, *, state: str | None = None, model: str | None = None, limit: int = 50, after: str | None = None
    ) -> tuple[list[Job], str | None]:
        """Jobs, newest first, and the cursor of the next page (None where this is the last)."""
        before = _cursor(after)
        with self._database.read() as connection:
            found = rows.page_of_jobs(connection, state=state, model=model, before=before, limit=limit + 1)
        return found[:limit], str(found[limit - 1].number) if len(found) > limit else None

    def counts(self) -> dict[str, int]:
        """Number of jobs in each state, zeros included."""
        with self._database.read() as connection:
            return dict.fromkeys(TRANSITIONS, 0) | rows.count_by_state(connection)

    def digests_in_use(self) -> set[str]:
        """Digests of all jobs' tables; a finished job's too, as it can be run again from its spec."""
        with self._database.read() as connection:
            return rows.digests_in_specs(connection)

    def versions_in_use(self) -> set[tuple[str, str]]:
        """Models and versions that jobs which have not finished begin with."""
        with self._database.read() as connection:
            return rows.starts_in_specs(connection, [*WAITING, *ACTIVE])

    def events(self, job_id: str, *, after: int = 0, limit: int = 200) -> list[Event]:
        """A job's events whose id is above `after`, in order. Raises JobNotFound."""
        with self._database.read() as connection:
            found = rows.events_of_job(connection, job_id, after=after, limit=limit)
            if not found:
                _get(connection, job_id)
        return found

    def events_of_all(self, *, after: int, limit: int) -> list[Event]:
        """Events of all jobs whose id is above `after`, in order."""
        with self._database.read() as connection:
            return rows.events_of_all(connection, after=after, limit=limit)

    def last_event_id(self) -> int:
        with self._database.read() as connection:
            return rows.last_event_id(connection)

    def history(self, job_id: str) -> list[dict[str, Any]]:
        """The metrics of each epoch so far. Raises JobNotFound."""
        with self._database.read() as connection:
            _get(connection, job_id)
            return rows.metrics_of_job(connection, job_id)

    # ---- the supervisor's part (what a power failure undoes of it, the next supervisor does again)

    def active(self) -> list[Job]:
        """Jobs that are running, pausing or cancelling, in the order of submission."""
        with self._database.read() as connection:
            return rows.jobs_in(connection, ACTIVE)

    def claim(self, limit: int, why_wait: WhyWait = lambda job, claimed: None) -> list[Job]:
        """Up to `limit` queued jobs, first come first, which are `running` from now on.

        The first that has to wait holds back all behind it, which would else be before it for ever.
        """
        claimed: list[Job] = []
        with self._database.read() as connection:
            first = rows.jobs_in(connection, ["queued"], 1)
        if not first or ((reason := why_wait(first[0], claimed)) and reason == first[0].wait_reason):
            return claimed
        with self._database.write(durable=False) as connection:
            for job in rows.jobs_in(connection, ["queued"], limit):
                if reason := why_wait(job, claimed):
                    _hold(connection, job, reason)
                    break
                claimed.append(_move(connection, job, "running", started_at=job.started_at or _now(job)))
        self._notify()
        return claimed

    def hold(self, job: Job, reason: str | None) -> None:
        """Note why an active job has to wait for its worker, or that it does not any more."""
        if reason != job.wait_reason:
            with self._database.write(durable=False) as connection:
                _hold(connection, _get(connection, job.id), reason)
            self._notify()

    def last_epoch(self, job_id: str) -> int:
        """The last epoch whose metrics are recorded, 0 before the first."""
        with self._database.read() as connection:
            metrics = rows.last_metrics_of_job(connection, job_id)
        return metrics["epoch"] if metrics else 0

    def record(self, told: Told) -> None:
        """Write what workers have told, in one transaction."""
        with self._database.write(durable=False) as connection:
            _record(connection, told)
        self._notify()

    def reserve(
        self, job_id: str, version: str, metrics: dict[str, Any], stop_reason: str | None, told: Told = NOTHING
    ) -> bool:
        """Note which version a successful run becomes, before it is published; False if it was cancelled meanwhile."""
        with self._database.write() as connection:
            _record(connection, told)
            if _get(connection, job_id).state == "cancelling":
                return False
            rows.update_job(connection, job_id, version=version, metrics=metrics, stop_reason=stop_reason)
        return True

    def count_death(self, job_id: str, *, progressed: bool, told: Told = NOTHING) -> int:
        """Note that a job's worker died; how many did in a row, counted anew where this one had got further."""
        with self._database.write(durable=False) as connection:
            _record(connection, told)
            attempts = 1 if progressed else _get(connection, job_id).attempts + 1
            rows.update_job(connection, job_id, attempts=attempts)
        self._notify()
        return attempts

    def finish(self, job_id: str, to: State, *, error: dict[str, Any] | None = None, told: Told = NOTHING) -> Job:
        """The end of a run: a terminal state or `paused`; `cancelled` where that was asked and no version is out."""
        with self._database.write(durable=False) as connection:
            _record(connection, told)
            job = _get(connection, job_id)
            if job.state == "cancelling" and to != "succeeded":
                to, error = "cancelled", None
            version = job.version if to == "succeeded" else None  # one that was reserved, and is not there
            job = _move(connection, job, to, error=error, version=version)
        self._notify()
        return job


def _move(connection: Any, job: Job, to: str, **columns: Any) -> Job:
    """Change the state, which the caller has read in the same transaction, and write the event."""
    assert to in TRANSITIONS[job.state], f"{job.state} -> {to}"
    now = _now(job)
    if to in TERMINAL:
        columns["finished_at"] = now
    rows.update_job(connection, job.id, state=to, wait_reason=None, **columns)
    moved = _get(connection, job.id)
    facts = {"version": moved.version, "metrics": moved.metrics, "stop_reason": moved.stop_reason, "error": moved.error}
    data = {"state": to} | ({key: fact for key, fact in facts.items() if fact is not None} if to in TERMINAL else {})
    rows.insert_events(connection, [NewEvent(job.id, "state", data, now)])
    return moved


def _hold(connection: Any, job: Job, reason: str | None) -> None:
    if reason == job.wait_reason:
        return
    rows.update_job(connection, job.id, wait_reason=reason)
    if reason is not None:
        data = {"state": job.state, "wait_reason": reason}
        rows.insert_events(connection, [NewEvent(job.id, "state", data, _now(job))])


def _now(job: Job) -> float:
    """Not before what has happened to the job, though the clock be set back."""
    return max(time.time(), job.created_at, job.started_at or 0.0)


def _record(connection: Any, told: Told) -> None:
    rows.insert_events(connection, [event for batch in told.values() for event in batch.events])
    for job_id, batch in told.items():
        if batch.progress is not None:
            rows.update_job(connection, job_id, progress=batch.progress)
        warnings = [event.data["detail"] for event in batch.events if event.type == "warning"]
        if warnings:
            rows.update_job(connection, job_id, warnings=[*_get(connection, job_id).warnings, *warnings])


def _get(connection: Any, job_id: str) -> Job:
    job = rows.get_job(connection, job_id)
    if job is None:
        raise JobNotFound(f"there is no job {job_id!r}")
    return job


def _same_request(job: Job, request_digest: str | None) -> Job:
    if job.request_digest != request_digest:
        raise InvalidInput(
            f"the Idempotency-Key {job.idempotency_key!r} was sent before, with another body (job {job.id}); "
            "use a new key for a new request",
            code="idempotency_key_reused",
        )
    return job


def _cursor(after: str | None) -> int | None:
    if after is None:
        return None
    if not (after.isascii() and after.isdigit() and len(after) < 19):
        raise InvalidInput(f"{after!r} is not a cursor; give `next` of the page before", code="invalid_cursor")
    return int(after)


def _new_id() -> str:
    """32 hex digits whose order is that of time, as in UUIDv7: 48 bits of milliseconds, 80 random ones."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"
