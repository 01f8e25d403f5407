"""A backup that is taken while jobs train is a service that predicts the same and goes on with its queue."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api.examples import RECORDS, SEED
from scripts.service import Service
from tests.waiting import until

LONG: dict[str, Any] = {**SEED, "model": "long", "stop": {"max_steps": 8_000}, "engine": "eager"}
ROWS = {"model": "line", "inputs": [[4], [11]]}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("service"), settings={"GRADSERVE_MAX_RUNNING_JOBS": "1"}) as running:
        yield running


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=90) as client:
        yield client


def gradserve(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRADSERVE_")}
    command = [sys.executable, "-m", "app.cli", *arguments]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


def test_a_backup_of_a_service_at_work(service: Service, http: httpx.Client, tmp_path: Path) -> None:
    for body in (SEED, RECORDS):
        trained = http.post(f"{service.url}/train", json=body, headers={"Prefer": "wait=60"})
        assert trained.json()["state"] == "succeeded"
    assert http.put(f"{service.url}/datasets/kept", content=b"x,y\n1,2\n").status_code == 201
    jobs = [http.post(f"{service.url}/train", json=LONG).json()["id"] for _ in range(3)]
    copy = tmp_path / "copy"
    made = gradserve(service.root, "backup", str(copy))
    assert made.returncode == 0, made.stderr
    assert not http.get(f"{service.url}/jobs/{jobs[-1]}").json()["terminal"], "it was no service at work"
    expected = http.post(f"{service.url}/predict", json=ROWS).json()
    for job in jobs:
        http.post(f"{service.url}/jobs/{job}/cancel")  # unless it has ended

    refused = gradserve(service.root, "restore", str(copy))
    assert refused.returncode == 1
    assert "is there already" in refused.stderr
    (root := tmp_path / "restored").mkdir()
    put_back = gradserve(root, "restore", str(copy))
    assert put_back.returncode == 0, put_back.stderr
    with Service(root) as restored:
        assert http.post(f"{restored.url}/predict", json=ROWS).json() == expected
        assert http.get(f"{restored.url}/datasets/kept/rows").json()["data"] == [{"x": 1, "y": 2}]
        for job in jobs:
            until(lambda job=job: http.get(f"{restored.url}/jobs/{job}").json()["terminal"], 120)
            assert http.get(f"{restored.url}/jobs/{job}").json()["state"] == "succeeded"
        assert http.get(f"{restored.url}/models/long").json()["versions"] == ["1", "2", "3"]


def test_what_is_no_whole_backup_is_refused(service: Service, http: httpx.Client, tmp_path: Path) -> None:
    assert http.put(f"{service.url}/datasets/other", content=b"x,y\n3,4\n").status_code == 201
    copy = tmp_path / "copy"
    (root := tmp_path / "restored").mkdir()
    assert gradserve(service.root, "backup", str(copy)).returncode == 0
    again = gradserve(service.root, "backup", str(copy))
    assert again.returncode == 1
    assert "is not empty" in again.stderr
    table = next(copy.glob("datasets/*/table.parquet"))
    content = bytearray(table.read_bytes())
    content[8] ^= 1
    table.write_bytes(content)
    flipped = gradserve(root, "restore", str(copy))
    assert flipped.returncode == 1
    assert "is not what was backed up" in flipped.stderr
    manifest = json.loads((copy / "backup.json").read_text())
    for version, words in ((99, "has format 99"), ("1", "no whole backup"), (None, "no whole backup")):
        (copy / "backup.json").write_text(json.dumps(manifest | {"format_version": version}))
        other = gradserve(root, "restore", str(copy))
        assert other.returncode == 1
        assert words in other.stderr
    (copy / "backup.json").unlink()
    cut_off = gradserve(root, "restore", str(copy))
    assert cut_off.returncode == 1
    assert "no whole backup" in cut_off.stderr
    assert not list(root.iterdir())
