"""What is deleted while a job that was acknowledged needs it stays for that job, and no longer."""

import io
import itertools
import tarfile
from collections.abc import Iterator
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


numbers = itertools.count()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all of these tests: each has models of its own, and leaves no job unfinished."""
    with Service(tmp_path_factory.mktemp("deletions"), settings=SETTINGS) as running:
        yield running


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=60) as http:
        yield http


def begin(http: httpx.Client) -> str:
    """A new model with a version, of the dataset `rows`, which is there again."""
    model = f"start{next(numbers)}"
    assert http.put("/datasets/rows", content=CSV).status_code in (200, 201)
    assert ended(http, submit(http, model, SHORT))["state"] == "succeeded"
    return model


def going_on(model: str) -> dict[str, Any]:
    return SHORT | {"warm_start": {"model": model}}


def submit(http: httpx.Client, model: str, spec: dict[str, Any], **headers: str) -> str:
    answer = http.post("/train", json={"model": model, **spec}, headers=headers)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def ended(http: httpx.Client, job: str) -> dict[str, Any]:
    found: dict[str, Any] = until(lambda: (seen := http.get(f"/jobs/{job}").json())["terminal"] and seen, 60)
    return found


def weights(service: Service, job: dict[str, Any]) -> dict[str, Any]:
    return dict(load_file(service.root / "models" / job["model"] / job["version"] / "model.safetensors"))


def num_kept(service: Service, model: str) -> int:
    return len(list((service.root / "models" / ".trash").glob(f"{model}@*")))


def test_a_queued_job_keeps_what_it_begins_with(service: Service, http: httpx.Client) -> None:
    starts = begin(http), begin(http)
    undisturbed = [ended(http, submit(http, f"undisturbed-{start}", going_on(start))) for start in starts]
    first = submit(http, "first", LONG)
    kept = [submit(http, f"second-{start}", going_on(start)) for start in starts]
    unwanted = [submit(http, f"third-{start}", going_on(start)) for start in starts]
    for gone in (f"/models/{starts[0]}/versions/1", f"/models/{starts[1]}", "/datasets/rows"):
        assert http.delete(gone).status_code == 204
    for start in starts:
        assert http.post("/train", json={"model": "late", **going_on(start)}).json()["code"] == "dataset_not_found"
        assert http.get(f"/models/{start}").status_code == 404
    service.kill()
    service.start()
    for job in (*unwanted, first):
        http.post(f"/jobs/{job}/cancel").raise_for_status()
    for before, job in zip(undisturbed, kept, strict=True):
        after = ended(http, job)
        assert after["state"] == "succeeded", after["error"]
        expected, found = weights(service, before), weights(service, after)
        for name in expected:
            np.testing.assert_array_equal(expected[name], found[name], err_msg=name)
    until(lambda: not any(num_kept(service, start) for start in starts), 30)


def test_a_backup_has_what_a_queued_job_begins_with(service: Service, http: httpx.Client, tmp_path: Path) -> None:
    start = begin(http)
    first = submit(http, "first", LONG)
    job = submit(http, "second", going_on(start))
    assert http.delete(f"/models/{start}").status_code == 204
    assert not http.get(f"/jobs/{job}").json()["terminal"]
    places, others = (
        places_of(root / "data", root / "models", f"sqlite:///{root}/data/gradserve.db")
        for root in (service.root, tmp_path / "restored")
    )
    back_up(places, tmp_path / "copy")
    for one in (job, first):
        http.post(f"/jobs/{one}/cancel").raise_for_status()
    restore(tmp_path / "copy", others)
    with Service(tmp_path / "restored") as restored, httpx.Client(base_url=restored.url) as http:
        http.post(f"/jobs/{first}/cancel").raise_for_status()
        assert ended(http, job)["state"] == "succeeded"


def test_a_download_that_has_begun_is_whole(service: Service, http: httpx.Client) -> None:
    start = begin(http)
    config = service.root / "models" / start / "1" / "config.json"
    config.with_name("model.safetensors").write_bytes(bytes(2**26))  # more than is under way to who does not read
    with http.stream("GET", f"/models/{start}/versions/1/archive") as answer:
        blocks = answer.iter_bytes()
        first, said = next(blocks), config.read_bytes()
        assert http.delete(f"/models/{start}").status_code == 204
        whole = first + b"".join(blocks)
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        opened = archive.extractfile(f"{start}-1/config.json")
        assert opened
        assert opened.read() == said
        assert archive.getmember(f"{start}-1/model.safetensors").size == 2**26


def test_what_no_unfinished_job_begins_with_goes_at_once(service: Service, http: httpx.Client) -> None:
    start = begin(http)
    assert ended(http, submit(http, start, going_on(start)))["state"] == "succeeded"
    assert http.post("/train?dry_run=true", json={"model": start, **going_on(start)}).status_code == 200
    first = submit(http, "first", LONG)
    waiting = submit(http, "second", going_on(start))
    assert http.delete(f"/models/{start}/versions/1").status_code == 204
    assert num_kept(service, start) == 0
    http.post(f"/jobs/{waiting}/pause").raise_for_status()
    assert http.delete(f"/models/{start}").status_code == 204
    assert num_kept(service, start) == 1
    http.post(f"/jobs/{waiting}/cancel").raise_for_status()
    http.delete(f"/jobs/{waiting}").raise_for_status()
    until(lambda: not num_kept(service, start), 30)
    http.post(f"/jobs/{first}/cancel").raise_for_status()


def test_a_request_that_is_sent_again_finds_its_job_though_all_that_it_names_is_gone(http: httpx.Client) -> None:
    start = begin(http)
    job = submit(http, "retried", going_on(start), **{"Idempotency-Key": "once"})
    for gone in (f"/models/{start}", "/datasets/rows"):
        assert http.delete(gone).status_code == 204
    assert submit(http, "retried", going_on(start), **{"Idempotency-Key": "once"}) == job
    assert ended(http, job)["state"] == "succeeded"
    other = http.post("/train", json={"model": "other", **going_on(start)}, headers={"Idempotency-Key": "once"})
    assert other.json()["code"] == "idempotency_key_reused"
