"""What a running service exports answers as the service does."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import onnxruntime
import polars as pl
import pytest

from scripts.service import Service
from tests.published import COLUMNS, DRAWN, FEATURES, columns_model, publish
from tests.samples import untrained


@pytest.fixture(scope="module", autouse=True)
def published(service: Service) -> None:
    publish(service.root / "models", "exported", columns_model())
    when = pl.Series(10**15 + 10**13 * row for row in range(COLUMNS.height)).cast(pl.Datetime("us"))
    publish(service.root / "models", "times", untrained(COLUMNS.select("y", when=when), **DRAWN))
    publish(service.root / "models", "named", untrained(COLUMNS.select("y", predictions="z")))


def feed_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    numbers = {
        name: np.array([[np.nan if row[name] is None else row[name]] for row in rows], dtype)
        for name, dtype in (("size", np.float64), ("count", np.float64), ("kept", np.bool_))
    }
    return numbers | {"color": np.array([[row["color"] or ""] for row in rows], dtype=object)}


def test_onnx(service: Service) -> None:
    answer = httpx.get(f"{service.url}/models/exported/versions/1/export", params={"format": "onnx"}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-disposition"] == 'attachment; filename="exported-1.onnx"'
    rows = COLUMNS.select(FEATURES).to_dicts()
    said = httpx.post(f"{service.url}/predict", json={"model": "exported", "inputs": rows}).json()
    session = onnxruntime.InferenceSession(answer.content, providers=["CPUExecutionProvider"])
    labels, probabilities = session.run(["predictions", "probabilities"], feed_of(rows))
    assert labels.ravel().tolist() == said["predictions"]
    np.testing.assert_allclose(probabilities, said["probabilities"], rtol=1e-4)


def test_times_go_in_as_microseconds(service: Service) -> None:
    answer = httpx.get(f"{service.url}/models/times/versions/1/export", timeout=60)
    assert answer.status_code == 200, answer.text
    times = ["2002-02-28T12:30:00", "2020-02-29", None]
    rows = [{"when": time} for time in times]
    said = httpx.post(f"{service.url}/predict", json={"model": "times", "inputs": rows}).json()
    session = onnxruntime.InferenceSession(answer.content, providers=["CPUExecutionProvider"])
    feed = {"when": np.array(times, "datetime64[us]").astype(np.int64)[:, None]}
    assert len(set(said["predictions"])) == 3
    np.testing.assert_allclose(session.run(["predictions"], feed)[0].ravel(), said["predictions"], rtol=1e-4)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("named/versions/1/export", 422, "not_exportable"),
        ("exported/versions/9/export", 404, "version_not_found"),
        ("exported/versions/1/export?format=pmml", 422, "invalid_input"),
    ],
)
def test_refusals(service: Service, path: str, status: int, code: str) -> None:
    answer = httpx.get(f"{service.url}/models/{path}", timeout=60)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_what_goes_on_meanwhile_is_not_disturbed(service: Service) -> None:
    """torch's exporter changes what the rest of its process looks at while it makes or loads a network."""
    table = {"inputs": [[row % 4, row % 3] for row in range(20)], "targets": [row * 1.5 for row in range(20)]}
    embedding = {"type": "embedding", "num_embeddings": 4, "embedding_features": 3}
    network = {"input_shape": [2], "layers": [embedding, {"type": "gru", "hidden_features": 4}]}
    spec = {"model": "gru", "data": table, "network": network, "stop": {"max_epochs": 1}}
    with ThreadPoolExecutor(1) as threads, httpx.Client(base_url=service.url, timeout=60) as client:
        client.post("/train", json=spec, headers={"Prefer": "wait=60"}).raise_for_status()
        export = threads.submit(httpx.get, f"{service.url}/models/gru/versions/1/export", timeout=60)
        statuses = []
        while not export.done():
            statuses.append(client.post("/train", params={"dry_run": "true"}, json=spec).status_code)
            client.post("/v2/repository/models/gru/unload").raise_for_status()
            statuses.append(client.post("/predict", json={"model": "gru", "inputs": [[1, 2]]}).status_code)
        assert export.result().status_code == 200
    assert len(statuses) > 10
    assert set(statuses) == {200}
