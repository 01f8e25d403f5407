"""Versions that are served on a CUDA device answer as on the CPU, and where it has no room they are served there."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor

from app.learning.devices import free_cards
from app.learning.evaluate import forward_all
from app.serving import served_model
from app.serving.cache import ModelCache
from app.serving.served_model import ServedModel
from app.storage.counters import Counters
from app.storage.models import ModelStore
from tests.logs import logged_by
from tests.samples import publish, untrained

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
FRAME = pl.DataFrame({"x": [1.0, 2.0, None], "k": ["u", "v", "u"], "y": [0.5, 1.5, 2.75]})


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def published(store: ModelStore, hidden_features: int = 8, **data: Any) -> str:
    network = {"hidden_features": [hidden_features]}
    return publish(store, untrained(FRAME, network=network, init={"weight": "normal"}, data=data, validation=None))


@pytest.mark.parametrize("data", [{}, {"features": ["k"]}])
def test_a_card_answers_what_the_cpu_does(store: ModelStore, data: dict[str, Any]) -> None:
    version = store.get("m", published(store, **data))
    of_cpu, of_card = (ServedModel.load(version, device) for device in ("cpu", "cuda:0"))
    assert (of_cpu.device, of_card.device) == ("cpu", "cuda")
    rows = of_cpu.model.features.transform(FRAME)
    torch.testing.assert_close(of_card.model.predict(rows), of_cpu.model.predict(rows), rtol=1e-3, atol=1e-5)


def test_a_row_or_two_are_left_to_the_host(store: ModelStore, tmp_path: Path) -> None:
    publish(store, untrained(FRAME.drop_nulls(), data={"features": ["x"]}, validation=None), "plain")
    assert ServedModel.load(store.get("plain", "1"), "cuda:0").dense is not None


def test_a_card_that_is_full_leaves_versions_to_the_cpu(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(network: Any, rows: Tensor, *, device: torch.device) -> Tensor:
        if device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return forward_all(network, rows, device=device)

    version = store.get("m", published(store))
    monkeypatch.setattr("app.learning.model.forward_all", forward)
    with logged_by(served_model.__name__) as lines:
        found = ServedModel.load(version, "cuda:0")
    assert found.device == "cpu"
    assert [(line["model"], "20.00 MiB" in line["detail"]) for line in lines] == [("m", True)]
    rows = found.model.features.transform(FRAME)
    assert torch.equal(found.model.predict(rows), ServedModel.load(version, "cpu").model.predict(rows))


@pytest.mark.real_card
def test_a_version_that_leaves_the_memory_leaves_the_card(store: ModelStore, tmp_path: Path) -> None:
    published(store, hidden_features=2**22)
    free_cards()
    before = torch.cuda.memory_reserved()
    cache = ModelCache(store, Counters(tmp_path / "counters"), max_bytes=2**30, device="cuda:0")
    cache.get("m", None)
    assert torch.cuda.memory_reserved() > before + 2**24
    cache.unload("m")
    assert torch.cuda.memory_reserved() == before
