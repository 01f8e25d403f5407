"""Jobs beside each other take no more memory than there is: real jobs, on a machine as large as a test says."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.jobs import room
from app.jobs.queue import JobQueue
from app.jobs.room import Needs, why_wait
from app.jobs.supervisor import Supervisor
from app.jobs.taken import taken_bytes
from app.learning.memory import Memory
from app.storage.jobs import Job
from tests.unit.jobs.conftest import Gate
from tests.unit.jobs.test_supervisor import at_epoch, ended, in_state, starts
from tests.waiting import until

GIB = 2**30
Start = Callable[..., Supervisor]


@pytest.fixture(autouse=True)
def left(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The machine's memory that is left, in GiB."""
    found = [10]
    monkeypatch.setattr(room, "memory_left_bytes", lambda: found[0] * GIB)
    return found


def submit(queue: JobQueue, gate: Gate, gib: int, epochs: int = 2) -> Job:
    return queue.submit({"gate": str(gate.path), "epochs": epochs}, "m", memory={"host_bytes": gib * GIB})


def waiting(queue: JobQueue, job: Job) -> str:
    return until(lambda: queue.get(job.id).wait_reason or "")


def test_a_job_waits_until_its_memory_is_free_and_says_so(queue: JobQueue, start: Start, gate: Gate) -> None:
    start(max_running_jobs=4)
    jobs = [submit(queue, gate, gib) for gib in (6, 3, 5, 1)]
    reason = waiting(queue, jobs[2])
    assert reason == (
        "it takes about 5.0 GiB of memory, which this machine does not have left beside the 2 jobs that run"
    )
    found = [queue.get(job.id) for job in jobs]
    assert [job.state for job in found] == ["running", "running", "queued", "queued"]  # no small one overtakes
    assert [job.queue_position for job in found] == [None, None, 1, 2]
    assert queue.events(jobs[2].id)[-1].data == {"state": "queued", "wait_reason": reason}
    gate.open(2)
    assert [ended(queue, job).state for job in jobs] == ["succeeded"] * 4
    assert [queue.get(job.id).wait_reason for job in jobs] == [None] * 4
    began = [float(str(queue.get(job.id).started_at)) for job in jobs]
    assert began == sorted(began)


def test_a_job_that_nothing_runs_beside_starts_whatever_is_left(queue: JobQueue, start: Start, gate: Gate) -> None:
    gate.open(2)
    start(max_running_jobs=2)
    jobs = [submit(queue, gate, gib) for gib in (50, 60)]
    assert [ended(queue, job).state for job in jobs] == ["succeeded"] * 2


def test_a_waiting_job_is_cancelled_paused_and_resumed(queue: JobQueue, start: Start, gate: Gate) -> None:
    start(max_running_jobs=4)
    running, second, third = (submit(queue, gate, gib) for gib in (6, 6, 7))
    waiting(queue, second)
    assert queue.pause(second.id).wait_reason is None
    assert "7.0 GiB" in waiting(queue, third)
    assert queue.cancel(third.id).state == "cancelled"
    queue.resume(second.id)
    assert "6.0 GiB" in waiting(queue, second)
    gate.open(2)
    assert [ended(queue, job).state for job in (running, second)] == ["succeeded"] * 2


def test_waiting_goes_on_after_a_restart(queue: JobQueue, start: Start, gate: Gate) -> None:
    first = start(max_running_jobs=2)
    running, second = submit(queue, gate, 6), submit(queue, gate, 6)
    reason = waiting(queue, second)
    first.stop(grace_seconds=0)
    start(max_running_jobs=2)
    gate.open(1)
    at_epoch(queue, running, 1)
    assert (queue.get(second.id).state, queue.get(second.id).wait_reason) == ("queued", reason)
    gate.open(2)
    assert [ended(queue, job).state for job in (running, second)] == ["succeeded"] * 2


def test_a_job_whose_worker_died_waits_before_those_that_are_queued(
    queue: JobQueue, start: Start, gate: Gate, left: list[int], tmp_path: Path
) -> None:
    start(max_running_jobs=3)
    killed, beside = submit(queue, gate, 5), submit(queue, gate, 4)
    until(lambda: len(starts(tmp_path, killed)) == len(starts(tmp_path, beside)) == 1)
    left[0] = 8
    os.kill(starts(tmp_path, killed)[0][0], signal.SIGKILL)
    assert "5.0 GiB" in waiting(queue, killed)
    queued = submit(queue, gate, 1)
    left[0] = 9
    until(lambda: len(starts(tmp_path, killed)) == 2)
    assert queue.get(killed.id).wait_reason is None
    in_state(queue, queued, "queued")
    gate.open(2)
    assert [ended(queue, job).state for job in (killed, beside, queued)] == ["succeeded"] * 3


def test_what_a_job_has_taken_is_not_awaited_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "taken_bytes", lambda pid: 3 * GIB if pid else 0)
    monkeypatch.setattr(room, "memory_left_bytes", lambda: 7 * GIB)
    beside = Needs(Memory(5 * GIB), pid=1)
    assert why_wait(Needs(Memory(5 * GIB)), [beside]) is None
    assert why_wait(Needs(Memory(6 * GIB, shared_bytes=GIB)), [beside]) is None
    assert "6.0 GiB" in str(why_wait(Needs(Memory(6 * GIB)), [beside]))
    assert "5.0 GiB" in str(why_wait(Needs(Memory(5 * GIB)), [Needs(Memory(5 * GIB))]))


def test_memory_of_a_card_is_that_of_its_own_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        room.torch.cuda, "get_device_properties", lambda device: type("Card", (), {"total_memory": 10 * GIB})
    )
    job = Needs(Memory(0, 6 * GIB), "cuda:0")
    assert why_wait(job, [Needs(Memory(0, 6 * GIB), "cuda:1"), Needs(Memory(6 * GIB))]) is None
    assert "which cuda:0 does not have left beside the job that runs" in str(
        why_wait(job, [Needs(Memory(0, 6 * GIB), "cuda:0")])
    )


def test_taken_is_what_a_process_has_beyond_its_parent() -> None:
    code = """if True:
        import os, sys
        before = bytearray(os.urandom(2**25))
        if pid := os.fork():
            os.waitpid(pid, 0)
        else:
            mine = bytearray(os.urandom(2**26))
            print(os.getpid(), flush=True)
            sys.stdin.read()
    """
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        pid = int(process.stdout.readline())
        assert 2**26 <= taken_bytes(pid) < 2**26 + 2**24
        process.stdin.close()
        process.wait()
    assert taken_bytes(pid) is None
    assert Needs(Memory(GIB), pid=pid).outstanding_bytes == Needs(Memory(GIB)).outstanding_bytes == GIB
