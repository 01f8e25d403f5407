"""What is forgotten of finished jobs, a little at a time: nobody who writes waits for longer than a bite takes."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from app.jobs.queue import TERMINAL
from app.storage import jobs as rows
from app.storage.database import Database

EVENTS_AT_ONCE = 200
JOBS_AT_ONCE = 10  # each with fewer events than that
PAGES_AT_ONCE = 256
SPARE_PAGES = 1024  # of the database, which hold nothing and are left for what comes
PAUSE_SECONDS = 0.02  # in which others write
PAGE = 500
DAY_SECONDS = 86400.0

T = TypeVar("T")


@dataclass(frozen=True)
class Keep:
    """For how long, or how many of each; 0: for ever, all."""

    jobs_days: float = 0.0
    num_jobs: int = 0
    events_days: float = 0.0
    events_per_job: int = 0


class Retention:
    """For one process at a time; what it was doing when it ended, the next one goes on with."""

    def __init__(self, database: Database, keep: Keep) -> None:
        self._database, self._keep = database, keep
        self._stopping = threading.Event()
        self._seen = 0  # the last event whose job has been looked at

    def run(self, now: float) -> None:
        """Remove what is not kept any more at this time, and give its room back."""
        for _ in self._bites(now):
            if self._stopping.wait(PAUSE_SECONDS):
                return

    def stop(self) -> None:
        """End what runs after its next bite. From any thread."""
        self._stopping.set()

    def _bites(self, now: float) -> Iterator[None]:
        if self._keep.jobs_days:
            for found in self._ended_before(now - DAY_SECONDS * self._keep.jobs_days):
                yield from self._forget(found)
        if self._keep.num_jobs:
            while found := self._read(rows.jobs_before_newest, TERMINAL, self._keep.num_jobs, PAGE):
                yield from self._forget(found)
        if self._keep.events_days:
            for found in self._ended_before(now - DAY_SECONDS * self._keep.events_days):
                for job_id in found:
                    yield from self._remove_events(job_id, below=self._read(rows.last_event_id, job_id))
        if self._keep.events_per_job:
            yield from self._thin_out(self._keep.events_per_job)
        while self._database.give_back(PAGES_AT_ONCE, spare=SPARE_PAGES):
            yield

    def _ended_before(self, time: float) -> Iterator[list[str]]:
        """Ids of jobs, a page at a time. What was submitted later did not end before, so it need not look at all."""
        after = 0
        while page := self._read(rows.ends_of_jobs, after=after, limit=PAGE):
            yield [job.id for job in page if job.finished_at is not None and job.finished_at < time]
            if all(job.created_at >= time for job in page):
                return
            after = page[-1].number

    def _forget(self, job_ids: Sequence[str]) -> Iterator[None]:
        for start in range(0, len(job_ids), JOBS_AT_ONCE):
            some = job_ids[start : start + JOBS_AT_ONCE]
            for job_id in some:
                yield from self._remove_events(job_id, leave=EVENTS_AT_ONCE)
            with self._database.write(durable=False) as connection:
                for job_id in some:
                    rows.delete_job(connection, job_id)
            yield

    def _thin_out(self, most: int) -> Iterator[None]:
        """Of a job with more events the oldest progress goes, and once it has ended the oldest of all but the last."""
        newest = self._read(rows.last_event_id)
        for job_id in self._read(rows.jobs_with_events, after=self._seen):
            yield from self._remove_events(job_id, leave=most, type_="progress")
            job = self._read(rows.get_job, job_id)
            if job is not None and job.state in TERMINAL:
                yield from self._remove_events(job_id, leave=most)
        self._seen = newest

    def _remove_events(
        self, job_id: str, *, leave: int = 0, type_: str | None = None, below: int | None = None
    ) -> Iterator[None]:
        """The oldest of those that are meant, until so few of all the job's are left."""
        num_left = self._read(rows.count_events, job_id) if leave else 0
        while True:
            limit = min(EVENTS_AT_ONCE, num_left - leave) if leave else EVENTS_AT_ONCE
            ids = self._read(rows.oldest_events, job_id, type_=type_, below=below, limit=limit) if limit > 0 else []
            if not ids:
                return
            with self._database.write(durable=False) as connection:
                rows.delete_events(connection, ids)
            num_left -= len(ids)
            yield

    def _read(self, query: Callable[..., T], *arguments: Any, **named: Any) -> T:
        with self._database.read() as connection:
            return query(connection, *arguments, **named)
