"""A run that needs more memory than there is ends alone: refused by the allocator, or killed by Linux."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from scripts.processes import Role, processes_of, with_role
from scripts.service import Service
from tests.waiting import until

pytestmark = pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux limits another process's memory")
CGROUPS = Path("/sys/fs/cgroup/memory")
ROWS = np.random.default_rng(7).standard_normal((200, 6))
DATA = {"inputs": ROWS.tolist(), "targets": np.tanh(ROWS @ np.arange(6)).tolist()}
SMALL: dict[str, Any] = {"data": DATA, "engine": "eager", "stop": {"max_epochs": 100_000}}
LARGE: dict[str, Any] = {
    "data": DATA,
    "engine": "eager",
    "descent": {"variant": "full_batch"},  # a step an epoch: it is the weights that take memory
    "network": {
        "hidden_features": [6500, 6500]
    },  # 42 million weights: 170 MB, their gradients, and AdamW's two moments
    "stop": {"max_epochs": 3},
}
ROOM_BYTES = 420 * 2**20  # in which a fork server has room, should Linux choose that one
ADDRESSES = 1200 * 2**20  # of which threads take their stacks, and the allocator an arena for each


class Rig:
    """A service at work on a small job."""

    def __init__(self, service: Service, http: httpx.Client) -> None:
        self.service, self.http = service, http
        self.small = self.submit("small", SMALL)
        until(lambda: self.job(self.small)["progress"]["epoch"] > 0, 60)

    def submit(self, model: str, spec: dict[str, Any]) -> str:
        answer = self.http.post("/train", json={"model": model, **spec})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/jobs/{job}").raise_for_status().json()
        return found

    def failed(self, job: str) -> dict[str, str]:
        """Its error."""
        found = until(lambda: (seen := self.job(job))["terminal"] and seen, 120)
        assert found["state"] == "failed", found
        error: dict[str, str] = found["error"]
        return error

    def assert_all_else_is_well(self) -> None:
        epoch = self.job(self.small)["progress"]["epoch"]
        until(lambda: self.job(self.small)["progress"]["epoch"] > epoch, 60)
        assert self.job(self.small)["warnings"] == []
        assert self.http.get("/readyz").status_code == 200

    @property
    def main(self) -> int:
        assert self.service.process
        return self.service.process.pid


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    settings = {"GRADSERVE_MAX_RUNNING_JOBS": "2", "GRADSERVE_LOG_LEVEL": "warning"}  # a log takes room, too
    with (
        Service(tmp_path_factory.mktemp("memory"), settings=settings) as service,
        httpx.Client(base_url=service.url, timeout=60) as http,
    ):
        yield Rig(service, http)


def test_linux_is_offered_runs_first_and_the_service_last(rig: Rig) -> None:
    """A run that it ended may not have given its memory back when it looks for the next."""

    def scores(role: Role) -> list[int]:
        return [int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in with_role(rig.main, role)]

    assert scores("worker") == [900]
    assert scores("forkserver") == [800]
    assert Path(f"/proc/{rig.main}/oom_score_adj").read_text() == Path("/proc/self/oom_score_adj").read_text()


def test_what_the_allocator_refuses_fails_its_job_with_the_figure(rig: Rig) -> None:
    (server,) = with_role(rig.main, "forkserver")
    lines = Path(f"/proc/{server}/status").read_text().splitlines()
    used = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmSize"))
    before = resource.prlimit(server, resource.RLIMIT_AS, (used + ADDRESSES, resource.RLIM_INFINITY))
    try:
        error = rig.failed(rig.submit("huge", LARGE | {"network": {"hidden_features": [20_000, 20_000]}}))
    finally:
        resource.prlimit(server, resource.RLIMIT_AS, before)
    assert error["code"] == "out_of_memory", rig.service.log_end()
    assert "1600000000 bytes" in error["detail"]
    rig.assert_all_else_is_well()


@contextmanager
def limited(pids: list[int]) -> Iterator[None]:
    """So much memory for all of these processes, and for those that they start, together."""
    group = CGROUPS / f"gradserve-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(ROOM_BYTES))
    except OSError:
        pytest.skip("only root may limit memory, and not everywhere")
    try:
        for pid in pids:
            with suppress(ProcessLookupError):  # a worker that has just ended
                (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            (CGROUPS / "cgroup.procs").write_text(pid)
        group.rmdir()


def test_what_linux_kills_fails_its_job(rig: Rig) -> None:
    """It may choose among all processes of the service, and finds the worker.

    The job was accepted when there was room, which has gone by the time that it goes on.
    """
    large = rig.submit("large", LARGE | {"stop": {"max_epochs": 100_000}})
    until(lambda: rig.job(large)["progress"]["epoch"] > 0, 60)
    rig.http.post(f"/jobs/{large}/pause").raise_for_status()
    until(lambda: rig.job(large)["state"] == "paused", 60)
    rig.http.post(f"/jobs/{rig.small}/pause").raise_for_status()
    until(lambda: rig.job(rig.small)["state"] == "paused", 60)
    with limited([process.pid for process in processes_of(rig.main)]):
        rig.http.post(f"/jobs/{large}/resume").raise_for_status()
        until(lambda: rig.job(large)["state"] == "running", 60)  # alone, it starts whatever is left
        rig.http.post(f"/jobs/{rig.small}/resume").raise_for_status()
        error = rig.failed(large)
        assert error["code"] == "worker_died"
        assert "out of memory" in error["detail"]
        rig.assert_all_else_is_well()
    done = rig.submit("large", LARGE)
    assert until(lambda: (seen := rig.job(done))["terminal"] and seen, 120)["state"] == "succeeded"
