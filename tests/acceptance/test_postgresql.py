"""Jobs in a PostgreSQL of the test's own, where it is installed (Debian's package postgresql)."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts.service import Service, free_port, is_free
from tests.waiting import until

NEWEST = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), default=None)
ROWS = {"inputs": [[x] for x in range(100)], "targets": list(range(100))}
LONG: dict[str, Any] = {"model": "line", "data": ROWS, "descent": {"batch_size": 1}, "stop": {"max_epochs": 60}}

pytestmark = pytest.mark.skipif(NEWEST is None, reason="no PostgreSQL is installed")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    folder, port = Path(tempfile.mkdtemp(prefix="gradserve-")), free_port()
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    if user:
        shutil.chown(folder, user)

    def run(program: str, *arguments: str) -> None:
        command = [str(NEWEST / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL)

    run("initdb", "--auth=trust", "--username=gradserve")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    run("pg_ctl", "--wait", f"--log={folder}/log", f"--options={options}", "start")
    yield f"postgresql+psycopg://gradserve@127.0.0.1:{port}/postgres"
    run("pg_ctl", "--wait", "--mode=immediate", "stop")
    shutil.rmtree(folder)


def test_jobs_of_two_processes_outlive_a_kill(url: str, start_service: Callable[..., Service]) -> None:
    service = start_service(workers=2, GRADSERVE_DATABASE_URL=url, GRADSERVE_CHECKPOINT_INTERVAL_SECONDS="0.1")
    with httpx.Client(base_url=service.url, timeout=60) as http:
        headers = {"Idempotency-Key": "one"}
        jobs = [http.post("/train", json=LONG, headers=headers).raise_for_status().json()["id"] for _ in range(4)]
        assert len(set(jobs)) == 1, "whichever process was asked"
        path = f"/jobs/{jobs[0]}"
        until(lambda: len(http.get(f"{path}/history").json()["data"]) > 5)
        service.kill()
        until(lambda: is_free(service.port))  # its processes have found that it is gone
        service.start()
        until(lambda: http.get(path).json()["terminal"])
        job = http.get(path).json()
        assert (job["state"], job["progress"]["epoch"]) == ("succeeded", 60)
        history = http.get(f"{path}/history").json()["data"]
        assert [row["epoch"] for row in history] == list(range(1, 61))
        with http.stream("GET", f"{path}/events", headers={"Accept": "text/event-stream"}) as events:
            ids = [int(line[3:]) for line in events.iter_lines() if line.startswith("id:")]
        assert ids == sorted(set(ids))
        assert len(ids) > 60
        assert http.get("/models/line").json()["versions"][-1] == job["version"]
        going_on = http.post("/train", json=LONG | {"warm_start": {"model": "line"}}).json()["links"]["self"]
        http.post(f"{going_on}/pause").raise_for_status()
        assert http.delete("/models/line").status_code == 204
        until(lambda: http.get(going_on).json()["state"] == "paused")
        http.post(f"{going_on}/resume").raise_for_status()
        until(lambda: http.get(going_on).json()["terminal"])
        assert http.get(going_on).json()["state"] == "succeeded"
        assert http.delete(path).status_code == 204
        assert http.get(path).status_code == 404
        assert http.get("/jobs/%00").status_code == http.post("/jobs/%00/cancel").status_code == 404
        assert http.get("/jobs/%00/events").status_code == http.get("/jobs/%00/history").status_code == 404
        assert http.get("/jobs?model=%00").status_code == http.get("/jobs?after=%00").status_code == 422


def test_a_database_that_is_not_there_is_told(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "app.cli", "serve", "--port", str(free_port())],
        env={**os.environ, "GRADSERVE_DATABASE_URL": "postgresql+psycopg://gradserve@127.0.0.1:1/postgres"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode != 0
    assert "the database failed: connection" in answer.stderr
    assert "Traceback" not in answer.stderr
