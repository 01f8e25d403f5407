"""Runs on a CUDA device: where rows are, in which precision, by which engine, and what happens when memory runs out."""

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.errors import OutOfMemory
from app.jobs.session import Session, Workplace
from app.jobs.training import _out_of_memory_explained
from app.learning import rows, steps
from app.learning.compiled import CompiledSteps
from app.learning.devices import devices, free_cards, resolve_device, set_float32_precision
from app.storage.checkpoints import Checkpoints
from tests.unit.learning.runs import Watcher, run, session, stands_still, weights
from tests.unit.learning.test_optimizers import TABLE as OPTIMIZERS
from tests.unit.learning.test_schedules import TABLE as SCHEDULES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
LAST = f"cuda:{torch.cuda.device_count() - 1}"
LEARNS: dict[str, Any] = {"stop": {"max_epochs": 40}, "optimizer": {"type": "adam", "learning_rate": 0.02}}


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def start(tmp_path: Path, warnings: list[str]) -> Callable[..., Session]:
    """Makes sessions that have a workplace, as those of jobs do: without one, none is compiled."""
    workplace = Workplace(Checkpoints(tmp_path / "job"), tmp_path / "libraries", tmp_path / "engine", warnings.append)
    return partial(session, workplace=workplace)


def losses(started: Session) -> list[float]:
    watcher = Watcher()
    run(started, watcher)
    return [epoch["train_loss"] for epoch in watcher.history]


def is_captured(started: Session) -> bool:
    return isinstance(started.engine, CompiledSteps) and started.engine._loop is not None


def test_auto_is_a_card() -> None:
    assert resolve_device("auto") == resolve_device("cuda") == "cuda:0"
    assert resolve_device(LAST) == LAST
    assert [found["device"] for found in devices()][-1] == LAST


@pytest.mark.parametrize("device", ["cuda:0", LAST])
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_a_card_learns_what_the_cpu_learns(
    device: str, engine: str, start: Callable[..., Session], warnings: list[str]
) -> None:
    found = start(device=device, engine=engine)
    assert {value.device for value in found.network.parameters()} == {torch.device(device)}
    assert losses(found) == pytest.approx(losses(session()), rel=1e-3)
    assert is_captured(found) is (engine == "compiled")
    assert warnings == []


OPTIONS: list[dict[str, Any]] = [
    *({"optimizer": fields} for fields, _ in OPTIMIZERS),
    *({"schedule": fields} for fields, _ in SCHEDULES),
    {"descent": {"batch_size": 2, "accumulate_steps": 3, "max_grad_norm": 0.1}},
    {"descent": {"batch_size": 7, "sampling": "class_balanced"}, "target": "k", "ema_decay": 0.9},
    {"network": {"hidden_features": [4], "normalization": "batch_norm"}, "freeze": ["layers.0"]},
    {"data": {"features": ["a", "b"], "sample_weight": "w"}, "stop": {"max_epochs": 9, "patience": 2, "min_delta": 9}},
    {"data": {"features": ["a", "k"]}, "descent": {"batch_size": 7}},
    {"loss": {"type": "quantile", "quantile": 0.3}, "validation": None, "stop": {"max_steps": 5}},
]


@pytest.mark.parametrize("spec", OPTIONS, ids=lambda spec: "-".join(spec))
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_whatever_is_in_a_run_a_card_learns_what_the_cpu_learns(
    spec: dict[str, Any], engine: str, start: Callable[..., Session]
) -> None:
    seen = []
    for device in ("cpu", "cuda:0"):
        started = start(device=device, **({"engine": engine} if device == "cuda:0" else {}), **spec)
        run(started, watcher := Watcher())
        history = [{name: value for name, value in row.items() if value is not None} for row in watcher.history]
        seen.append((history, weights(started)))
    (of_cpu, at_end), (of_card, on_card) = seen
    for one, other in zip(of_cpu, of_card, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    for name, value in on_card.items():
        torch.testing.assert_close(value.cpu(), at_end[name], rtol=1e-2, atol=1e-3)


def test_the_host_and_the_card_do_not_mix() -> None:
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(3, device=LAST) + torch.ones(3)
    with pytest.raises(TypeError, match="numpy"):
        torch.ones(3, device=LAST).numpy()


def test_rows_stay_on_the_card_where_they_fit_and_come_through_pinned_memory_where_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Block by block, the next one while the card is busy with the last."""
    resident = session(device="cuda:0", descent={"batch_size": 2})
    assert resident.train.inputs.is_cuda
    run(resident, clock=stands_still)
    pinned: list[Tensor] = []
    pin_memory = Tensor.pin_memory
    monkeypatch.setattr(Tensor, "pin_memory", lambda part: pinned.append(part) or pin_memory(part))
    monkeypatch.setattr(rows, "room_on", lambda _device: 0)
    monkeypatch.setattr(steps, "MAX_GATHER_BYTES", 3 * 2 * resident.train.inputs[:1].nbytes)
    streamed = session(device="cuda:0", descent={"batch_size": 2})
    assert not streamed.train.inputs.is_cuda
    run(streamed, clock=stands_still)
    assert {part.shape[0] for part in pinned if part.ndim == 2} >= {2, 6}
    for name, value in weights(resident).items():
        assert torch.equal(value, weights(streamed)[name]), name


@pytest.mark.parametrize("precision", ["tf32", "bfloat16", "float16"])
def test_other_precisions_learn(precision: str) -> None:
    exact, found = (losses(session(device="cuda:0", precision=each, **LEARNS)) for each in ("float32", precision))
    assert found[-1] < found[0] / 3
    assert found[-1] == pytest.approx(exact[-1], rel=0.2)


@pytest.mark.real_card
@pytest.mark.parametrize(("precision", "rounds"), [("float32", False), ("tf32", True)])
def test_float32_is_not_rounded_in_convolutions_and_recurrent_layers(precision: str, rounds: bool) -> None:
    card = torch.device("cuda:0")
    torch.manual_seed(0)
    layers: list[tuple[torch.nn.Module, Tensor]] = [
        (torch.nn.Conv2d(64, 64, 3), torch.randn(8, 64, 16, 16)),
        (torch.nn.GRU(128, 128, batch_first=True), torch.randn(8, 16, 128)),
        (torch.nn.Linear(512, 512), torch.randn(64, 512)),
    ]
    set_float32_precision(precision, card)
    try:
        for layer, x in layers:
            wanted, found = layer.double()(x.double()), layer.float().to(card)(x.to(card))
            wanted, found = (out[0] if isinstance(out, tuple) else out for out in (wanted, found))
            error = (found.double().cpu() - wanted).norm() / wanted.norm()
            assert (error > 2e-5) is rounds, type(layer).__name__
    finally:
        set_float32_precision("float32", card)


@pytest.mark.parametrize("more", [{"precision": "float16"}, {"engine": "compiled"}])
def test_a_resumed_run_ends_as_an_undisturbed_one(
    more: dict[str, Any], start: Callable[..., Session], warnings: list[str]
) -> None:
    spec: dict[str, Any] = {"device": LAST, "stop": {"max_steps": 40}, "descent": {"batch_size": 4}} | more
    spec["network"] = {"hidden_features": [16], "dropout": 0.5}
    run(undisturbed := start(**spec))
    killed = start(**spec)
    assert run(killed, Watcher(lambda state: "pause" if state.step == 13 else None)) == "pause"
    tensors, position = killed.export()
    resumed = start(**spec)
    resumed.load({name: value.cpu().clone() for name, value in tensors.items()}, position)
    run(resumed)
    for name, value in weights(undisturbed).items():
        assert torch.equal(value, weights(resumed)[name]), name
    assert is_captured(resumed) is ("engine" in more)
    assert warnings == []


@pytest.mark.real_card
def test_out_of_memory_says_how_much() -> None:
    free = torch.cuda.mem_get_info()[0]
    with pytest.raises(OutOfMemory, match=r"[\d.]+ [GMT]iB"), _out_of_memory_explained():
        torch.empty(2 * free, dtype=torch.uint8, device="cuda")


@pytest.mark.real_card
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_a_run_that_has_ended_leaves_the_card_free(engine: str, start: Callable[..., Session]) -> None:
    def train() -> int:
        run(start(device="cuda:0", engine=engine, network={"hidden_features": [3000, 3000]}))
        return torch.cuda.memory_reserved()

    train()  # what libraries keep for good is there after the first
    before = _reserved()
    assert train() > before + 2**26
    assert _reserved() < before + 2**24


def _reserved() -> int:
    gc.collect()
    free_cards()
    return torch.cuda.memory_reserved()
