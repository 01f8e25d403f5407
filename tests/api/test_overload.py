"""More predictions than can be made: who waits, who is told to come again, and who makes room by leaving."""

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
from torch import Tensor

from app.learning.model import Model
from app.serving.served_model import ServedModel
from app.storage.models import ModelStore
from app.storage.version import Version
from tests.api.service import problem, service, train
from tests.samples import publish, untrained
from tests.waiting import until

ROWS = [[row, 1] for row in range(100)]


class Gate:
    """Passes of many rows wait here, in their threads, until it is opened."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        self._predict = Model.predict

    def predict(self, model: Model, inputs: Tensor) -> Tensor:
        if len(inputs) > 1:
            self.entered.set()
            assert self.opened.wait(60)
        return self._predict(model, inputs)


@pytest.fixture(scope="module")
def small_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with service(tmp_path_factory.mktemp("service"), max_queued_rows=150) as client:
        data = {"inputs": ROWS, "targets": [row for row, _ in ROWS]}
        train(client, {"model": "rows", "data": data, "network": {"hidden_features": [8]}, "stop": {"max_epochs": 1}})
        yield client


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(Model, "predict", lambda model, inputs: gate.predict(model, inputs))
    yield gate
    gate.opened.set()


@pytest.fixture
def others() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def predict(client: httpx.Client, **more: Any) -> httpx.Response:
    with httpx.Client(base_url=client.base_url, timeout=60) as own:
        return own.post("/predict", json={"model": "rows", "inputs": ROWS, **more})


def test_who_finds_no_place_is_told_at_once_and_has_one_when_another_client_leaves(
    small_service: httpx.Client, gate: Gate, others: ThreadPoolExecutor
) -> None:
    body = json.dumps({"model": "rows", "inputs": ROWS})
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with socket.create_connection((small_service.base_url.host, small_service.base_url.port)) as leaving:
        leaving.sendall(f"{head}\r\n\r\n{body}".encode())
        assert gate.entered.wait(30)
        refused = predict(small_service)
        problem(refused, 429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        problem(predict(small_service, inputs=[["no", "number"]] * 100), 429, "overloaded")  # nobody looks at its cells
        assert small_service.get("/healthz").status_code == 200
    waiting = until(lambda: (asked := others.submit(predict, small_service)) and not refused_at_once(asked) and asked)
    gate.opened.set()
    assert waiting.result(60).status_code == 200
    assert len(waiting.result().json()["predictions"]) == len(ROWS)


def test_those_who_wait_for_a_version_hold_up_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(ModelStore(tmp_path / "models"), untrained(pl.DataFrame({"x": [1.0, 2.0], "y": [0.5, 1.5]})))
    entered, opened, load = threading.Event(), threading.Event(), ServedModel.load

    def load_later(version: Version, device: str) -> ServedModel:
        entered.set()
        assert opened.wait(60)
        return load(version, device)

    monkeypatch.setattr(ServedModel, "load", load_later)
    body = json.dumps({"model": "m", "inputs": [[1]]})
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with service(tmp_path) as client, ExitStack() as stack:
        stack.callback(opened.set)
        address = (client.base_url.host, client.base_url.port)
        waiting = [stack.enter_context(socket.create_connection(address, 60)) for _ in range(60)]
        for connection in waiting:
            connection.sendall(f"{head}\r\n\r\n{body}".encode())
        assert entered.wait(30)
        assert client.get("/readyz", timeout=10).status_code == 200
        opened.set()
        assert {connection.recv(12) for connection in waiting} == {b"HTTP/1.1 200"}


def refused_at_once(asked: Future[httpx.Response]) -> bool:
    try:
        return asked.result(0.5).status_code == 429
    except TimeoutError:
        return False


def test_a_deadline_ends_the_wait_and_frees_the_place(
    small_service: httpx.Client, gate: Gate, others: ThreadPoolExecutor
) -> None:
    for _ in range(3):  # none of them leaves anything behind that would count
        problem(predict(small_service, timeout_seconds=0.05), 429, "deadline_exceeded")
    gate.opened.set()
    assert predict(small_service).status_code == 200
