"""One table of optimizers drives every test: converges, equals torch's own, deterministic, exact on disk, refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from app.learning.optimizers import (
    OPTIMIZERS,
    Optimizers,
    build_optimizers,
    export_state,
    load_state,
    set_learning_rate,
)
from app.specs.optimizers import OPTIMIZER_SPECS, SGD, OptimizerSpec, RMSprop
from app.storage.tensors import read_tensors, write_tensors

Reference = Callable[[list[Tensor]], list[torch.optim.Optimizer]]
optim = torch.optim


def muon(parameters: list[Tensor]) -> list[torch.optim.Optimizer]:
    """Matrices by Muon, vectors by AdamW without decay."""
    return [
        optim.Muon([parameters[0]], lr=0.05, momentum=0.8, weight_decay=0.01, nesterov=False),
        optim.AdamW([parameters[1]], lr=0.05, weight_decay=0.0),
    ]


SLOW = {"weight_decay": 0.0}
TABLE: list[tuple[dict[str, Any], Reference]] = [
    ({"type": "sgd", "learning_rate": 0.1}, lambda p: [optim.SGD(p, lr=0.1)]),
    (
        {"type": "sgd", "learning_rate": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
        lambda p: [optim.SGD(p, lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.01)],
    ),
    (
        {"type": "sgd", "learning_rate": 0.05, "momentum": 0.8, "dampening": 0.3},
        lambda p: [optim.SGD(p, lr=0.05, momentum=0.8, dampening=0.3)],
    ),
    (
        {"type": "adam", "learning_rate": 0.1, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.01},
        lambda p: [optim.Adam(p, lr=0.1, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.01)],
    ),
    (
        {"type": "adam", "learning_rate": 0.1, "amsgrad": True},
        lambda p: [optim.Adam(p, lr=0.1, amsgrad=True)],
    ),
    (
        {"type": "adamw", "learning_rate": 0.1, "weight_decay": 0.05},
        lambda p: [optim.AdamW(p, lr=0.1, weight_decay=0.05)],
    ),
    (
        {"type": "adamw", "learning_rate": 0.1, "amsgrad": True, **SLOW},
        lambda p: [optim.AdamW(p, lr=0.1, amsgrad=True, weight_decay=0.0)],
    ),
    (
        {"type": "rmsprop", "learning_rate": 0.02, "alpha": 0.9, "momentum": 0.5, "centered": True},
        lambda p: [optim.RMSprop(p, lr=0.02, alpha=0.9, momentum=0.5, centered=True)],
    ),
    (
        {"type": "rmsprop", "learning_rate": 0.05, "eps": 1e-5, "weight_decay": 0.01},
        lambda p: [optim.RMSprop(p, lr=0.05, eps=1e-5, weight_decay=0.01)],
    ),
    (
        {"type": "adagrad", "learning_rate": 0.9, "learning_rate_decay": 0.01, "initial_accumulator_value": 0.1},
        lambda p: [optim.Adagrad(p, lr=0.9, lr_decay=0.01, initial_accumulator_value=0.1)],
    ),
    (
        {"type": "adadelta", "learning_rate": 1.0, "rho": 0.9, "eps": 1e-4, "weight_decay": 0.01},
        lambda p: [optim.Adadelta(p, lr=1.0, rho=0.9, eps=1e-4, weight_decay=0.01)],
    ),
    (
        {"type": "nadam", "learning_rate": 0.1, "beta1": 0.8, "momentum_decay": 0.01},
        lambda p: [optim.NAdam(p, lr=0.1, betas=(0.8, 0.999), momentum_decay=0.01)],
    ),
    ({"type": "radam", "learning_rate": 0.3, "beta2": 0.9}, lambda p: [optim.RAdam(p, lr=0.3, betas=(0.9, 0.9))]),
    ({"type": "adamax", "learning_rate": 0.1, "eps": 1e-5}, lambda p: [optim.Adamax(p, lr=0.1, eps=1e-5)]),
    (
        {"type": "muon", "learning_rate": 0.05, "momentum": 0.8, "weight_decay": 0.01, "nesterov": False},
        muon,
    ),
]
WANTED = [torch.tensor([[1.0, -0.5, 0.3], [0.2, 0.8, -1.0]]), torch.tensor([0.7, -0.4])]
CURVATURE = [torch.tensor([[1.0, 2.0, 0.5], [1.5, 1.0, 0.7]]), torch.tensor([1.0, 0.6])]


def spec_of(fields: dict[str, Any]) -> Any:
    return TypeAdapter(OptimizerSpec).validate_python(fields)


def start() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros_like(wanted)) for wanted in WANTED]


def distance(parameters: list[nn.Parameter]) -> Tensor:
    """A bowl with its bottom at `WANTED`."""
    pairs = zip(parameters, WANTED, CURVATURE, strict=True)
    return sum((curve * (value - wanted) ** 2).sum() for value, wanted, curve in pairs)  # type: ignore[return-value]


def descend(parameters: list[nn.Parameter], optimizers: Optimizers, num_steps: int) -> float:
    for _ in range(num_steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        distance(parameters).backward()
        for optimizer in optimizers:
            optimizer.step()
    return distance(parameters).item()


def run(fields: dict[str, Any], num_steps: int) -> list[nn.Parameter]:
    parameters = start()
    descend(parameters, build_optimizers(spec_of(fields), parameters), num_steps)
    return parameters


def test_every_optimizer_has_a_builder_and_a_test() -> None:
    assert set(OPTIMIZERS) == set(OPTIMIZER_SPECS)
    assert {type(spec_of(fields)) for fields, _ in TABLE} == set(OPTIMIZER_SPECS)


CHANGED = {
    "momentum": 0.5, "dampening": 0.5, "nesterov": True, "weight_decay": 0.25, "beta1": 0.5, "beta2": 0.5, "eps": 1e-3,
    "amsgrad": True, "alpha": 0.5, "centered": True, "learning_rate_decay": 0.5, "initial_accumulator_value": 0.5,
    "rho": 0.5, "momentum_decay": 0.5, "learning_rate": 0.5,
}  # fmt: skip
TORCH_NAMES = {"learning_rate": "lr", "learning_rate_decay": "lr_decay", "beta1": "betas", "beta2": "betas"}


@pytest.mark.parametrize("spec", OPTIMIZER_SPECS)
def test_every_field_is_handed_on(spec: Any) -> None:
    for name in set(spec.model_fields) - {"type"}:
        value = False if name == "nesterov" and spec.model_fields[name].default else CHANGED[name]
        others = {"momentum": 0.5} if name in ("nesterov", "dampening") else {}
        found = build_optimizers(spec(**others | {name: value}), start())[0].defaults[TORCH_NAMES.get(name, name)]
        assert (found[name == "beta2"] if isinstance(found, tuple) else found) == value, name


@pytest.mark.parametrize(("fields", "_reference"), TABLE)
def test_converges(fields: dict[str, Any], _reference: Reference) -> None:
    parameters = start()
    before = distance(parameters).item()
    assert descend(parameters, build_optimizers(spec_of(fields), parameters), 300) < 0.03 * before


@pytest.mark.parametrize(("fields", "reference"), TABLE)
def test_equals_torch(fields: dict[str, Any], reference: Reference) -> None:
    parameters = start()
    descend(parameters, reference(list(parameters)), 20)
    for ours, theirs in zip(run(fields, 20), parameters, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert not torch.equal(ours, torch.zeros_like(ours))


@pytest.mark.parametrize(("fields", "_reference"), TABLE)
def test_is_deterministic(fields: dict[str, Any], _reference: Reference) -> None:
    for one, other in zip(run(fields, 20), run(fields, 20), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("fields", "_reference"), TABLE)
@pytest.mark.parametrize("num_steps", [0, 1, 7])
def test_goes_on_from_disk_bit_for_bit(
    fields: dict[str, Any], _reference: Reference, num_steps: int, tmp_path: Path
) -> None:
    parameters = start()
    optimizers = build_optimizers(spec_of(fields), parameters)
    descend(parameters, optimizers, num_steps)
    write_tensors(tmp_path / "state", export_state(optimizers))

    again = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    restored = build_optimizers(spec_of(fields), again)
    load_state(restored, read_tensors(tmp_path / "state")[0])
    saved, loaded = export_state(optimizers), export_state(restored)
    assert saved.keys() == loaded.keys()
    stateless = fields["type"] == "sgd" and "momentum" not in fields
    assert stateless or saved or num_steps == 0
    for name, value in saved.items():
        assert torch.equal(value, loaded[name]), name
        assert value.dtype == loaded[name].dtype, name

    descend(parameters, optimizers, 9)
    descend(again, restored, 9)
    for one, other in zip(parameters, again, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("fields", "_reference"), TABLE)
def test_the_learning_rate_can_be_set(fields: dict[str, Any], _reference: Reference) -> None:
    parameters = start()
    optimizers = build_optimizers(spec_of(fields | {"learning_rate": 123.0}), parameters)
    set_learning_rate(optimizers, fields["learning_rate"])
    descend(parameters, optimizers, 20)
    for one, other in zip(parameters, run(fields, 20), strict=True):
        torch.testing.assert_close(one, other)


BAD: dict[str, list[Any]] = {
    "learning_rate": [0, -1.0, 1e7, float("nan"), float("inf"), "fast", None],
    "momentum": [-0.1, 1.0],
    "dampening": [-0.1, 1.1],
    "weight_decay": [-0.1],
    "beta1": [-0.1, 1.0],
    "beta2": [-0.1, 1.0],
    "eps": [-1e-9],
    "alpha": [-0.1, 1.0],
    "rho": [-0.1, 1.0],
    "learning_rate_decay": [-0.1],
    "initial_accumulator_value": [-0.1],
    "momentum_decay": [-0.1],
    "nesterov": [1],
    "amsgrad": ["yes"],
    "centered": [None],
}


@pytest.mark.parametrize("spec", OPTIMIZER_SPECS)
def test_refuses_bad_values(spec: Any) -> None:
    for name in set(spec.model_fields) - {"type"}:
        for value in BAD[name]:
            with pytest.raises(ValidationError):
                spec.model_validate({name: value})


@pytest.mark.parametrize("spec", OPTIMIZER_SPECS)
def test_defaults_are_those_of_torch(spec: Any) -> None:
    parameters = start()
    ours = build_optimizers(spec(), parameters)[0]
    theirs = type(ours)(parameters[:1])
    how = {"fused", "foreach", "capturable", "differentiable", "maximize", "decoupled_weight_decay", "params"}
    if spec in (SGD, RMSprop):
        how.add("lr")  # torch's own have changed over the years
    for name in theirs.defaults.keys() - how:
        assert ours.defaults[name] == pytest.approx(theirs.defaults[name]), name


def test_muon_alone_with_vectors_is_adamw() -> None:
    vectors = [nn.Parameter(torch.zeros(3))]
    assert [type(optimizer) for optimizer in build_optimizers(spec_of({"type": "muon"}), vectors)] == [optim.AdamW]
    matrices = [nn.Parameter(torch.zeros(3, 3))]
    assert [type(optimizer) for optimizer in build_optimizers(spec_of({"type": "muon"}), matrices)] == [optim.Muon]
