"""Workers that are given another job, and when they are not."""

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.jobs import fleet as fleet_module
from app.jobs import reconciler as reconciler_module
from app.jobs.queue import JobQueue
from app.jobs.worker import STAYING_BYTES
from scripts.processes import is_alive
from tests.unit.jobs.conftest import Gate
from tests.unit.jobs.test_supervisor import Start, ended, forkserver_of, in_state, starts, states
from tests.waiting import until


def worker_of(queue: JobQueue, tmp_path: Path, spec: dict[str, Any] | None = None, state: str = "succeeded") -> int:
    """Who did a job."""
    job = ended(queue, queue.submit(spec or {}, "m"))
    assert (job.state, job.warnings) == (state, [])
    ((pid, _),) = starts(tmp_path, job)
    return pid


def worker_and_server_of(queue: JobQueue, gate: Gate, tmp_path: Path) -> tuple[int, int]:
    """Who did a job, and who had forked it, seen while it ran."""
    gate.open(0)
    job = queue.submit({"gate": str(gate.path)}, "m")
    ((pid, _),) = until(lambda: starts(tmp_path, job))
    server = forkserver_of(pid)
    gate.open(1)
    assert ended(queue, job).state == "succeeded"
    return pid, server


def num_files(pid: int) -> int:
    """That a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_a_worker_does_one_job_after_the_other(queue: JobQueue, start: Start, tmp_path: Path) -> None:
    start()
    first = worker_of(queue, tmp_path)
    held = num_files(first)
    assert {worker_of(queue, tmp_path, {"epochs": 3}) for _ in range(5)} == {first}
    assert num_files(first) == held


def test_a_worker_that_waits_for_too_long_is_let_go(
    queue: JobQueue, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "IDLE_SECONDS", 0.1)
    start()
    first = worker_of(queue, tmp_path)
    until(lambda: not is_alive(first))
    assert worker_of(queue, tmp_path) != first


def test_a_fork_server_that_lets_nobody_go_is_ended(
    queue: JobQueue, start: Start, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "IDLE_SECONDS", 0.1)
    monkeypatch.setattr(fleet_module, "ANSWER_SECONDS", 0.1)
    start()
    first, stopped = worker_and_server_of(queue, gate, tmp_path)
    os.kill(stopped, signal.SIGSTOP)
    until(lambda: not is_alive(first))
    assert worker_and_server_of(queue, gate, tmp_path)[1] != stopped


def test_a_fork_server_is_not_blamed_for_time_in_which_nobody_listened(
    queue: JobQueue, start: Start, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a container is paused just then: who let the worker go is awake before who ends it."""
    monkeypatch.setattr(fleet_module, "IDLE_SECONDS", 0.1)
    monkeypatch.setattr(fleet_module, "ANSWER_SECONDS", 2.0)
    monkeypatch.setattr(reconciler_module, "DEAF_SECONDS", 0.1)
    let_go, end_the_stuck = fleet_module.Fleet._let_go, reconciler_module.Reconciler._end_the_stuck
    paused, goes_on, looked = threading.Event(), threading.Event(), threading.Event()

    def let_go_and_pause(fleet: fleet_module.Fleet, worker: fleet_module.Worker) -> None:
        assert worker.pid is not None
        os.kill(forkserver_of(worker.pid), signal.SIGSTOP)
        let_go(fleet, worker)
        paused.set()
        goes_on.wait(20)

    def end_the_stuck_and_say_so(reconciler: reconciler_module.Reconciler) -> None:
        end_the_stuck(reconciler)
        if goes_on.is_set():
            looked.set()

    monkeypatch.setattr(reconciler_module.Reconciler, "_end_the_stuck", end_the_stuck_and_say_so)
    monkeypatch.setattr(fleet_module.Fleet, "_let_go", let_go_and_pause)
    start()
    first, server = worker_and_server_of(queue, gate, tmp_path)
    assert paused.wait(20)
    end = time.monotonic() + 3
    until(lambda: time.monotonic() > end)
    goes_on.set()
    assert looked.wait(20)
    os.kill(server, signal.SIGCONT)
    until(lambda: not is_alive(first))
    monkeypatch.setattr(fleet_module.Fleet, "_let_go", let_go)
    assert worker_and_server_of(queue, gate, tmp_path)[1] == server


def test_jobs_at_the_same_time_have_workers_of_their_own(
    queue: JobQueue, start: Start, tmp_path: Path, gate: Gate
) -> None:
    start(max_running_jobs=2)
    first = worker_of(queue, tmp_path)
    jobs = [queue.submit({"gate": str(gate.path)}, "m") for _ in range(2)]
    pids = [until(partial(starts, tmp_path, job))[0][0] for job in jobs]
    assert first in pids
    assert len(set(pids)) == 2
    gate.open(1)
    assert {ended(queue, job).state for job in jobs} == {"succeeded"}
    assert worker_of(queue, tmp_path) in pids


@pytest.mark.parametrize(
    ("spec", "state"),
    [
        ({"fail_with": "memory"}, "failed"),
        ({"keeps": STAYING_BYTES + 2**20}, "succeeded"),
        ({"device": "cuda:0"}, "succeeded"),
        ({"forks": True}, "succeeded"),
    ],
)
def test_what_a_run_may_have_left_behind_ends_with_its_process(
    queue: JobQueue, start: Start, tmp_path: Path, spec: dict[str, Any], state: str
) -> None:
    start()
    last = worker_of(queue, tmp_path, spec, state)
    assert worker_of(queue, tmp_path) != last
    assert not is_alive(last)


def test_a_paused_job_goes_on_in_a_worker_that_has_stayed(
    queue: JobQueue, start: Start, gate: Gate, tmp_path: Path
) -> None:
    start()
    job = queue.submit({"epochs": 2, "gate": str(gate.path)}, "m")
    gate.open(1)
    until(lambda: len(queue.history(job.id)) == 1)
    queue.pause(job.id)
    in_state(queue, job, "paused")
    gate.open(2)
    queue.resume(job.id)
    assert ended(queue, job).state == "succeeded"
    (first, _), (second, epoch) = starts(tmp_path, job)
    assert (second, epoch) == (first, 1)


def test_a_cancel_that_comes_too_late_is_not_the_next_jobs(
    queue: JobQueue, start: Start, gate: Gate, tmp_path: Path
) -> None:
    start()
    late = queue.submit({"gate": str(gate.path), "deaf": True}, "m")
    until(lambda: starts(tmp_path, late))
    queue.cancel(late.id)
    in_state(queue, late, "cancelling")
    gate.open(1)
    assert ended(queue, late).state == "cancelled"
    assert worker_of(queue, tmp_path) == starts(tmp_path, late)[0][0]


def test_a_worker_that_is_to_be_killed_gets_no_other_job(
    queue: JobQueue, start: Start, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run ends well after all, before the fork server comes to it."""
    monkeypatch.setattr(reconciler_module, "CANCEL_SECONDS", 0.0)
    killed, kill = threading.Event(), fleet_module.Fleet.kill

    def kill_and_say_so(self: fleet_module.Fleet, run: fleet_module.Run) -> None:
        kill(self, run)
        killed.set()

    monkeypatch.setattr(fleet_module.Fleet, "kill", kill_and_say_so)
    start(max_running_jobs=1)
    late = queue.submit({"gate": str(gate.path), "deaf": True}, "m")
    ((worker, _),) = until(lambda: starts(tmp_path, late))
    following = queue.submit({"epochs": 2, "gate": str(gate.path)}, "m")
    os.kill(forkserver_of(worker), signal.SIGSTOP)
    queue.cancel(late.id)
    assert killed.wait(10)
    gate.open(1)
    assert ended(queue, late).state == "cancelled"
    os.kill(forkserver_of(worker), signal.SIGCONT)
    until(lambda: not is_alive(worker))
    gate.open(2)
    job = ended(queue, following)
    assert (job.state, job.warnings) == ("succeeded", [])


def test_a_waiting_worker_that_is_killed_is_no_loss(queue: JobQueue, start: Start, tmp_path: Path) -> None:
    start()
    first = worker_of(queue, tmp_path)
    os.kill(first, signal.SIGKILL)
    until(lambda: not is_alive(first))
    assert worker_of(queue, tmp_path) != first


def test_a_worker_that_waits_dies_with_the_fork_server(queue: JobQueue, start: Start, tmp_path: Path) -> None:
    start()
    first = worker_of(queue, tmp_path)
    os.kill(forkserver_of(first), signal.SIGKILL)
    until(lambda: not is_alive(first))
    job = ended(queue, queue.submit({}, "m"))
    assert states(queue, job) == ["queued", "running", "succeeded"]


def test_an_order_without_room_in_the_channel_goes_to_another_worker(
    queue: JobQueue, start: Start, tmp_path: Path
) -> None:
    start()
    first = worker_of(queue, tmp_path)
    os.kill(first, signal.SIGSTOP)
    assert worker_of(queue, tmp_path, {"text": "x" * 2**22}) != first
    until(lambda: not is_alive(first))


def test_the_end_of_a_service_is_that_of_a_worker_that_waits(queue: JobQueue, start: Start, tmp_path: Path) -> None:
    supervisor = start()
    first = worker_of(queue, tmp_path)
    supervisor.stop()
    until(lambda: not is_alive(first))
