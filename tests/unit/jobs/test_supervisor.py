"""Real jobs in real worker processes, with a stand-in for the training itself, and every process killed in turn."""

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from app.jobs import fleet as fleet_module
from app.jobs import reconciler as reconciler_module
from app.jobs import supervisor as supervisor_module
from app.jobs.queue import JobQueue
from app.jobs.supervisor import Supervisor
from app.storage.database import Database
from app.storage.jobs import Job
from app.storage.models import ModelStore
from scripts.processes import is_alive
from tests.unit.jobs.conftest import Gate
from tests.waiting import until

Start = Callable[..., Supervisor]


def ended(queue: JobQueue, job: Job) -> Job:
    """The job once it has a terminal state."""
    return until(lambda: (found := queue.get(job.id)).finished_at is not None and found)


def in_state(queue: JobQueue, job: Job, state: str) -> Job:
    return until(lambda: (found := queue.get(job.id)).state == state and found)


def at_epoch(queue: JobQueue, job: Job, epoch: int) -> None:
    until(lambda: len(queue.history(job.id)) >= epoch)


def starts(tmp_path: Path, job: Job) -> list[tuple[int, int]]:
    """Process id and first epoch of each of the job's runs."""
    file = tmp_path / "data" / f"starts-{job.id}"
    lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    return [(int(pid), int(epoch)) for pid, _, epoch in lines]


def forkserver_of(pid: int) -> int:
    """The parent of a worker."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def states(queue: JobQueue, job: Job) -> list[str]:
    return [event.data["state"] for event in queue.events(job.id) if event.type == "state"]


def epochs(queue: JobQueue, job: Job) -> list[int]:
    return [row["epoch"] for row in queue.history(job.id)]


# ---- the plain path


def test_a_job_runs_and_its_version_is_published(
    queue: JobQueue, models: ModelStore, start: Start, tmp_path: Path
) -> None:
    start()
    job = ended(queue, queue.submit({"epochs": 3}, "penguins"))
    assert (job.state, job.version, job.stop_reason) == ("succeeded", "1", "max_epochs")
    assert job.metrics == {"train_loss": 1 / 3}
    assert job.progress is not None
    assert job.progress["epoch"] == 3
    assert models.published(job.id, "penguins", "1")
    assert [(row["epoch"], row["val_loss"]) for row in queue.history(job.id)] == [(1, None), (2, None), (3, None)]
    assert states(queue, job) == ["queued", "running", "succeeded"]
    until(lambda: list((tmp_path / "data" / "jobs").iterdir()) == [])


def test_jobs_of_one_model_get_versions_of_their_own(queue: JobQueue, models: ModelStore, start: Start) -> None:
    start(max_running_jobs=3)
    jobs = [ended(queue, job) for job in [queue.submit({}, "m") for _ in range(6)]]
    assert sorted(str(job.version) for job in jobs) == models.versions("m") == list("123456")


def test_no_more_run_at_once_than_allowed(queue: JobQueue, start: Start, gate: Gate) -> None:
    start(max_running_jobs=2)
    jobs = [queue.submit({"gate": str(gate.path)}, "m") for _ in range(4)]
    until(lambda: queue.counts()["running"] == 2)
    assert [queue.get(job.id).queue_position for job in jobs] == [None, None, 1, 2]
    gate.open(1)
    assert {ended(queue, job).state for job in jobs} == {"succeeded"}


def test_the_next_job_starts_while_a_version_goes_to_the_disk(
    queue: JobQueue, models: ModelStore, start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    jobs = [queue.submit({}, "m") for _ in range(2)]
    publish, seen = models.publish, []

    def slow(job_id: str, name: str, version: str) -> None:
        if job_id == jobs[0].id:
            seen.append(until(lambda: starts(tmp_path, jobs[1])))
        publish(job_id, name, version)

    monkeypatch.setattr(models, "publish", slow)
    start(max_running_jobs=1)
    assert [ended(queue, job).version for job in jobs] == ["1", "2"]
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("how", "code", "says"),
    [
        ("diverged", "diverged", "try a smaller learning rate"),
        ("memory", "out_of_memory", "60 GiB"),
        ("disk", "storage_full", "No space left on device"),
        ("bug", "internal_error", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_failure_has_a_code_and_a_sentence(
    queue: JobQueue, models: ModelStore, start: Start, how: str, code: str, says: str
) -> None:
    start()
    job = ended(queue, queue.submit({"fail_with": how}, "m"))
    assert job.state == "failed"
    assert job.error is not None
    assert job.error["code"] == code
    assert says in job.error["detail"]
    assert models.names() == []


# ---- requests while running


def test_pause_and_resume(queue: JobQueue, start: Start, gate: Gate, tmp_path: Path) -> None:
    start()
    job = queue.submit({"epochs": 4, "gate": str(gate.path)}, "m")
    gate.open(2)
    at_epoch(queue, job, 2)
    assert queue.pause(job.id).state == "pausing"
    in_state(queue, job, "paused")
    queue.resume(job.id)
    gate.open(4)
    assert ended(queue, job).state == "succeeded"
    assert epochs(queue, job) == [1, 2, 3, 4]
    assert [epoch for _, epoch in starts(tmp_path, job)] == [0, 2]
    assert states(queue, job) == ["queued", "running", "pausing", "paused", "queued", "running", "succeeded"]


def test_cancel(queue: JobQueue, models: ModelStore, start: Start, gate: Gate, tmp_path: Path) -> None:
    start()
    job = queue.submit({"epochs": 4, "gate": str(gate.path)}, "m")
    gate.open(1)
    at_epoch(queue, job, 1)
    assert queue.cancel(job.id).state == "cancelling"
    assert ended(queue, job).state == "cancelled"
    assert models.names() == []
    until(lambda: list((tmp_path / "data" / "jobs").iterdir()) == [])


def test_a_worker_that_ignores_a_cancel_is_ended(
    queue: JobQueue, start: Start, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler_module, "CANCEL_SECONDS", 0.1)
    start()
    job = queue.submit({"deaf": True, "gate": str(gate.path)}, "m")
    ((pid, _),) = until(lambda: starts(tmp_path, job))
    queue.cancel(job.id)
    found = ended(queue, job)
    assert (found.state, found.warnings, found.attempts) == ("cancelled", [], 0), "that it was ended is no death"
    until(lambda: not is_alive(pid))


def test_a_worker_that_dies_while_the_service_ends_is_no_death_of_the_job(
    queue: JobQueue, start: Start, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where Ctrl-C reaches all processes of a terminal."""
    supervisor, told, tell = start(), threading.Event(), fleet_module.Fleet.tell

    def tell_and_say_so(*arguments: Any) -> None:
        tell(*arguments)
        told.set()

    monkeypatch.setattr(fleet_module.Fleet, "tell", tell_and_say_so)
    job = queue.submit({"deaf": True, "gate": str(gate.path)}, "m")
    ((pid, _),) = until(lambda: starts(tmp_path, job))
    ending = threading.Thread(target=supervisor.stop, kwargs={"grace_seconds": 60})
    ending.start()
    assert told.wait(60)
    os.kill(pid, signal.SIGKILL)
    ending.join(60)
    found = queue.get(job.id)
    assert (found.state, found.attempts, found.warnings) == ("running", 0, [])


def test_requests_from_another_process_are_seen(
    queue: JobQueue, database: Database, start: Start, gate: Gate, tmp_path: Path
) -> None:
    start()
    elsewhere = (
        "from app.storage.database import Database; from app.jobs.queue import JobQueue;"
        f"queue = JobQueue(Database('sqlite:///{tmp_path}/data/gradserve.db'), max_queued_jobs=9);"
    )
    spec = {"gate": str(gate.path)}
    job_id = python(f"{elsewhere} print(queue.submit({spec!r}, 'm').id)")
    until(lambda: queue.get(job_id).state == "running")
    python(f"{elsewhere} queue.cancel({job_id!r})")
    until(lambda: queue.get(job_id).state == "cancelled")


def python(code: str) -> str:
    run = [sys.executable, "-c", code]
    return subprocess.run(run, check=True, capture_output=True, text=True, env=child_environment()).stdout.strip()


def child_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


# ---- death


def test_a_killed_worker_goes_on_from_its_checkpoint(queue: JobQueue, start: Start, gate: Gate, tmp_path: Path) -> None:
    start()
    job = queue.submit({"epochs": 5, "gate": str(gate.path)}, "m")
    gate.open(3)
    at_epoch(queue, job, 3)
    ((pid, _),) = starts(tmp_path, job)
    os.kill(pid, signal.SIGKILL)
    until(lambda: len(starts(tmp_path, job)) == 2)
    gate.open(5)
    done = ended(queue, job)
    assert (done.state, done.attempts) == ("succeeded", 1)
    assert "signal 9" in done.warnings[0]
    assert epochs(queue, job) == [1, 2, 3, 4, 5]
    assert [epoch for _, epoch in starts(tmp_path, job)] == [0, 3]
    assert states(queue, job) == ["queued", "running", "succeeded"]


def test_a_worker_that_keeps_dying_fails_its_job(queue: JobQueue, start: Start, tmp_path: Path) -> None:
    start()
    job = ended(queue, queue.submit({"epochs": 9, "die_at": 4, "die_times": 99}, "m"))
    assert job.state == "failed"
    assert job.error is not None
    assert job.error["code"] == "worker_died"
    assert "out of memory" in job.error["detail"]
    assert epochs(queue, job) == [1, 2, 3]
    assert len(starts(tmp_path, job)) == 3  # the first got further than any before, and still counts


def test_deaths_with_progress_in_between_do_not_add_up(
    queue: JobQueue, start: Start, gate: Gate, tmp_path: Path
) -> None:
    start()
    job = queue.submit({"epochs": 6, "gate": str(gate.path)}, "m")
    for epoch in range(1, 6):
        gate.open(epoch)
        at_epoch(queue, job, epoch)
        os.kill(starts(tmp_path, job)[-1][0], signal.SIGKILL)
        until(lambda: len(starts(tmp_path, job)) == epoch + 1)  # noqa: B023
    gate.open(6)
    assert ended(queue, job).state == "succeeded"
    assert epochs(queue, job) == [1, 2, 3, 4, 5, 6]


def test_a_killed_worker_is_cancelled_or_paused_where_that_was_asked(
    queue: JobQueue, start: Start, gate: Gate, tmp_path: Path
) -> None:
    start(max_running_jobs=2)
    spec = {"epochs": 2, "gate": str(gate.path), "deaf": True}
    cancelled, paused = queue.submit(spec, "m"), queue.submit(spec, "m")
    pids = [until(lambda: starts(tmp_path, job))[0][0] for job in (cancelled, paused)]  # noqa: B023
    queue.cancel(cancelled.id)
    queue.pause(paused.id)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    in_state(queue, cancelled, "cancelled")
    in_state(queue, paused, "paused")
    assert (tmp_path / "data" / "jobs" / paused.id).exists()


def test_a_killed_fork_server_takes_its_workers_along_and_the_jobs_go_on(
    queue: JobQueue, start: Start, gate: Gate, tmp_path: Path
) -> None:
    start(max_running_jobs=2)
    jobs = [queue.submit({"epochs": 2, "gate": str(gate.path)}, "m") for _ in range(2)]
    gate.open(1)
    for job in jobs:
        at_epoch(queue, job, 1)
    pids = [starts(tmp_path, job)[0][0] for job in jobs]
    os.kill(forkserver_of(pids[0]), signal.SIGKILL)
    until(lambda: not any(is_alive(pid) for pid in pids))
    gate.open(2)
    assert {ended(queue, job).state for job in jobs} == {"succeeded"}
    assert all(epochs(queue, job) == [1, 2] for job in jobs)
    assert {queue.get(job.id).attempts for job in jobs} == {0}  # not the jobs' fault


def test_jobs_for_which_no_process_can_be_started_wait_until_one_can(
    queue: JobQueue, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler_module, "FORK_SECONDS", 0.05)
    monkeypatch.setenv("NO_FORKS", str(tmp_path / "no-forks"))
    (tmp_path / "no-forks").touch()
    start(max_running_jobs=2)
    jobs = [queue.submit({}, "m") for _ in range(5)]

    def num_tries() -> int:
        return sum("wait_reason" in event.data for event in queue.events(jobs[0].id))

    until(lambda: num_tries() > 5)
    assert {queue.get(job.id).state for job in jobs} == {"running", "queued"}
    assert "Resource temporarily unavailable" in str(queue.events(jobs[0].id)[-1].data)
    queue.cancel(jobs[1].id)
    in_state(queue, jobs[1], "cancelled")
    (tmp_path / "no-forks").unlink()
    done = [ended(queue, job) for job in jobs]
    assert [job.state for job in done] == ["succeeded", "cancelled", "succeeded", "succeeded", "succeeded"]
    assert {(job.attempts, job.wait_reason) for job in done} == {(0, None)}


def test_a_hung_worker_is_noticed_and_ended(queue: JobQueue, start: Start, tmp_path: Path) -> None:
    start(worker_timeout_seconds=1.5)
    job = ended(queue, queue.submit({"epochs": 3, "hang_at": 2}, "m"))
    assert job.state == "succeeded"
    assert "no sign of life" in job.warnings[0]
    assert len(starts(tmp_path, job)) == 2


def sockets_of(pid: int) -> set[str]:
    """The sockets that a process has open; files may come and go while it is looked at."""
    names = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            names.add(str(descriptor.readlink()))
    return {name for name in names if name.startswith("socket:")}


def test_a_stopped_worker_is_noticed_and_ended(queue: JobQueue, start: Start, gate: Gate, tmp_path: Path) -> None:
    start(worker_timeout_seconds=1.5)
    job = queue.submit({"epochs": 3, "gate": str(gate.path)}, "m")
    gate.open(2)
    at_epoch(queue, job, 2)
    ((pid, _),) = starts(tmp_path, job)
    os.kill(pid, signal.SIGSTOP)
    gate.open(3)
    done = ended(queue, job)
    assert done.state == "succeeded"
    assert "no sign of life" in done.warnings[0]
    assert [epoch for _, epoch in starts(tmp_path, job)] == [0, 2]
    assert not is_alive(pid)


def test_a_stopped_fork_server_is_noticed_and_ended(
    queue: JobQueue, start: Start, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can start and end no worker, and says nothing."""
    monkeypatch.setattr(fleet_module, "ANSWER_SECONDS", 0.1)
    start(worker_timeout_seconds=1.5)
    first = queue.submit({"gate": str(gate.path)}, "m")
    ((pid, _),) = until(lambda: starts(tmp_path, first))
    os.kill(forkserver_of(pid), signal.SIGSTOP)
    second = queue.submit({"gate": str(gate.path)}, "m")
    gate.open(1)
    assert {ended(queue, job).state for job in (first, second)} == {"succeeded"}
    until(lambda: not is_alive(pid))


def test_a_worker_is_not_blamed_for_time_in_which_nobody_listened(
    queue: JobQueue, start: Start, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a container is paused, or a disk hangs, for longer than a worker may be silent."""
    monkeypatch.setattr(reconciler_module, "DEAF_SECONDS", 0.1)
    start(worker_timeout_seconds=3)
    job = queue.submit({"epochs": 2, "gate": str(gate.path)}, "m")
    gate.open(1)
    at_epoch(queue, job, 1)
    ((pid, _),) = starts(tmp_path, job)
    active, goes_on, waits = queue.active, threading.Event(), threading.Event()

    def slow() -> list[Job]:
        waits.set()
        goes_on.wait(20)
        return active()

    monkeypatch.setattr(queue, "active", slow)
    assert waits.wait(20)
    os.kill(pid, signal.SIGSTOP)
    end = time.monotonic() + 4
    until(lambda: time.monotonic() > end)
    os.kill(pid, signal.SIGCONT)
    goes_on.set()
    gate.open(2)
    done = ended(queue, job)
    assert (done.state, done.warnings) == ("succeeded", [])
    assert len(starts(tmp_path, job)) == 1


def test_a_stopped_fork_server_holds_up_no_end(
    queue: JobQueue, start: Start, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "ANSWER_SECONDS", 0.1)
    supervisor = start()
    job = queue.submit({"gate": str(gate.path)}, "m")
    ((pid, _),) = until(lambda: starts(tmp_path, job))
    os.kill(forkserver_of(pid), signal.SIGSTOP)
    supervisor.stop(grace_seconds=0)
    until(lambda: not is_alive(pid))
    assert queue.get(job.id).state == "running"


def test_workers_whose_end_could_not_be_dealt_with_at_once_are_not_forgotten(
    queue: JobQueue, start: Start, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fork server tells of two ends in one breath, and the first can't be written down."""
    monkeypatch.setattr(supervisor_module, "RETRY_SECONDS", 0.01)
    count_death, failed = queue.count_death, []

    def fail_at_first(*arguments: Any, **more: Any) -> int:
        if not failed:
            failed.append("no space")
            raise OSError("disk full")
        return count_death(*arguments, **more)

    monkeypatch.setattr(queue, "count_death", fail_at_first)
    start(max_running_jobs=2)
    jobs = [queue.submit({"epochs": 2, "gate": str(gate.path)}, "m") for _ in range(2)]
    gate.open(1)
    for job in jobs:
        at_epoch(queue, job, 1)
    pids = [starts(tmp_path, job)[0][0] for job in jobs]
    server = forkserver_of(pids[0])
    os.kill(server, signal.SIGSTOP)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    os.kill(server, signal.SIGCONT)
    gate.open(2)
    assert {ended(queue, job).state for job in jobs} == {"succeeded"}
    assert failed


def test_a_worker_holds_no_other_workers_channel(queue: JobQueue, start: Start, gate: Gate, tmp_path: Path) -> None:
    start(max_running_jobs=3)
    jobs = [queue.submit({"gate": str(gate.path)}, "m") for _ in range(3)]
    pids = [until(lambda: starts(tmp_path, job))[0][0] for job in jobs]  # noqa: B023
    sockets = [sockets_of(pid) for pid in pids]
    assert [len(found) for found in sockets] == [1, 1, 1]
    assert len(set.union(*sockets)) == 3
    gate.open(1)


def test_a_worker_waits_for_a_predecessor_that_is_still_dying(queue: JobQueue, start: Start, tmp_path: Path) -> None:
    job = queue.submit({}, "m")
    lock = tmp_path / "data" / "jobs" / job.id / "lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = f":{os.fstat(held.fileno()).st_ino} "
        start()
        until(lambda: any("->" in line and waiting in line for line in Path("/proc/locks").read_text().splitlines()))
        assert starts(tmp_path, job) == []
    assert ended(queue, job).state == "succeeded"


# ---- the end of a supervisor, and the next


def test_a_stopped_supervisor_leaves_jobs_that_the_next_one_goes_on_with(
    queue: JobQueue, start: Start, gate: Gate, tmp_path: Path
) -> None:
    job = queue.submit({"epochs": 3, "gate": str(gate.path)}, "m")
    first = start()
    gate.open(2)
    at_epoch(queue, job, 2)
    first.stop(grace_seconds=10)
    assert queue.get(job.id).state == "running"
    assert (tmp_path / "data" / "jobs" / job.id / "checkpoint.json").read_text() == "2"
    gate.open(3)
    start()
    assert ended(queue, job).state == "succeeded"
    assert [epoch for _, epoch in starts(tmp_path, job)] == [0, 2]
    assert epochs(queue, job) == [1, 2, 3]


SERVICE = """
import sys
from pathlib import Path
from app.jobs.queue import JobQueue
from app.jobs.supervisor import Supervisor
from app.storage.counters import Counters
from app.storage.database import Database
from app.storage.models import ModelStore
from tests.unit.jobs.conftest import rules
root = Path(sys.argv[1])
queue = JobQueue(Database(f"sqlite:///{root}/data/gradserve.db"), max_queued_jobs=1000)
supervisor = Supervisor(queue, ModelStore(root / "models"), rules(root), Counters(root / "counters"))
supervisor.start()
print("started", flush=True)
supervisor.join()
"""


@pytest.fixture
def service(database: Database, tmp_path: Path) -> Callable[[], subprocess.Popen[bytes]]:
    """Starts processes that have a supervisor each."""
    started: list[subprocess.Popen[bytes]] = []

    def service() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", SERVICE, str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=child_environment())
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        return process

    yield service
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_the_next_supervisor_takes_over_from_one_that_was_killed(
    queue: JobQueue, service: Callable[[], subprocess.Popen[bytes]], gate: Gate, tmp_path: Path
) -> None:
    job = queue.submit({"epochs": 4, "gate": str(gate.path)}, "m")
    waiting = [queue.submit({"epochs": 4, "gate": str(gate.path), "deaf": True}, "m") for _ in range(2)]
    leader = service()
    gate.open(2)
    at_epoch(queue, job, 2)
    successor = service()
    ((pid, _),) = starts(tmp_path, job)
    assert forkserver_of(forkserver_of(pid)) == leader.pid
    leader.kill()
    until(lambda: not is_alive(pid))
    _, (heir, epoch) = until(lambda: (found := starts(tmp_path, job)) and len(found) == 2 and found)
    assert (forkserver_of(forkserver_of(heir)), epoch) == (successor.pid, 2)
    gate.open(4)
    assert {ended(queue, each).state for each in (job, *waiting)} == {"succeeded"}
    assert epochs(queue, job) == [1, 2, 3, 4]


@pytest.mark.parametrize(("asked", "state"), [("cancel", "cancelled"), ("pause", "paused")])
def test_what_was_asked_of_a_killed_service_is_done_by_the_next(
    queue: JobQueue, service: Callable[[], subprocess.Popen[bytes]], start: Start, gate: Gate, asked: str, state: str
) -> None:
    job = queue.submit({"gate": str(gate.path), "deaf": True}, "m")
    process = service()
    in_state(queue, job, "running")
    getattr(queue, asked)(job.id)
    process.kill()
    process.wait()
    start()
    in_state(queue, job, state)


@pytest.mark.parametrize("renamed", [False, True])
def test_a_crash_while_publishing_is_completed(
    queue: JobQueue, models: ModelStore, start: Start, tmp_path: Path, renamed: bool
) -> None:
    """The job's row has its version; the rename was or was not done."""
    job = queue.submit({"die_at": 1, "die_times": 99}, "m")
    queue.claim(1)
    queue.reserve(job.id, "1", {"val_loss": 0.5}, "patience")
    (models.staging(job.id) / "config.json").write_text(f'{{"job_id": "{job.id}"}}')
    if renamed:
        models.publish(job.id, "m", "1")
    start()
    done = ended(queue, job)
    assert (done.state, done.version, done.metrics, done.stop_reason) == (
        "succeeded",
        "1",
        {"val_loss": 0.5},
        "patience",
    )
    assert models.versions("m") == ["1"]
    assert starts(tmp_path, job) == []


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_version_number_that_was_taken_meanwhile_is_replaced(
    queue: JobQueue, models: ModelStore, start: Start, cancelled: bool
) -> None:
    job, other = queue.submit({}, "m"), "someone"
    queue.claim(1)
    queue.reserve(job.id, "1", {}, None)
    for each in (job.id, other):
        (models.staging(each) / "config.json").write_text(f'{{"job_id": "{each}"}}')
    models.publish(other, "m", "1")
    if cancelled:
        queue.cancel(job.id)
    start()
    done = ended(queue, job)
    assert (done.state, done.version) == (("cancelled", None) if cancelled else ("succeeded", "2"))


def test_a_version_that_cannot_be_stored_fails_its_job(queue: JobQueue, models: ModelStore, start: Start) -> None:
    job = queue.submit({}, "m")
    queue.claim(1)
    queue.reserve(job.id, "1", {}, None)  # and nothing is staged
    start()
    failed = ended(queue, job)
    assert failed.error is not None
    assert failed.error["code"] == "storage_failed"
    assert failed.version is None, "the number that was meant for it"


def test_a_version_for_which_the_disk_has_no_room_waits_for_it(
    queue: JobQueue, models: ModelStore, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And holds up no other; a job that is cancelled meanwhile waits no more."""
    publish, full = models.publish, ["held", "cancelled"]

    def publish_where_there_is_room(job_id: str, name: str, version: str) -> None:
        if name in full:
            raise OSError(errno.ENOSPC, "No space left on device")
        publish(job_id, name, version)

    monkeypatch.setattr(models, "publish", publish_where_there_is_room)
    monkeypatch.setattr(reconciler_module, "RECONCILE_SECONDS", 0.05)
    start()
    held, cancelled, other = (queue.submit({}, name) for name in ("held", "cancelled", "other"))
    waiting = until(lambda: (found := queue.get(held.id)).wait_reason and found)
    assert waiting.state == "running"
    assert re.match(r"its version can't be stored yet, .*\(No space left on device\)", waiting.wait_reason)
    until(lambda: queue.get(cancelled.id).wait_reason)
    queue.cancel(cancelled.id)
    assert (ended(queue, cancelled).state, ended(queue, other).state) == ("cancelled", "succeeded")
    full.clear()
    done = ended(queue, held)
    assert (done.state, done.version, done.wait_reason) == ("succeeded", "1", None)
    assert len(starts(tmp_path, held)) == 1


def test_a_model_whose_folder_cannot_be_read_fails_its_job_once(
    queue: JobQueue, models: ModelStore, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than to train it again and again."""

    def unreadable(_name: str) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(models, "next_version", unreadable)
    start()
    job = ended(queue, queue.submit({}, "m"))
    assert job.error is not None
    assert job.error["code"] == "storage_failed"
    assert len(starts(tmp_path, job)) == 1


def test_a_job_that_cannot_be_attended_to_holds_up_no_other(
    queue: JobQueue, models: ModelStore, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = queue.submit({}, "first"), queue.submit({}, "second")
    queue.claim(2)
    for job in (first, second):
        queue.reserve(job.id, "1", {}, None)
        (models.staging(job.id) / "config.json").write_text(f'{{"job_id": "{job.id}"}}')
    publish, failures = models.publish, []

    def fails_at_first(job_id: str, name: str, version: str) -> None:
        if job_id == first.id and queue.get(third.id).state != "succeeded":
            failures.append(job_id)
            raise ValueError("nobody thought of this")
        publish(job_id, name, version)

    third = queue.submit({}, "third")
    monkeypatch.setattr(models, "publish", fails_at_first)
    start()
    assert {ended(queue, job).state for job in (first, second, third)} == {"succeeded"}
    assert failures


def test_a_job_that_is_cancelled_while_it_is_paused_leaves_nothing(
    queue: JobQueue, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler_module, "SWEEP_SECONDS", 0.05)
    job = queue.submit({}, "m")
    queue.pause(job.id)
    folder = tmp_path / "data" / "jobs" / job.id
    folder.mkdir(parents=True)
    supervisor = start()
    until(lambda: supervisor.leading)
    assert folder.exists()
    queue.cancel(job.id)
    until(lambda: not folder.exists())


def test_folders_that_no_job_needs_are_swept(queue: JobQueue, start: Start, tmp_path: Path) -> None:
    ended_job, held = queue.submit({}, "m"), queue.submit({}, "m")
    queue.cancel(ended_job.id)
    queue.pause(held.id)
    folders = {name: tmp_path / "data" / "jobs" / name for name in (ended_job.id, held.id, "gone")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    start()
    until(lambda: not folders["gone"].exists())
    until(lambda: not folders[ended_job.id].exists())
    assert folders[held.id].exists()


def test_a_supervisor_whose_lock_cannot_be_opened_stands_again(
    queue: JobQueue, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "RETRY_SECONDS", 0.01)
    lock = tmp_path / "data" / "supervisor.lock"
    lock.mkdir(parents=True)  # which no one opens as a file
    job = queue.submit({}, "m")
    start()
    lock.rmdir()
    assert ended(queue, job).state == "succeeded"


def test_an_error_of_the_database_is_got_over(
    queue: JobQueue, database: Database, start: Start, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that workers said while it lasted is lost."""
    monkeypatch.setattr(supervisor_module, "RETRY_SECONDS", 0.01)
    start()
    job = queue.submit({"epochs": 3, "gate": str(gate.path)}, "m")
    gate.open(1)
    at_epoch(queue, job, 1)
    write, failures = database.write, []

    def fail_at_first(*, durable: bool = True) -> AbstractContextManager[Connection]:
        if len(failures) < 5:
            failures.append("no space")
            raise OSError("disk full")
        return write(durable=durable)

    monkeypatch.setattr(database, "write", fail_at_first)
    gate.open(3)
    assert ended(queue, job).state == "succeeded"
    assert len(failures) == 5
    assert epochs(queue, job) == [1, 2, 3]


def test_a_queue_waits_for_no_clock(queue: JobQueue, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens, a job that ends or is submitted, is what moves it on; looking from time to time is a precaution."""
    start()
    ended(queue, queue.submit({}, "m"))
    monkeypatch.setattr(reconciler_module, "POLL_SECONDS", 3600.0)
    monkeypatch.setattr(reconciler_module, "RECONCILE_SECONDS", 3600.0)
    for _ in range(20):
        queue.submit({}, "m")
    until(lambda: queue.counts()["succeeded"] == 21)
