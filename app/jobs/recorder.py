"""From what workers say to rows: each epoch once, progress thinned out, and many events in one transaction."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from app.jobs.epoch_times import EpochTimes
from app.jobs.queue import Batch, JobQueue, Told
from app.storage.jobs import Job, NewEvent

PROGRESS_SECONDS = 0.2  # between two progress events of a job
FLUSH_SECONDS = 0.1


@dataclass
class Story:
    """What is known of a job, so as not to tell it again. `progressed`: its run got further than any before."""

    model: str
    last_epoch: int
    last_step: int
    warned: set[str]
    steps_at: int = 0  # steps and seconds of the fit at the end of the epoch before
    seconds_at: float = 0.0
    progressed: bool = False
    shown_at: float = 0.0


class Recorder:
    def __init__(self, queue: JobQueue, times: EpochTimes) -> None:
        self._queue, self._times = queue, times
        self._stories: dict[str, Story] = {}
        self._batches: defaultdict[str, Batch] = defaultdict(Batch)
        self._flushed_at = 0.0

    def begin(self, job: Job) -> None:
        """A run of this job starts, perhaps not the first."""
        waiting = self._batches[job.id].events if job.id in self._batches else []  # while the database fails
        epochs = [event.data["epoch"] for event in waiting if event.type == "metrics"]
        warned = [event.data["detail"] for event in waiting if event.type == "warning"]
        last_epoch = max([self._queue.last_epoch(job.id), *epochs])
        step = (job.progress or {}).get("step", 0)
        self._stories[job.id] = Story(job.model, last_epoch, step, {*job.warnings, *warned})

    def progressed(self, job_id: str) -> bool:
        return self._stories[job_id].progressed

    def end(self, job_id: str) -> None:
        self._stories.pop(job_id, None)

    def add(self, job_id: str, event: str, data: dict[str, Any]) -> None:
        """Progress, or a warning."""
        story, batch = self._stories[job_id], self._batches[job_id]
        if event == "progress":
            batch.progress = data
            if data["step"] > story.last_step:
                story.last_step, story.progressed = data["step"], True
            if time.monotonic() < story.shown_at + PROGRESS_SECONDS:
                return
            story.shown_at = time.monotonic()
        elif data["detail"] in story.warned:
            return
        else:
            story.warned.add(data["detail"])
        batch.events.append(NewEvent(job_id, event, data, time.time()))

    def add_epochs(self, job_id: str, epochs: Sequence[dict[str, Any]]) -> None:
        """The metrics of epochs that have ended; a run that was resumed repeats what is recorded, number for number."""
        story, batch, now = self._stories[job_id], self._batches[job_id], time.time()
        num_steps, seconds = 0, list[float]()
        for metrics in epochs:
            took = self._since_last_epoch(story, metrics)
            if metrics["epoch"] <= story.last_epoch:
                continue
            num_steps += took[0]
            seconds.append(took[1])
            story.last_epoch, story.progressed = metrics["epoch"], True
            batch.events.append(NewEvent(job_id, "metrics", metrics, now))
        self._times.add(story.model, num_steps, seconds)

    @staticmethod
    def _since_last_epoch(story: Story, data: dict[str, Any]) -> tuple[int, float]:
        """Steps and seconds of an epoch, from those of its fit, of which a cross-validation has several."""
        steps, seconds = data.get("step", 0), data.get("elapsed_seconds", 0.0)
        if steps <= story.steps_at:  # another fit
            story.steps_at, story.seconds_at = 0, 0.0
        took = steps - story.steps_at, max(0.0, seconds - story.seconds_at)
        story.steps_at, story.seconds_at = steps, seconds
        return took

    def warn(self, job_id: str, code: str, detail: str) -> None:
        """A warning of the supervisor's own, told each time."""
        event = NewEvent(job_id, "warning", {"code": code, "detail": detail}, time.time())
        self._batches[job_id].events.append(event)

    @property
    def due_seconds(self) -> float | None:
        """Until the next `flush` is due; None while there is nothing to write."""
        return max(0.0, self._flushed_at + FLUSH_SECONDS - time.monotonic()) if self._batches else None

    @contextmanager
    def pending(self) -> Iterator[Told]:
        """Everything, for the caller to write; what could not be written stays for the next time."""
        yield self._batches
        self._batches.clear()
        self._flushed_at = time.monotonic()

    def flush(self) -> None:
        """Write everything."""
        if self._batches:
            with self.pending() as told:
                self._queue.record(told)
