"""What a container asks of the service: no writes but to its volumes. Tests of security have its health check."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from scripts.service import Service
from tests.waiting import until

LINE = {"inputs": [[1], [2], [3], [4]], "targets": [2, 4, 6, 8]}
READ_ONLY = """
for folder in "$1" "$2" "$3"; do mount --bind "$folder" "$folder" || exit 77; done
while read -r _ place kind _; do
  case $place in /proc*|/sys*|/dev*|"$1"|"$2"|"$3") continue;; esac
  mount -o remount,bind,ro "$place" || exit 77
done < /proc/self/mounts
export TMPDIR="$3"
shift 3
exec "$@"
"""
"""Runs a command in a place of its own where all is read-only but three folders: models, data, and one for /tmp."""


@pytest.fixture
def confined(tmp_path: Path) -> Iterator[Service]:
    folders = [tmp_path / name for name in ("models", "data", "tmp")]
    for folder in folders:
        folder.mkdir()
    within = ["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", *map(str, folders)]
    if os.geteuid() != 0 or subprocess.run([*within, "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root may make a place of its own, and not everywhere")
    with Service(tmp_path, within=within) as service:
        yield service


def test_nothing_is_written_but_to_the_volumes(confined: Service) -> None:
    """Everywhere else a write would fail: what works, works without."""
    root = confined.root
    refused = subprocess.run([*confined.within, "touch", str(root / "elsewhere")], capture_output=True, check=False)
    assert b"Read-only file system" in refused.stderr
    with httpx.Client(base_url=confined.url, timeout=90) as client:
        assert client.put("/datasets/table", content=b"x,y\n1,2\n2,4\n3,6\n").status_code == 201
        for body in ({"data": {"dataset": "table", "target": "y"}}, {"data": LINE, "engine": "eager"}):
            spec = {"model": "line", "stop": {"max_epochs": 3}, **body}
            job = client.post("/train", json=spec, headers={"Prefer": "wait=60"}).json()
            until(lambda job=job: client.get(f"/jobs/{job['id']}").json()["state"] == "succeeded", 60)  # type: ignore[misc]
        assert client.post("/predict", json={"model": "line", "inputs": [[1]]}).status_code == 200
        csv = client.post("/predict?model=line", content=b"x\n1\n2\n", headers={"Content-Type": "text/csv"})
        assert csv.text.splitlines()[0] == "prediction"
        archive = client.get("/models/line/versions/1/archive").content
        assert client.post("/models/moved/versions", content=archive).status_code == 201
        assert client.put("/models/line/aliases/live", json={"version": "1"}).status_code == 200
        assert client.get("/readyz").status_code == 200
    confined.stop()
    assert sorted(path.name for path in root.iterdir()) == ["data", "models", "tmp"]
    assert "Read-only file system" not in confined.log.read_text()
