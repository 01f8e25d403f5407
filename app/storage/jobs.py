"""Jobs and their events as rows: the SQL, and no rules. Every function works in the caller's transaction."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, case, delete, func, insert, select, update

from app.storage.database import events, jobs


@dataclass(frozen=True, slots=True)
class Job:
    """A row. Times are seconds since 1970; `queue_position` counts from 1 and is None for a job that is not queued."""

    number: int
    id: str
    state: str
    model: str
    version: str | None
    spec: dict[str, Any]
    idempotency_key: str | None
    request_digest: str | None
    progress: dict[str, Any] | None
    metrics: dict[str, Any] | None
    stop_reason: str | None
    warnings: list[str]
    error: dict[str, Any] | None
    attempts: int
    created_at: float
    started_at: float | None
    finished_at: float | None
    submitted_by: str | None
    request_id: str | None
    memory: dict[str, int] | None
    wait_reason: str | None
    queue_position: int | None


@dataclass(frozen=True, slots=True)
class Event:
    id: int
    job_id: str
    type: str
    data: dict[str, Any]
    created_at: float


class NewEvent(NamedTuple):
    job_id: str
    type: str
    data: dict[str, Any]
    created_at: float


_ahead = jobs.alias("ahead")
_position = select(func.count()).where(_ahead.c.state == "queued", _ahead.c.number <= jobs.c.number).scalar_subquery()
_SELECT = select(jobs, case((jobs.c.state == "queued", _position), else_=None).label("queue_position"))


def _job(row: Row[Any]) -> Job:
    return Job(**row._mapping)


# ---- jobs


def insert_job(connection: Connection, **columns: Any) -> None:
    connection.execute(insert(jobs).values(**columns))


def get_job(connection: Connection, job_id: str) -> Job | None:
    if "\0" in job_id:  # which PostgreSQL takes in no text
        return None
    row = connection.execute(_SELECT.where(jobs.c.id == job_id)).one_or_none()
    return None if row is None else _job(row)


def job_by_key(connection: Connection, idempotency_key: str) -> Job | None:
    row = connection.execute(_SELECT.where(jobs.c.idempotency_key == idempotency_key)).one_or_none()
    return None if row is None else _job(row)


def digests_in_specs(connection: Connection) -> set[str]:
    """Digests of all tables that any job's spec names."""
    parts = [jobs.c.spec[part]["digest"].as_string() for part in ("data", "validation")]
    return {digest for row in connection.execute(select(*parts).distinct()) for digest in row if digest}


def starts_in_specs(connection: Connection, states: Sequence[str]) -> set[tuple[str, str]]:
    """Models and versions that jobs in these states begin with."""
    start = jobs.c.spec["warm_start"]
    query = select(start["model"].as_string(), start["version"].as_string()).where(jobs.c.state.in_(states))
    return {(model, version) for model, version in connection.execute(query.distinct()) if model}


def jobs_in(connection: Connection, states: Sequence[str], limit: int | None = None) -> list[Job]:
    """Jobs in any of these states, in the order of submission."""
    query = _SELECT.where(jobs.c.state.in_(states)).order_by(jobs.c.number).limit(limit)
    return [_job(row) for row in connection.execute(query)]


def page_of_jobs(
    connection: Connection, *, state: str | None, model: str | None, before: int | None, limit: int
) -> list[Job]:
    """Newest first; `before` is the number of the last job of the page before."""
    query = _SELECT.order_by(jobs.c.number.desc()).limit(limit)
    if state is not None:
        query = query.where(jobs.c.state == state)
    if model is not None:
        query = query.where(jobs.c.model == model)
    if before is not None:
        query = query.where(jobs.c.number < before)
    return [_job(row) for row in connection.execute(query)]


def count_jobs(connection: Connection, states: Sequence[str], submitted_by: str | None = None) -> int:
    """Jobs in any of these states: all, or those of one key."""
    query = select(func.count()).where(jobs.c.state.in_(states))
    if submitted_by is not None:
        query = query.where(jobs.c.submitted_by == submitted_by)
    return connection.execute(query).scalar_one()


def count_by_state(connection: Connection) -> dict[str, int]:
    counts = connection.execute(select(jobs.c.state, func.count()).group_by(jobs.c.state))
    return {row[0]: row[1] for row in counts}


def update_job(connection: Connection, job_id: str, **columns: Any) -> None:
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(**columns))


def delete_job(connection: Connection, job_id: str) -> None:
    connection.execute(delete(events).where(events.c.job_id == job_id))
    connection.execute(delete(jobs).where(jobs.c.id == job_id))


class Ended(NamedTuple):
    """`finished_at` is None for a job that has not ended."""

    number: int
    id: str
    created_at: float
    finished_at: float | None


def ends_of_jobs(connection: Connection, *, after: int, limit: int) -> list[Ended]:
    """All jobs with a number above `after`, in the order of submission, and when they ended."""
    query = select(jobs.c.number, jobs.c.id, jobs.c.created_at, jobs.c.finished_at)
    rows = connection.execute(query.where(jobs.c.number > after).order_by(jobs.c.number).limit(limit))
    return [Ended(*row) for row in rows]


def jobs_before_newest(connection: Connection, states: Iterable[str], num_newest: int, limit: int) -> list[str]:
    """Ids of jobs in these states, the oldest first, without the newest ones."""
    inside = jobs.c.state.in_(list(states))
    newest = select(jobs.c.number).where(inside).order_by(jobs.c.number.desc()).limit(1).offset(num_newest)
    last = connection.execute(newest).scalar() or 0
    query = select(jobs.c.id).where(inside, jobs.c.number <= last).order_by(jobs.c.number).limit(limit)
    return list(connection.execute(query).scalars())


# ---- events


def insert_events(connection: Connection, new: Iterable[NewEvent]) -> None:
    rows = [
        {"job_id": event.job_id, "type": event.type, "data": event.data, "created_at": event.created_at}
        for event in new
    ]  # `_asdict` takes several times as long
    if rows:
        connection.execute(insert(events), rows)


def events_of_job(connection: Connection, job_id: str, *, after: int, limit: int) -> list[Event]:
    query = select(events).where(events.c.job_id == job_id, events.c.id > after).order_by(events.c.id).limit(limit)
    return [Event(**row._mapping) for row in connection.execute(query)]


def events_of_all(connection: Connection, *, after: int, limit: int) -> list[Event]:
    query = select(events).where(events.c.id > after).order_by(events.c.id).limit(limit)
    return [Event(**row._mapping) for row in connection.execute(query)]


def last_event_id(connection: Connection, job_id: str | None = None) -> int:
    """Of all events or of one job's; 0 where there is none."""
    query = select(func.max(events.c.id))
    if job_id is not None:
        query = query.where(events.c.job_id == job_id)
    return connection.execute(query).scalar() or 0


def metrics_of_job(connection: Connection, job_id: str) -> list[dict[str, Any]]:
    """The data of the job's `metrics` events, oldest first."""
    query = select(events.c.data).where(events.c.job_id == job_id, events.c.type == "metrics").order_by(events.c.id)
    return list(connection.execute(query).scalars())


def last_metrics_of_job(connection: Connection, job_id: str) -> dict[str, Any] | None:
    query = select(events.c.data).where(events.c.job_id == job_id, events.c.type == "metrics")
    return connection.execute(query.order_by(events.c.id.desc()).limit(1)).scalar_one_or_none()


def count_events(connection: Connection, job_id: str) -> int:
    return connection.execute(select(func.count()).where(events.c.job_id == job_id)).scalar_one()


def jobs_with_events(connection: Connection, *, after: int) -> list[str]:
    """Ids of all jobs with an event above `after`."""
    return list(connection.execute(select(events.c.job_id).where(events.c.id > after).distinct()).scalars())


def oldest_events(
    connection: Connection, job_id: str, *, type_: str | None = None, below: int | None = None, limit: int
) -> list[int]:
    """Ids of a job's oldest events: of all, of a type, of those under an id."""
    query = select(events.c.id).where(events.c.job_id == job_id).order_by(events.c.id).limit(limit)
    if type_ is not None:
        query = query.where(events.c.type == type_)
    if below is not None:
        query = query.where(events.c.id < below)
    return list(connection.execute(query).scalars())


def delete_events(connection: Connection, ids: Sequence[int]) -> None:
    connection.execute(delete(events).where(events.c.id.in_(ids)))
