"""What is deleted while a job that was acknowledged needs it stays for that job, and no longer."""

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file

from app.storage.backup import back_up, places_of, restore
from scripts.service import Service
from tests.waiting import until

ROWS = np.random.default_rng(3).standard_normal((200, 3))
CSV = "a,b,c,y\n" + "\n".join(f"{a},{b},{c},{a - b}" for a, b, c in ROWS)
SHORT: dict[str, Any] = {"data": {"dataset": "rows", "target": "y"}, "stop": {"max_epochs": 2}}
LONG = SHORT | {"stop": {"max_epochs": 1_000_000}, "engine": "eager"}
SETTINGS = {
    "GRADSERVE_MAX_RUNNING_JOBS": "1",
    "GRADSERVE_HOUSEKEEPING_INTERVAL_SECONDS": "0.2",
    "GRADSERVE_KEEP_ORPHANS_SECONDS": "0.2",
}


@pytest.fixture
def service(start_service: Callable[..., Service]) -> Service:
    return start_service(**SETTINGS)


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    """A service with the dataset `rows` and a version of the model `start`."""
    with httpx.Client(base_url=service.url, timeout=60) as http:
        assert http.put("/datasets/rows", content=CSV).status_code == 201
        assert ended(http, submit(http, "start", SHORT))["state"] == "succeeded"
        yield http


def submit(http: httpx.Client, model: str, spec: dict[str, Any], **headers: str) -> str:
    answer = http.post("/train", json={"model": model, **spec}, headers=headers)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def ended(http: httpx.Client, job: str) -> dict[str, Any]:
    found: dict[str, Any] = until(lambda: (seen := http.get(f"/jobs/{job}").json())["terminal"] and seen, 60)
    return found


def weights(service: Service, job: dict[str, Any]) -> dict[str, Any]:
    return dict(load_file(service.root / "models" / job["model"] / job["version"] / "model.safetensors"))


def num_kept(service: Service) -> int:
    return len(list((service.root / "models" / ".trash").glob("*")))


@pytest.mark.parametrize("path", ["/models/start/versions/1", "/models/start"])
def test_a_queued_job_keeps_what_it_begins_with(service: Service, http: httpx.Client, path: str) -> None:
    going_on = SHORT | {"warm_start": {"model": "start"}}
    undisturbed = ended(http, submit(http, "undisturbed", going_on))
    first = submit(http, "first", LONG)
    second, third = submit(http, "second", going_on), submit(http, "third", going_on)
    for gone in (path, "/datasets/rows"):
        assert http.delete(gone).status_code == 204
    assert http.post("/train", json={"model": "late", **going_on}).json()["code"] == "dataset_not_found"
    assert http.get("/models/start").status_code == 404
    service.kill()
    service.start()
    http.post(f"/jobs/{third}/cancel").raise_for_status()
    http.post(f"/jobs/{first}/cancel").raise_for_status()
    job = ended(http, second)
    assert job["state"] == "succeeded", job["error"]
    expected, found = weights(service, undisturbed), weights(service, job)
    for name in expected:
        np.testing.assert_array_equal(expected[name], found[name], err_msg=name)
    until(lambda: not num_kept(service), 30)


def test_a_backup_has_what_a_queued_job_begins_with(service: Service, http: httpx.Client, tmp_path: Path) -> None:
    submit(http, "first", LONG | {"stop": {"max_epochs": 200}})
    job = submit(http, "second", SHORT | {"warm_start": {"model": "start"}})
    assert http.delete("/models/start").status_code == 204
    assert not http.get(f"/jobs/{job}").json()["terminal"]
    places, others = (
        places_of(root / "data", root / "models", f"sqlite:///{root}/data/gradserve.db")
        for root in (service.root, tmp_path / "restored")
    )
    back_up(places, tmp_path / "copy")
    service.kill()
    restore(tmp_path / "copy", others)
    with Service(tmp_path / "restored") as restored, httpx.Client(base_url=restored.url) as http:
        assert ended(http, job)["state"] == "succeeded"


def test_a_download_that_has_begun_is_whole(service: Service, http: httpx.Client) -> None:
    config = service.root / "models" / "start" / "1" / "config.json"
    config.with_name("model.safetensors").write_bytes(bytes(2**26))  # more than is under way to who does not read
    with http.stream("GET", "/models/start/versions/1/archive") as answer:
        blocks = answer.iter_bytes()
        first, said = next(blocks), config.read_bytes()
        assert http.delete("/models/start").status_code == 204
        whole = first + b"".join(blocks)
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        opened = archive.extractfile("start-1/config.json")
        assert opened
        assert opened.read() == said
        assert archive.getmember("start-1/model.safetensors").size == 2**26


def test_what_no_unfinished_job_begins_with_goes_at_once(service: Service, http: httpx.Client) -> None:
    going_on = SHORT | {"warm_start": {"model": "start"}}
    assert ended(http, submit(http, "start", going_on))["state"] == "succeeded"
    assert http.post("/train?dry_run=true", json={"model": "start", **going_on}).status_code == 200
    first = submit(http, "first", LONG)
    waiting = submit(http, "second", going_on)
    assert http.delete("/models/start/versions/1").status_code == 204
    assert num_kept(service) == 0
    http.post(f"/jobs/{waiting}/pause").raise_for_status()
    assert http.delete("/models/start").status_code == 204
    assert num_kept(service) == 1
    http.post(f"/jobs/{waiting}/cancel").raise_for_status()
    http.delete(f"/jobs/{waiting}").raise_for_status()
    until(lambda: not num_kept(service), 30)
    http.post(f"/jobs/{first}/cancel").raise_for_status()


def test_a_request_that_is_sent_again_finds_its_job_though_all_that_it_names_is_gone(http: httpx.Client) -> None:
    going_on = SHORT | {"warm_start": {"model": "start"}}
    job = submit(http, "retried", going_on, **{"Idempotency-Key": "once"})
    for gone in ("/models/start", "/datasets/rows"):
        assert http.delete(gone).status_code == 204
    assert submit(http, "retried", going_on, **{"Idempotency-Key": "once"}) == job
    assert ended(http, job)["state"] == "succeeded"
    other = http.post("/train", json={"model": "other", **going_on}, headers={"Idempotency-Key": "once"})
    assert other.json()["code"] == "idempotency_key_reused"
