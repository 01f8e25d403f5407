"""Nothing is lost: processes are killed with -9 in the middle, and the job ends as if nothing had happened."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file

from scripts.service import Service
from tests.waiting import until


def table(num_rows: int) -> dict[str, Any]:
    rows = np.random.default_rng(7).standard_normal((num_rows, 6))
    return {"inputs": rows.tolist(), "targets": np.tanh(rows @ np.arange(6)).tolist()}


SPEC: dict[str, Any] = {
    "data": table(600),
    "network": {"hidden_features": [32, 32], "dropout": 0.1, "normalization": "batch_norm"},
    "optimizer": {"type": "adamw", "learning_rate": 0.002},
    "schedule": {"type": "cosine", "warmup_steps": 20},
    "descent": {"batch_size": 8},
    "stop": {"max_epochs": 40},
}
OFTEN = {"GRADSERVE_CHECKPOINT_INTERVAL_SECONDS": "0.1"}
PATIENCE_SECONDS = 120.0


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service for the tests that do not end it, with one worker at a time."""
    settings = OFTEN | {"GRADSERVE_MAX_RUNNING_JOBS": "1"}
    with Service(tmp_path_factory.mktemp("steady"), settings=settings) as service:
        yield service


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service for the tests that end it or a worker of it, and start it again."""
    settings = OFTEN | {"GRADSERVE_WORKER_TIMEOUT_SECONDS": "10"}
    with Service(tmp_path_factory.mktemp("mortal"), settings=settings) as service:
        yield service


LONG: dict[str, Any] = {"data": table(3000), "descent": {"batch_size": 2}, "stop": {"max_epochs": 200}}
"""1350 steps an epoch: enough to repay a compile, in few epochs, each of which takes as long as many compiled steps."""


@pytest.mark.parametrize(
    ("engine", "more"), [("eager", {}), ("compiled", LONG | {"stop": {"max_epochs": 100}}), ("auto", LONG)]
)
def test_killed_worker_resumes_bit_for_bit(steady: Service, engine: str, more: dict[str, Any]) -> None:
    service, more = steady, {"engine": engine, **more}
    undisturbed = finished(service, submit(service, "undisturbed", **more))
    job = submit(service, "disturbed", **more)
    for _ in range(3):
        kill_worker(service, job)
    disturbed = finished(service, job)
    assert sum("killed" in str(warning) or "signal" in str(warning) for warning in disturbed["warnings"]) == 3
    assert_same_run(service, undisturbed, disturbed)
    assert engine_of(service, disturbed) == ("compiled" if engine == "auto" else engine)


def test_a_worker_that_hangs_is_ended_and_its_job_ends_bit_for_bit(mortal: Service) -> None:
    """It is there, and silent: stopped, as where its device answers no more."""
    undisturbed = finished(mortal, submit(mortal, "undisturbed"))
    job = submit(mortal, "disturbed")
    until(lambda: checkpoint(mortal, job).exists(), PATIENCE_SECONDS)
    worker = worker_of(mortal)
    os.kill(worker, signal.SIGSTOP)
    disturbed = finished(mortal, job)
    assert [warning for warning in disturbed["warnings"] if "no sign of life" in warning]
    assert not Path(f"/proc/{worker}").exists()
    assert_same_run(mortal, undisturbed, disturbed)


def test_killed_service_resumes_bit_for_bit(mortal: Service) -> None:
    undisturbed = finished(mortal, submit(mortal, "undisturbed"))
    job = submit(mortal, "disturbed")
    until(lambda: checkpoint(mortal, job).exists(), PATIENCE_SECONDS)
    worker = worker_of(mortal)
    mortal.kill()
    until(lambda: not Path(f"/proc/{worker}").exists())
    mortal.start()
    assert_same_run(mortal, undisturbed, finished(mortal, job))


def test_a_202_survives_the_service(mortal: Service) -> None:
    """One that is warm, in which the job may have begun, and one that has just started, in which nothing can train."""
    jobs = []
    for _ in range(2):
        jobs.append(submit(mortal, "accepted"))
        mortal.kill()
        mortal.start()
    for job in jobs:
        assert finished(mortal, job)["state"] == "succeeded"


def test_paused_and_resumed_is_the_same_run(steady: Service) -> None:
    undisturbed = finished(steady, submit(steady, "undisturbed"))
    job = submit(steady, "disturbed")
    for _ in range(2):
        until(lambda: get(steady, job)["progress"]["step"] > 0, PATIENCE_SECONDS)
        assert httpx.post(f"{steady.url}/jobs/{job}/pause").status_code == 202
        until(lambda: get(steady, job)["state"] == "paused", PATIENCE_SECONDS)
        assert httpx.post(f"{steady.url}/jobs/{job}/resume").status_code == 202
    assert_same_run(steady, undisturbed, finished(steady, job))


def test_a_run_after_others_in_its_process_is_the_same_run(steady: Service) -> None:
    undisturbed = finished(steady, submit(steady, "undisturbed"))
    worker = worker_of(steady)
    for more in ({"seed": 3, "num_threads": 2}, {"precision": "bfloat16"}, {"optimizer": {"type": "sgd"}}):
        finished(steady, submit(steady, "another", **more))
    after = finished(steady, submit(steady, "after"))
    assert worker_of(steady) == worker
    assert_same_run(steady, undisturbed, after)


# ---- helpers


def submit(service: Service, model: str, **more: Any) -> str:
    answer = httpx.post(f"{service.url}/train", json={"model": model, **SPEC, **more}, timeout=30)
    assert answer.status_code == 202, answer.text
    job: str = answer.json()["id"]
    return job


def get(service: Service, job: str) -> dict[str, Any]:
    """The job; no time goes into getting ready for TLS, which takes longer than all else."""
    found: dict[str, Any] = httpx.get(f"{service.url}/jobs/{job}", verify=False).raise_for_status().json()
    return found


def finished(service: Service, job: str) -> dict[str, Any]:
    until(lambda: get(service, job)["terminal"], PATIENCE_SECONDS)
    found = get(service, job)
    assert found["state"] == "succeeded", found["error"]
    return found


def checkpoint(service: Service, job: str) -> Path:
    return service.root / "data" / "jobs" / job / "checkpoint.safetensors"


def kill_worker(service: Service, job: str) -> None:
    """Kill the worker after it has written a checkpoint of its own."""
    before = checkpoint(service, job).stat().st_mtime_ns if checkpoint(service, job).exists() else 0
    until(
        lambda: checkpoint(service, job).exists() and checkpoint(service, job).stat().st_mtime_ns > before,
        PATIENCE_SECONDS,
    )
    os.kill(worker_of(service), signal.SIGKILL)


def worker_of(service: Service) -> int:
    """The one process that the service's fork server has forked."""
    assert service.process
    return until(lambda: next((w for server in children(service.process.pid) for w in children(server)), 0))  # type: ignore[union-attr]


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()] + [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            if task.name != str(pid)
            for child in (task / "children").read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return []


def assert_same_run(service: Service, one: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = (weights(service, job) for job in (one, other))
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    assert [strip(row) for row in history(service, one)] == [strip(row) for row in history(service, other)]
    assert one["metrics"] == other["metrics"]
    assert other["progress"]["step"] == one["progress"]["step"]


def weights(service: Service, job: dict[str, Any]) -> dict[str, Any]:
    return dict(load_file(service.root / "models" / job["model"] / job["version"] / "model.safetensors"))


def engine_of(service: Service, job: dict[str, Any]) -> str:
    config = json.loads((service.root / "models" / job["model"] / job["version"] / "config.json").read_bytes())
    return str(config["spec"]["engine"])


def history(service: Service, job: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = httpx.get(f"{service.url}{job['links']['history']}").json()["data"]
    assert [row["epoch"] for row in rows] == list(range(1, job["progress"]["epoch"] + 1))
    return rows


def strip(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "elapsed_seconds"}


pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the worker through /proc")
