"""What is counted of predictions, by every protocol alike: in `/metrics` and in the Open Inference Protocol's stats."""

from collections.abc import Iterator
from typing import Any

import httpx
import polars as pl
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.storage.models import ModelStore
from tests.api.service import service, train
from tests.samples import publish, untrained

MODEL = untrained(pl.DataFrame({"x0": [1.0, 2.0, 3.0], "x1": [0.5, 0.0, 1.0], "y": [0.5, 1.5, 2.75]}))
ROWS = [[1, 2], [3, 4], [5, 6]]
V2 = {"name": "inputs", "shape": [3, 2], "datatype": "FP32", "data": ROWS}
DURATIONS = ("queue", "compute_input", "compute_infer", "compute_output")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    store = ModelStore(tmp_path_factory.mktemp("service") / "models")
    for name in ("json", "table", "v2", "mlflow", "mlflow-table", "failed", "two", "two"):
        publish(store, MODEL, name)
    with service(store.root.parent) as client:
        yield client


def sample(client: httpx.Client, sample_name: str, **labels: str) -> float:
    """A number of /metrics, under the name that stands there; 0 where it is not."""
    for line in client.get("/metrics").text.splitlines():
        if line.startswith((sample_name + "{", sample_name + " ")):
            (family,) = text_string_to_metric_families(line + "\n")
            (found,) = family.samples
            if found.labels == labels:
                return float(found.value)
    return 0.0


def stats(client: httpx.Client, name: str, version: str = "1") -> Any:
    (found,) = client.get(f"/v2/models/{name}/versions/{version}/stats").json()["model_stats"]
    return found


def ask(client: httpx.Client, name: str) -> httpx.Response:
    csv = {"content": b"x0,x1\n1,2\n3,4\n5,6\n", "headers": {"Content-Type": "text/csv"}}
    if name == "table":
        return client.post("/predict?model=table", **csv)
    if name == "mlflow-table":
        return client.post("/invocations?model=mlflow-table", **csv)
    if name == "v2":
        return client.post("/v2/models/v2/infer", json={"inputs": [V2]})
    if name == "mlflow":
        return client.post("/invocations?model=mlflow", json={"instances": ROWS})
    return client.post("/predict", json={"model": name, "inputs": ROWS})


@pytest.mark.parametrize("name", ["json", "table", "v2", "mlflow", "mlflow-table"])
def test_requests_are_counted_by_every_protocol(client: httpx.Client, name: str) -> None:
    for _ in range(4):
        assert ask(client, name).status_code == 200
    found, labels = stats(client, name), {"model": name, "version": "1"}
    assert (found["inference_count"], found["execution_count"]) == (12, 4)
    assert found["last_inference"] > 1.6e12
    times = found["inference_stats"]
    assert {times[part]["count"] for part in ("success", *DURATIONS)} == {4}
    assert times["fail"] == {"count": 0, "ns": 0}
    assert sum(times[part]["ns"] for part in DURATIONS) <= times["success"]["ns"]
    assert min(times[part]["ns"] for part in DURATIONS) > 0
    assert sample(client, "gradserve_inference_request_success", **labels) == 4
    assert sample(client, "gradserve_inference_request_failure", **labels) == 0
    assert sample(client, "gradserve_inference_count", **labels) == 12
    assert sample(client, "gradserve_inference_exec_count", **labels) == 4
    for part in ("request", *DURATIONS):
        of_stats = times["success" if part == "request" else part]["ns"]
        assert sample(client, f"gradserve_inference_{part}_duration_us", **labels) == pytest.approx(of_stats / 1000)
    assert sample(client, "gradserve_inference_request_seconds_count", **labels) == 4
    total = sample(client, "gradserve_inference_request_seconds_sum", **labels)
    assert total == pytest.approx(times["success"]["ns"] / 1e9)


def test_requests_that_fail_are_counted_as_such(client: httpx.Client) -> None:
    assert client.post("/predict", json={"model": "failed", "inputs": [[1]]}).status_code == 422
    assert client.post("/v2/models/failed/infer", content=b"{").status_code == 400
    content = {"content": b"x0,x1\n1,wrong\n", "headers": {"Content-Type": "text/csv"}}
    assert client.post("/predict?model=failed", **content).status_code == 422
    found = stats(client, "failed")
    assert found["inference_stats"]["fail"]["count"] == 3
    assert found["inference_stats"]["success"]["count"] == found["inference_count"] == 0
    assert sample(client, "gradserve_inference_request_failure", model="failed", version="1") == 3


def test_versions_are_counted_apart(client: httpx.Client) -> None:
    for version, times in (("1", 3), ("2", 2)):
        for _ in range(times):
            client.post("/predict", json={"model": "two", "version": version, "inputs": ROWS})
    for version, times in (("1", 3), ("2", 2)):
        assert sample(client, "gradserve_inference_request_success", model="two", version=version) == times
    every = {found["version"]: found for found in client.get("/v2/models/two/stats").json()["model_stats"]}
    assert {version: found["inference_count"] for version, found in every.items()} == {"1": 9, "2": 6}


def test_epochs_and_steps_are_timed(client: httpx.Client) -> None:
    job = train(client, {"model": "timed", "data": {"inputs": ROWS, "targets": [1, 2, 3]}, "stop": {"max_epochs": 5}})
    assert sample(client, "gradserve_training_epoch_seconds_count", model="timed") == job["progress"]["epoch"] == 5
    assert sample(client, "gradserve_training_step_seconds_count", model="timed") == job["progress"]["step"]
    assert sample(client, "gradserve_training_step_seconds_sum", model="timed") > 0


def test_memory_and_processes(client: httpx.Client) -> None:
    families = {found.name: found for found in text_string_to_metric_families(client.get("/metrics").text)}
    assert [found.value for found in families["gradserve_processes"].samples] == [1]
    (resident,) = families["gradserve_resident_memory_bytes"].samples
    (proportional,) = families["gradserve_proportional_memory_bytes"].samples
    assert resident.labels == proportional.labels
    assert 2**24 < proportional.value <= resident.value


def test_memory_of_models(client: httpx.Client) -> None:
    ask(client, "json")
    families = {found.name: found for found in text_string_to_metric_families(client.get("/metrics").text)}
    (process,) = (found.labels["process"] for found in families["gradserve_resident_memory_bytes"].samples)
    labels = {"model": "json", "version": "1", "device": "cpu", "process": process}
    num_bytes = sum(tensor.nbytes for tensor in MODEL.export()[0].values())
    assert sample(client, "gradserve_model_memory_bytes", **labels) == num_bytes
    assert client.post("/v2/repository/models/json/unload").status_code == 200
    assert 'gradserve_model_memory_bytes{model="json"' not in client.get("/metrics").text


@pytest.mark.parametrize("cards", [[], [(2**30, 2**33)]])
def test_memory_of_cards(client: httpx.Client, monkeypatch: pytest.MonkeyPatch, cards: list[tuple[int, int]]) -> None:
    """There are none where these tests run; what there is shows only on a machine with one."""
    monkeypatch.setattr("app.api.metrics.memory_of_cards", lambda: cards)
    assert ("gradserve_gpu" in client.get("/metrics").text) == bool(cards)
    if cards:
        assert sample(client, "gradserve_gpu_memory_used_bytes", gpu="0") == 2**33 - 2**30
        assert sample(client, "gradserve_gpu_memory_total_bytes", gpu="0") == 2**33


def test_every_family_is_described_once(client: httpx.Client) -> None:
    lines = client.get("/metrics").text.splitlines()
    typed = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(typed) == len(set(typed))
    samples = {line.split("{")[0].split(" ")[0] for line in lines if not line.startswith("#")}
    for name in samples:
        assert name.startswith("gradserve_")
        assert {name, name.rpartition("_")[0]} & set(typed), name


def test_methods_that_no_route_has_are_one(client: httpx.Client) -> None:
    for method in ("PROPFIND", "MKCOL"):
        client.request(method, "/models")
    text = client.get("/metrics").text
    assert 'method="other"' in text
    assert "MKCOL" not in text
