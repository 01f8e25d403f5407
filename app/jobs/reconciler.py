"""Decides what becomes of each job: compares the database with the workers that are there, and hears what they say.

Nothing depends on what a predecessor or an earlier failure left half done.
"""

import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import structlog

from app.errors import Conflict, JobNotFound, StorageFailed
from app.jobs.epoch_times import EpochTimes
from app.jobs.fleet import Fleet, Run
from app.jobs.queue import TERMINAL, JobQueue, State
from app.jobs.recorder import Recorder
from app.jobs.room import needs_of, why_wait
from app.storage.jobs import Job

log = structlog.get_logger("gradserve.jobs")

POLL_SECONDS = 0.1  # how late a request from another process may be seen
TOGETHER_SECONDS = 0.002  # events that come in a stream are read together, not each at the price of a turn
RECONCILE_SECONDS = 1.0
SWEEP_SECONDS = 30.0  # for what is left of jobs that were cancelled while they were paused
CANCEL_SECONDS = 5.0  # from asking a worker to stop to ending it
EXIT_SECONDS = 10.0  # from a worker's last word to ending it
DEAF_SECONDS = 1.0  # a turn that took longer, as where the machine slept or the disk hung, is not the workers' silence
FORK_SECONDS = 5.0  # after the system started no process, before it is asked again
MAX_DEATHS = 3
REQUESTS = {"pausing": "pause", "cancelling": "cancel"}


class Versions(Protocol):
    """What the supervisor needs of the model store."""

    def next_version(self, name: str) -> str: ...
    def publish(self, job_id: str, name: str, version: str) -> None: ...
    def discard(self, job_id: str) -> None: ...


@dataclass(frozen=True)
class Rules:
    """`training` names the module whose `train` the workers run."""

    data_dir: Path
    models_dir: Path
    max_running_jobs: int
    checkpoint_interval_seconds: float
    worker_timeout_seconds: float
    max_rows_bytes: int = 2**33
    training: str = "app.jobs.training"


class Reconciler:
    """The decisions of a supervisor. An error anywhere may end a turn: the next one finds the same work again."""

    def __init__(
        self,
        queue: JobQueue,
        models: Versions,
        rules: Rules,
        fleet: Fleet,
        changed: Callable[[], bool],
        times: EpochTimes,
    ) -> None:
        self._queue = queue
        self._models = models
        self._rules = rules
        self._fleet = fleet
        self._changed = changed
        self._recorder = Recorder(queue, times)
        self._logs: dict[str, Any] = {}
        self._heard: deque[tuple[Run, dict[str, Any]]] = deque()
        self._reconcile_at = self._fork_at = 0.0
        self._listened_at = time.monotonic()
        self._ending = False
        self._holds = False  # a job that runs, but has lost its worker, waits for room before all that are queued

    def sweep(self) -> None:
        """Remove the working folders of jobs that have ended or are gone."""
        folder = self._rules.data_dir / "jobs"
        folder.mkdir(parents=True, exist_ok=True)
        for entry in folder.iterdir():
            if self._is_over(entry.name):
                self._remove_folders(entry.name)
        self._sweep_at = time.monotonic() + SWEEP_SECONDS

    def _is_over(self, job_id: str) -> bool:
        try:
            return self._queue.get(job_id).state in TERMINAL
        except JobNotFound:
            return True

    def turn(self) -> None:
        """Wait for something to happen, at most `POLL_SECONDS`, and deal with it."""
        if self._recorder.due_seconds == 0:
            self._recorder.flush()  # before hearing more: where it fails, workers wait and memory does not grow
        due = self._recorder.due_seconds
        if due is not None:
            time.sleep(min(due, TOGETHER_SECONDS))
        self._listen(POLL_SECONDS if due is None else min(due, POLL_SECONDS))
        if self._changed() or time.monotonic() >= self._reconcile_at:
            self._reconcile_at = time.monotonic() + RECONCILE_SECONDS
            self.reconcile()
        if time.monotonic() >= self._sweep_at:
            self.sweep()
        self._end_the_stuck()

    def wind_down(self, grace_seconds: float) -> None:
        """Ask every worker for a checkpoint; who has not ended when time is up is killed by the fleet's end."""
        self._ending = True
        deadline = time.monotonic() + grace_seconds
        for run in self._working():
            if run.told is None:
                self._fleet.tell(run, "pause")
        while self._working() and time.monotonic() < deadline:
            self._listen(min(POLL_SECONDS, grace_seconds))
        self._recorder.flush()

    # ---- the database against the workers

    def reconcile(self) -> None:
        workers = {run.job_id: run for run in self._working()}
        self._holds = False
        for job in self._queue.active():
            try:
                self._attend(job, workers.get(job.id))
            except StorageFailed:
                raise  # it fails for all jobs alike
            except Exception:  # noqa: BLE001 (whatever it is, it is this job's alone)
                _log_of(job).exception("a job could not be attended to; the others are, and it is tried again")
        self._fill()

    def _fill(self) -> None:
        """Start what waits, as far as there is room."""
        if self._num_free > 0 and not self._holds:
            for job in self._queue.claim(self._num_free, self._why_wait):
                self._start(job)

    def _why_wait(self, job: Job, claimed: Sequence[Job] = ()) -> str | None:
        running = [replace(run.needs, pid=run.pid) for run in self._fleet.runs.values()]
        return why_wait(needs_of(job), [*running, *map(needs_of, claimed)])

    def _attend(self, job: Job, run: Run | None) -> None:
        if run is None:
            self._go_on(job)
        elif job.state in REQUESTS and run.told != REQUESTS[job.state]:
            self._fleet.tell(run, REQUESTS[job.state])

    def _working(self) -> list[Run]:
        return [run for run in self._fleet.runs.values() if not run.done]

    @property
    def _num_free(self) -> int:
        """Room for so many more. A worker that has said how it ended has let go of its memory, and only exits."""
        if not self._fleet.ready or self._ending or time.monotonic() < self._fork_at:
            return 0
        return self._rules.max_running_jobs - len(self._working())

    def _go_on(self, job: Job) -> None:
        """What to do with an active job that has no worker."""
        if job.version is not None:
            self._publish(job)
        elif job.state in REQUESTS:
            self._finish(job.id, "cancelled" if job.state == "cancelling" else "paused")
        elif self._num_free > 0:
            reason = self._why_wait(job)
            self._queue.hold(job, reason)
            if reason is None:
                self._start(job)
            else:
                self._holds = True

    def _start(self, job: Job) -> None:
        self._recorder.begin(job)
        self._logs[job.id] = _log_of(job)
        self._logs[job.id].info("job starts", attempt=job.attempts + 1)
        order = {
            "job_id": job.id,
            "spec": job.spec,
            "data_dir": str(self._rules.data_dir),
            "models_dir": str(self._rules.models_dir),
            "checkpoint_interval_seconds": self._rules.checkpoint_interval_seconds,
            "max_rows_bytes": self._rules.max_rows_bytes,
        }
        self._fleet.start(job.id, needs_of(job), order)

    # ---- what workers say

    def _listen(self, seconds: float) -> None:
        """Where dealing with a message fails, what was heard after it waits for the next turn."""
        self._heard.extend(self._fleet.poll(seconds))
        while self._heard:
            self._hear(*self._heard.popleft())

    def _hear(self, run: Run, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind in ("progress", "warning"):
            self._recorder.add(run.job_id, kind, message["data"])
        elif kind == "metrics":
            self._recorder.add_epochs(run.job_id, message["data"])
        elif kind == "log":
            self._logs.get(run.job_id, log).error(message["message"], traceback=message["traceback"])
        elif kind in ("outcome", "failed"):
            run.done = True
            if message.get("stays"):
                self._fleet.keep(run)
            self._fill()  # first: while the next one starts, this one's version goes to the disk
            if kind == "outcome":
                self._conclude(run.job_id, message)
            else:
                self._finish(run.job_id, "failed", {"code": message["code"], "detail": message["detail"]})
        elif kind == "unforked":
            self._fork_at = time.monotonic() + FORK_SECONDS
            why = f"this machine starts no process for it ({message['reason']}), which is tried again"
            self._queue.hold(self._queue.get(run.job_id), why)
        elif kind == "exited":
            self._reconcile_at = 0.0  # there is room for another
            if not run.done and not self._ending:
                self._mourn(run, message["signal"], message["code"])

    def _conclude(self, job_id: str, outcome: dict[str, Any]) -> None:
        job = self._queue.get(job_id)
        if outcome["state"] == "succeeded":
            try:
                version = self._models.next_version(job.model)
            except OSError as error:
                self._fail_to_store(job_id, error)
                return
            with self._recorder.pending() as told:
                reserved = self._queue.reserve(job_id, version, outcome["metrics"], outcome["stop_reason"], told)
            if reserved:
                self._publish(self._queue.get(job_id))
            else:
                self._finish(job_id, "cancelled")
        elif job.state in REQUESTS:
            self._finish(job_id, "cancelled" if job.state == "cancelling" else "paused")
        # a job that nobody but this process's end has paused goes on from its checkpoint

    def _publish(self, job: Job) -> None:
        """Make a reserved version visible. Where somebody took its number meanwhile, it gets another."""
        assert job.version is not None
        try:
            self._models.publish(job.id, job.model, job.version)
        except Conflict:
            version = self._models.next_version(job.model)
            if not self._queue.reserve(job.id, version, job.metrics or {}, job.stop_reason):
                self._finish(job.id, "cancelled")
            self._reconcile_at = 0.0
        except OSError as error:
            self._store_later(job, error)
        else:
            self._finish(job.id, "succeeded")

    def _store_later(self, job: Job, error: OSError) -> None:
        """Where the disk is to blame, the next turns try again, until somebody cancels the job."""
        if (known := StorageFailed.of(error)) is None or job.state == "cancelling":
            self._fail_to_store(job.id, error)
        else:
            self._queue.hold(job, f"its version can't be stored yet, which is tried again: {known.detail}")

    def _fail_to_store(self, job_id: str, error: OSError) -> None:
        code = (StorageFailed.of(error) or StorageFailed).code
        self._finish(job_id, "failed", {"code": code, "detail": f"the trained version could not be stored: {error}"})

    def _finish(self, job_id: str, to: State, error: dict[str, Any] | None = None) -> None:
        with self._recorder.pending() as told:
            job = self._queue.finish(job_id, to, error=error, told=told)
        self._recorder.end(job_id)
        self._logs.pop(job_id, None)
        _log_of(job).info("job ended", state=job.state, **(error or {}))
        if job.state in TERMINAL:
            self._remove_folders(job_id)

    def _remove_folders(self, job_id: str) -> None:
        self._models.discard(job_id)
        shutil.rmtree(self._rules.data_dir / "jobs" / job_id, ignore_errors=True)

    # ---- death

    def _mourn(self, run: Run, by_signal: int | None, code: int | None) -> None:
        """A worker ended without an outcome: the next one goes on from its checkpoint, unless that keeps failing."""
        how = "with the fork server" if by_signal is None and code is None else _cause(run, by_signal, code)
        self._logs.get(run.job_id, log).warning("a worker died", pid=run.pid, how=how)
        if run.told == "cancel":
            return  # the next turn ends the job: nothing goes on
        self._recorder.warn(run.job_id, "worker_died", f"the worker {how}; the job goes on from its last checkpoint")
        if by_signal is None and code is None:
            return  # not the job's fault
        with self._recorder.pending() as told:
            progressed = self._recorder.progressed(run.job_id)
            deaths = self._queue.count_death(run.job_id, progressed=progressed, told=told)
        if deaths >= MAX_DEATHS:
            detail = f"the worker died {MAX_DEATHS} times in a row without getting any further; the last one {how}" + (
                "; perhaps the machine is out of memory: a smaller network or batch needs less"
                if by_signal == 9
                else ""
            )
            self._finish(run.job_id, "failed", {"code": "worker_died", "detail": detail})

    def _end_the_stuck(self) -> None:
        now = time.monotonic()
        deaf, self._listened_at = now - self._listened_at, now
        if deaf > DEAF_SECONDS:
            self._fleet.excuse(deaf - DEAF_SECONDS, now)
        for run in self._fleet.runs.values():
            silent = now - run.last_sign
            run.hung = run.hung or silent > self._rules.worker_timeout_seconds
            cancelled = run.told == "cancel" and now - run.told_at > CANCEL_SECONDS
            if run.hung or cancelled or (run.done and silent > EXIT_SECONDS):
                self._fleet.kill(run)
        self._fleet.end_hung_server()


def _log_of(job: Job) -> Any:
    """The log, with what names the job and the request that submitted it."""
    return log.bind(job_id=job.id, model=job.model, request_id=job.request_id)


def _cause(run: Run, by_signal: int | None, code: int | None) -> str:
    if run.hung:
        return "gave no sign of life and was ended"
    return f"was ended by signal {by_signal}" if by_signal is not None else f"ended with exit code {code}"
