"""The step that is captured on a CUDA device, without one: what it computes, and that nothing of it is on the host."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from app.learning.cuda_graph import Turn
from app.learning.layers import build_sequence
from app.learning.losses import build_loss
from app.learning.modules import reshape
from app.learning.network import initialize
from app.learning.rows import Rows
from app.learning.run_tensors import Loop, RunTensors
from app.learning.step_graph import StepTensors
from app.specs import optimizers as optimizer_specs
from app.specs.network import InitSpec
from tests.unit.learning.cases import (
    NUM_ROWS,
    RATES,
    Case,
    assert_close,
    build,
    case_of_everything,
    mlp,
    some_rows,
    with_dropout,
)
from tests.unit.learning.test_compiled import LOSSES, OPTIMIZERS, train_with
from tests.unit.learning.test_network import EXAMPLES, Shape, layer


def turn_by_turn(tensors: RunTensors) -> Loop:
    """One turn after another, as a graph would be replayed."""
    turn = Turn(tensors.recipe, tensors.tensors)

    def loop(first: int, last: int) -> None:
        turn.place.fill_(first)
        for _ in range(first, last):
            turn()

    return loop


@pytest.mark.parametrize("min_alone", [2**16, 1])
def test_turns_are_the_steps_of_the_eager_engine(min_alone: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether parameters are joined, or worked on where they lie."""
    monkeypatch.setattr("app.learning.run_tensors.MIN_ALONE", min_alone)
    found, expected = case_of_everything(), case_of_everything()
    torch.testing.assert_close(train_with(turn_by_turn, found, 8), expected.train(expected.eager, 8))
    assert_close(found, expected)


# ---- a capture takes no operation that reads or writes the host's memory: the meta device stands for another one


class NumbersWatched(TorchFunctionMode):
    """Notes tensors that are made from Python's numbers: they come from the host, wherever they go."""

    FROM_NUMBERS = (torch.tensor, torch.as_tensor, torch.from_numpy, Tensor.new_tensor)

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[str] = []

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_list = function in (Tensor.__getitem__, Tensor.__setitem__) and any(
            isinstance(index, list) for index in (args[1] if isinstance(args[1], tuple) else args[1:2])
        )
        if by_list or function in self.FROM_NUMBERS:
            self.noted.append(function.__name__)
        return function(*args, **(kwargs or {}))


class HostWatched(TorchDispatchMode):
    """Notes every operation that takes or gives a tensor of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[str] = []

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        tensors = (value for value in tree_iter((args, kwargs, out)) if isinstance(value, Tensor))
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.noted.append(str(function))
        return out


def on_host(case: Case) -> list[str]:
    """Operations of a turn that read or write the host's memory, where all that it is given is elsewhere."""
    case.eager.run(case.rows, None, 0, RATES[:1])
    tensors = RunTensors(case.eager, case.optimizer, case.rows)
    state, fixed, streams = ([tensor.to("meta") for tensor in part] for part in _parts(tensors.tensors))
    turn = Turn(tensors.recipe, StepTensors(state, fixed, streams, tensors.tensors.losses.to("meta")))
    with NumbersWatched() as numbers, HostWatched() as watched:
        turn()
    return numbers.noted + watched.noted


def _parts(tensors: StepTensors) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    return tensors.state, tensors.fixed, tensors.streams


def test_frozen_parts_clipping_and_the_average_stay_on_the_device() -> None:
    assert on_host(case_of_everything()) == []


@pytest.mark.parametrize("optimizer", [spec for spec in OPTIMIZERS if spec.type != "nadam"], ids=lambda spec: spec.type)
def test_every_optimizer_stays_on_the_device(optimizer: Any) -> None:
    assert on_host(build(with_dropout, optimizer=optimizer)) == []


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda spec: spec.type)
def test_every_loss_stays_on_the_device(loss: Any, weighted: bool) -> None:
    classes = 3 if loss.type == "cross_entropy" else 0
    rows = some_rows(classes=classes, weighted=weighted)
    assert on_host(build(lambda: mlp(num_outputs=classes or 1), loss=build_loss(loss), rows=rows)) == []


@pytest.mark.parametrize(("fields", "shape", "out"), EXAMPLES)
def test_every_layer_stays_on_the_device(fields: dict[str, Any], shape: Shape, out: Shape) -> None:
    def network() -> nn.Sequential:
        with torch.device("meta"):
            layers, _ = build_sequence([layer(fields)], shape, "")
            head = nn.Linear(math.prod(out), 1)
        found = nn.Sequential(reshape(shape), *layers, nn.Flatten(), head)
        initialize(found, InitSpec())
        return found

    inputs = torch.ones(NUM_ROWS, math.prod(shape))
    case = build(network, optimizer=optimizer_specs.Adam(), rows=Rows(inputs, torch.ones(NUM_ROWS, 1)))
    assert on_host(case) == []


@pytest.mark.parametrize(
    ("shift", "noted"),
    [
        (lambda x: torch.ones(()), "aten.add.Tensor"),
        (lambda x: torch.tensor(2.0, device=x.device), "tensor"),
        (lambda x: x.new_tensor([2.0]), "new_tensor"),
        (lambda x: x[:, [0]], "__getitem__"),
    ],
)
def test_what_comes_from_the_host_is_noted(shift: Callable[[Tensor], Tensor], noted: str) -> None:
    class Shifted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + shift(x)

    assert noted in on_host(build(lambda: mlp(Shifted())))
