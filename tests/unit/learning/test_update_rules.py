"""Every rule does what torch.optim does, with drawn hyperparameters, rates and gradients; one table drives all."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from app.learning.optimizers import build_optimizers, set_learning_rate
from app.learning.update_rules import UPDATE_RULES
from app.specs import optimizers as specs
from app.specs.base import Spec

NUM_STEPS = 9
BETA = st.floats(0, 0.999)
MOMENTUM = st.sampled_from([0.0, 0.9])
DECAY = st.sampled_from([0.0, 0.1])
ADAM = {"beta1": BETA, "beta2": BETA, "eps": st.sampled_from([1e-8, 1e-3]), "weight_decay": DECAY}
TABLE: list[tuple[type[Spec], dict[str, st.SearchStrategy[Any]]]] = [
    (specs.SGD, {"weight_decay": DECAY}),
    (specs.SGD, {"momentum": st.floats(0.1, 0.99), "dampening": st.floats(0, 1), "weight_decay": DECAY}),
    (specs.SGD, {"momentum": st.floats(0.1, 0.99), "nesterov": st.just(True), "weight_decay": DECAY}),
    (specs.Adam, ADAM | {"amsgrad": st.booleans()}),
    (specs.AdamW, ADAM | {"amsgrad": st.booleans()}),
    (specs.RMSprop, {"alpha": BETA, "momentum": MOMENTUM, "weight_decay": DECAY}),
    (
        specs.RMSprop,
        {"alpha": st.floats(0.1, 0.99), "momentum": st.sampled_from([0.0, 0.9]), "centered": st.just(True)},
    ),
    (
        specs.Adagrad,
        {"learning_rate_decay": DECAY, "initial_accumulator_value": st.floats(0, 1), "weight_decay": DECAY},
    ),
    (specs.Adadelta, {"rho": BETA, "weight_decay": DECAY}),
    (specs.NAdam, ADAM | {"momentum_decay": st.sampled_from([0.0, 0.004, 1.0])}),
    (specs.RAdam, ADAM),
    (specs.RAdam, ADAM | {"beta2": st.sampled_from([0.9, 0.99, 0.999])}),  # rectified before the last steps
    (specs.Adamax, ADAM),
]


def test_table_has_every_rule() -> None:
    assert {spec for spec, _ in TABLE} == set(UPDATE_RULES)
    assert set(UPDATE_RULES) == set(specs.OPTIMIZER_SPECS) - {specs.Muon}


@pytest.mark.parametrize(("kind", "drawn"), TABLE)
def test_rule_equals_torch(kind: type[Spec], drawn: dict[str, st.SearchStrategy[Any]]) -> None:
    @settings(max_examples=15, deadline=None)
    @given(options=st.fixed_dictionaries(drawn), seed=st.integers(0, 2**31), first=st.integers(1, 4))
    def law(options: dict[str, Any], seed: int, first: int) -> None:
        spec = kind(**options)
        expected = take_steps_with_torch(spec, seed, NUM_STEPS)
        assert_same(take_steps_with_rule(spec, seed, first), expected)

    law()


def gradients(seed: int) -> Tensor:
    """`[S, 5]`; the last element has no gradient, as behind a dead unit."""
    grads = torch.randn(NUM_STEPS, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    grads[:, -1] = 0
    return grads


def rate_of(step: int) -> float:
    return 0.05 / step


def take_steps_with_torch(spec: Any, seed: int, num_steps: int) -> tuple[Tensor, dict[str, Any]]:
    parameter = nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64))
    optimizers = build_optimizers(spec, [parameter])
    for step, grad in enumerate(gradients(seed)[:num_steps], 1):
        parameter.grad = grad
        set_learning_rate(optimizers, rate_of(step))
        optimizers[0].step()
    return parameter.detach(), optimizers[0].state[parameter]


def take_steps_with_rule(spec: Any, seed: int, first: int) -> tuple[Tensor, dict[str, Any]]:
    """`first` steps with torch, which make the slots, the others with the rule."""
    param, state = take_steps_with_torch(spec, seed, first)
    slots = {name: value for name, value in state.items() if name != "step" and value is not None}
    rule = UPDATE_RULES[type(spec)]
    steps = torch.arange(first + 1, NUM_STEPS + 1, dtype=torch.float64)
    rates = torch.tensor([rate_of(int(step)) for step in steps], dtype=torch.float64)
    scalars = rule.scalars(spec, rates, steps)
    for index, grad in enumerate(gradients(seed)[first:]):
        param, slots = rule.update(spec, param, grad, slots, {name: value[index] for name, value in scalars.items()})
    return param, slots


def assert_same(found: tuple[Tensor, dict[str, Any]], expected: tuple[Tensor, dict[str, Any]]) -> None:
    kept = {name: value for name, value in expected[1].items() if name != "step" and value is not None}
    assert found[1].keys() == kept.keys()
    rtol = 1e-6 if "mu_product" in kept else 1e-9  # torch keeps NAdam's product in float32
    for one, other in [(found[0], expected[0]), *((found[1][name], value) for name, value in kept.items())]:
        torch.testing.assert_close(one, other, rtol=rtol, atol=1e-9, equal_nan=True, check_dtype=False)
