"""A disk that is full, or takes no more writes: what needs it is refused in words, the rest goes on, all recovers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest

from scripts.service import Service, ServiceDied
from tests.disks import Disk, immutable, read_only, small_disk
from tests.waiting import until

ROWS = np.random.default_rng(7).standard_normal((300, 6))
DATA = {"inputs": ROWS.tolist(), "targets": np.tanh(ROWS @ np.arange(6)).tolist()}
SPEC: dict[str, Any] = {
    "data": DATA,
    "network": {"hidden_features": [64, 64], "dropout": 0.1},
    "engine": "eager",
    "descent": {"batch_size": 8},
    "stop": {"max_epochs": 40},
}
SHORT = SPEC | {"stop": {"max_epochs": 1}}
CSV = b"a,b\n" + b"1,2\n" * 200_000


class Rig(NamedTuple):
    service: Service
    http: httpx.Client
    data: Disk
    models: Disk


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A service whose folders are small disks of their own, with a model `old`. It runs through all of these tests."""
    root = tmp_path_factory.mktemp("disks")
    with small_disk(root / "d", 40) as data, small_disk(root / "m", 40) as models:
        settings = {
            "GRADSERVE_DATA_DIR": str(data.path),
            "GRADSERVE_MODELS_DIR": str(models.path),
            "GRADSERVE_CHECKPOINT_INTERVAL_SECONDS": "0.1",
            "GRADSERVE_MAX_RUNNING_JOBS": "1",
        }
        with Service(root, settings=settings) as service, httpx.Client(base_url=service.url, timeout=60) as http:
            assert train(http, "old", SHORT)["state"] == "succeeded"
            yield Rig(service, http, data, models)


def train(http: httpx.Client, model: str, spec: dict[str, Any]) -> dict[str, Any]:
    """The finished job."""
    return finished(http, submit(http, model, spec))


def submit(http: httpx.Client, model: str, spec: dict[str, Any]) -> str:
    answer = http.post("/train", json={"model": model, **spec})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def finished(http: httpx.Client, job: str) -> dict[str, Any]:
    found: dict[str, Any] = until(lambda: (seen := http.get(f"/jobs/{job}").json())["terminal"] and seen, 60)
    return found


def refused(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def waits_to_be_stored(rig: Rig, job: str) -> str:
    """The warning of a job whose run is over, but for its version."""

    def warning() -> str | None:
        found = rig.http.get(f"/jobs/{job}").json()
        assert not found["terminal"], found
        return next((each for each in found["warnings"] if "can't be stored yet" in each), None)

    return str(until(warning, 60))


def serves(rig: Rig, model: str = "old") -> None:
    answer = rig.http.post("/predict", json={"model": model, "inputs": DATA["inputs"][:3]})
    assert answer.status_code == 200, answer.text


def weights(rig: Rig, job: dict[str, Any]) -> bytes:
    return (rig.models.path / job["model"] / job["version"] / "model.safetensors").read_bytes()


def test_a_full_data_disk(rig: Rig) -> None:
    """Running jobs wait for it, and end as if nothing had been; everything else is refused."""
    undisturbed = train(rig.http, "undisturbed", SPEC)
    job = submit(rig.http, "disturbed", SPEC)
    until(lambda: list(rig.data.path.glob(f"jobs/{job}/checkpoint.safetensors")), 60)
    rig.data.fill()
    try:
        until(lambda: "a turn of the supervisor failed" in rig.service.log.read_text(), 60)
        refused(rig.http.get("/readyz"), 503, "unavailable")
        refused(rig.http.put("/datasets/large", content=CSV), 507, "storage_full")
        refused(rig.http.put("/datasets/small", content=CSV[:100]), 507, "storage_full")
        table = rig.http.post("/predict?model=old", content=CSV, headers={"Content-Type": "text/csv"})
        refused(table, 507, "storage_full")
        new = {"inputs": (ROWS + 1).tolist(), "targets": DATA["targets"]}
        refused(rig.http.post("/train", json={"model": "new", **SHORT, "data": new}), 507, "storage_full")
        refused(rig.http.post("/train", json={"model": "new", **SHORT}), 507, "storage_full")
        assert rig.http.get(f"/jobs/{job}").json()["state"] == "running"
        serves(rig)
    finally:
        rig.data.free()
    disturbed = finished(rig.http, job)
    assert disturbed["state"] == "succeeded", disturbed["error"]
    assert weights(rig, disturbed) == weights(rig, undisturbed)
    assert rig.http.get("/readyz").status_code == 200
    assert rig.http.put("/datasets/small", content=CSV[:100]).status_code == 201
    assert not list(rig.data.path.glob("datasets/.uploads/*"))


def test_a_full_disk_of_models(rig: Rig) -> None:
    archive = rig.http.get("/models/old/versions/1/archive").content
    rig.models.fill()
    try:
        job = submit(rig.http, "unpublished", SHORT)
        assert "No space left on device" in waits_to_be_stored(rig, job)
        refused(rig.http.post("/models/copy/versions", content=archive), 507, "storage_full")
        refused(rig.http.put("/models/old/aliases/champion", json={"version": "1"}), 507, "storage_full")
        serves(rig)
        assert rig.http.get("/models/unpublished").status_code == 404
    finally:
        rig.models.free()
    stored = finished(rig.http, job)
    assert stored["state"] == "succeeded", stored["error"]
    assert weights(rig, stored) == weights(rig, train(rig.http, "unpublished", SHORT))
    assert rig.http.post("/models/copy/versions", content=archive).status_code == 201
    serves(rig, "copy")
    assert not list(rig.models.path.glob(".staging/*"))


def test_a_read_only_disk_of_models(rig: Rig) -> None:
    rig.models.forbid_writing()
    try:
        job = submit(rig.http, "unpublished", SHORT)
        assert "Read-only file system" in waits_to_be_stored(rig, job)
        refused(rig.http.delete("/models/old/versions/1"), 503, "storage_failed")
        refused(rig.http.put("/models/old/aliases/champion", json={"version": "1"}), 503, "storage_failed")
        refused(rig.http.get("/readyz"), 503, "unavailable")
        serves(rig)
    finally:
        rig.models.allow_writing()
    assert finished(rig.http, job)["state"] == "succeeded"
    assert rig.http.put("/models/old/aliases/champion", json={"version": "1"}).status_code == 200
    assert train(rig.http, "unpublished", SHORT)["state"] == "succeeded"


@pytest.mark.parametrize("folder", ["jobs", "datasets"])
def test_read_only_data(rig: Rig, folder: str) -> None:
    new = {"inputs": (ROWS + 2).tolist(), "targets": DATA["targets"]}
    with read_only(rig.data.path / folder):
        if folder == "jobs":
            job = train(rig.http, "unwritten", SHORT)
            assert (job["state"], job["error"]["code"]) == ("failed", "storage_failed")
        else:
            refused(rig.http.put("/datasets/other", content=CSV[:96]), 503, "storage_failed")
            refused(rig.http.post("/train", json={"model": "new", **SHORT, "data": new}), 503, "storage_failed")
        serves(rig)
    assert train(rig.http, "unwritten", SHORT | {"data": new})["state"] == "succeeded"


def test_a_database_that_takes_no_more_writes(start_service: Callable[..., Service]) -> None:
    """As on a disk that has gone read-only under a service at work."""
    service = start_service()
    with httpx.Client(base_url=service.url, timeout=60) as http:
        assert train(http, "old", SHORT)["state"] == "succeeded"
        with immutable(list((service.root / "data").glob("gradserve.db*"))):
            refused(http.post("/train", json={"model": "new", **SHORT}), 503, "storage_failed")
            refused(http.get("/readyz"), 503, "unavailable")
            assert http.post("/predict", json={"model": "old", "inputs": DATA["inputs"][:3]}).status_code == 200
            assert [job["state"] for job in http.get("/jobs").json()["data"]] == ["succeeded"]
        assert train(http, "new", SHORT)["state"] == "succeeded"
        assert http.get("/readyz").status_code == 200


def test_a_start_on_a_full_disk_is_refused_in_a_sentence(rig: Rig, tmp_path: Path) -> None:
    """So that whoever manages the service tries again; it is no start of half a service."""
    other = Service(tmp_path, settings={"GRADSERVE_DATA_DIR": str(rig.data.path / "other")})
    (rig.data.path / "other").mkdir()
    rig.data.fill()
    try:
        with pytest.raises(ServiceDied, match="ended with status 1") as caught:
            other.start()
    finally:
        rig.data.free()
    assert "Error: " in str(caught.value)
    assert "Traceback" not in str(caught.value)
    other.start()
    other.stop()
