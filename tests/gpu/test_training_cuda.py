"""Runs on a CUDA device: where rows are, in which precision, and what happens when memory runs out."""

from typing import Any

import pytest
import torch

from app.errors import OutOfMemory
from app.jobs.training import _out_of_memory_explained
from app.learning import rows
from app.learning.devices import devices, resolve_device
from tests.unit.learning.runs import Watcher, run, session, weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
LAST = f"cuda:{torch.cuda.device_count() - 1}"


def losses(**spec: Any) -> list[float]:
    watcher = Watcher()
    run(session(**({"device": "cuda:0"} | spec)), watcher)
    return [epoch["train_loss"] for epoch in watcher.history]


def test_auto_is_a_card() -> None:
    assert resolve_device("auto") == resolve_device("cuda") == "cuda:0"
    assert resolve_device(LAST) == LAST
    assert [found["device"] for found in devices()][-1] == LAST


@pytest.mark.parametrize("device", ["cuda:0", LAST])
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_a_card_learns_what_the_cpu_learns(device: str, engine: str) -> None:
    found = session(device=device, engine=engine)
    assert {value.device for value in found.network.parameters()} == {torch.device(device)}
    assert losses(device=device, engine=engine) == pytest.approx(losses(device="cpu"), rel=1e-3)


def test_rows_stay_on_the_card_where_they_fit_and_come_through_pinned_memory_where_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resident = session(device="cuda:0")
    assert resident.train.inputs.is_cuda
    run(resident)
    monkeypatch.setattr(rows, "room_on", lambda _device: 0)
    streamed = session(device="cuda:0")
    assert not streamed.train.inputs.is_cuda
    assert rows._send(streamed.train.inputs, streamed.device).is_cuda
    run(streamed)
    for name, value in weights(resident).items():
        assert torch.equal(value, weights(streamed)[name]), name


@pytest.mark.parametrize("precision", ["tf32", "bfloat16", "float16"])
def test_other_precisions_learn(precision: str) -> None:
    assert losses(precision=precision) == pytest.approx(losses(), rel=0.05)
    torch.set_float32_matmul_precision("highest")


def test_a_resumed_run_ends_as_an_undisturbed_one() -> None:
    spec: dict[str, Any] = {"device": LAST, "precision": "float16", "stop": {"max_steps": 40}}
    spec["network"] = {"hidden_features": [16], "dropout": 0.5}
    undisturbed = session(**spec)
    run(undisturbed)
    killed, resumed = session(**spec), session(**spec)
    assert run(killed, Watcher(lambda state: "pause" if state.step == 13 else None)) == "pause"
    tensors, position = killed.export()
    resumed.load({name: value.cpu().clone() for name, value in tensors.items()}, position)
    run(resumed)
    for name, value in weights(undisturbed).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_out_of_memory_says_how_much_and_leaves_the_card_free() -> None:
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    with pytest.raises(OutOfMemory, match=r"[\d.]+ [GMT]iB"), _out_of_memory_explained():
        torch.empty(2 * free, dtype=torch.uint8, device="cuda")
    assert torch.cuda.mem_get_info()[0] == pytest.approx(free, rel=0.05)
