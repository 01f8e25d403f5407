"""Losses against torch's own, and what weights do to them."""

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import TypeAdapter
from torch import Tensor

from app.learning.losses import LINKS, LOSSES, PLAIN, build_loss
from app.specs.losses import LOSS_SPECS, AutoLoss, LossSpec, PlainLoss
from app.specs.resolve_task import TASKS_OF_LOSS

Reference = Callable[[Tensor, Tensor], Tensor]


def pinball(quantile: float) -> Reference:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        above = targets > outputs
        return torch.where(above, quantile * (targets - outputs), (1 - quantile) * (outputs - targets)).mean()

    return loss


REGRESSION: list[tuple[dict[str, Any], Reference]] = [
    ({"type": "mse"}, F.mse_loss),
    ({"type": "mae"}, F.l1_loss),
    ({"type": "log_cosh"}, lambda outputs, targets: (outputs - targets).cosh().log().mean()),
    ({"type": "poisson_nll"}, F.poisson_nll_loss),
    ({"type": "huber", "delta": 0.3}, lambda outputs, targets: F.huber_loss(outputs, targets, delta=0.3)),
    ({"type": "quantile", "quantile": 0.9}, pinball(0.9)),
]
BINARY: list[tuple[dict[str, Any], Reference]] = [
    ({"type": "binary_cross_entropy"}, F.binary_cross_entropy_with_logits),
]
CLASSES: list[tuple[dict[str, Any], Reference]] = [
    ({"type": "cross_entropy"}, F.cross_entropy),
    (
        {"type": "cross_entropy", "label_smoothing": 0.2},
        lambda outputs, targets: F.cross_entropy(outputs, targets, label_smoothing=0.2),
    ),
]
ALL = [*REGRESSION, *BINARY, *CLASSES]
NUM_ROWS = 20


def spec_of(fields: dict[str, Any]) -> Any:
    return TypeAdapter(LossSpec).validate_python(fields)


def sample(fields: dict[str, Any], num_targets: int) -> tuple[Tensor, Tensor]:
    """Outputs `[N, T]` and targets that the loss can be of."""
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn((NUM_ROWS, num_targets), generator=generator)
    if fields["type"] == "cross_entropy":
        return outputs, torch.randint(num_targets, (NUM_ROWS,), generator=generator)
    targets = torch.randn((NUM_ROWS, num_targets), generator=generator)
    if fields["type"] == "binary_cross_entropy":
        return outputs, (targets > 0).float()
    return outputs, targets.abs().round() if fields["type"] == "poisson_nll" else targets


def test_every_loss_has_a_function_a_task_and_a_test() -> None:
    assert set(LOSSES) == set(LOSS_SPECS) - {AutoLoss}
    types = {name for spec in LOSSES for name in get_args(spec.model_fields["type"].annotation)}
    assert {fields["type"] for fields, _ in ALL} == types == set(TASKS_OF_LOSS)
    assert set(PLAIN) == set(get_args(PlainLoss.model_fields["type"].annotation))
    assert set(LINKS) <= types


@pytest.mark.parametrize(("fields", "reference"), ALL)
@pytest.mark.parametrize("num_targets", [1, 3])
def test_losses_equal_their_references(fields: dict[str, Any], reference: Reference, num_targets: int) -> None:
    outputs, targets = sample(fields, num_targets)
    torch.testing.assert_close(build_loss(spec_of(fields))(outputs, targets, None), reference(outputs, targets))


@pytest.mark.parametrize("num_targets", [1, 3])
@pytest.mark.parametrize(("fields", "_reference"), ALL)
def test_a_weight_is_as_many_copies_of_its_row(fields: dict[str, Any], _reference: Reference, num_targets: int) -> None:
    outputs, targets = sample(fields, num_targets)
    counts = torch.arange(NUM_ROWS) % 4
    repeated = (outputs.repeat_interleave(counts, 0), targets.repeat_interleave(counts, 0), None)
    loss = build_loss(spec_of(fields))
    torch.testing.assert_close(loss(outputs, targets, counts / counts.float().mean()), loss(*repeated))


@pytest.mark.parametrize(("fields", "_reference"), ALL)
def test_a_weight_counts_however_few_rows_are_looked_at_together(fields: dict[str, Any], _reference: Reference) -> None:
    outputs, targets = sample(fields, 3)
    weights, loss = torch.arange(NUM_ROWS) / (NUM_ROWS - 1) * 2, build_loss(spec_of(fields))
    whole = loss(outputs, targets, weights)
    for size in (1, 4):
        batches = zip(outputs.split(size), targets.split(size), weights.split(size), strict=True)
        torch.testing.assert_close(torch.stack([loss(*batch) for batch in batches]).mean(), whole)


@pytest.mark.parametrize(("fields", "_reference"), ALL)
def test_weights_of_one_change_nothing(fields: dict[str, Any], _reference: Reference) -> None:
    outputs, targets = sample(fields, 2)
    loss = build_loss(spec_of(fields))
    torch.testing.assert_close(loss(outputs, targets, torch.ones(NUM_ROWS)), loss(outputs, targets, None))


@pytest.mark.parametrize(("fields", "_reference"), ALL)
def test_rows_without_weight_cost_nothing_and_pull_nowhere(fields: dict[str, Any], _reference: Reference) -> None:
    outputs, targets = sample(fields, 2)
    outputs.requires_grad_()
    value = build_loss(spec_of(fields))(outputs, targets, torch.zeros(NUM_ROWS))
    value.backward()
    assert value.item() == 0
    assert outputs.grad is not None
    assert (outputs.grad == 0).all()


def test_log_cosh_is_finite_where_cosh_overflows() -> None:
    loss = build_loss(spec_of({"type": "log_cosh"}))
    far = torch.tensor([[-1e4]], requires_grad=True)
    value = loss(far, torch.zeros(1, 1), None)
    value.backward()
    assert value.item() == pytest.approx(1e4 - 0.6931472)
    assert far.grad == -1


def test_a_quantile_is_the_minimum_of_its_loss() -> None:
    targets = torch.linspace(0, 1, 101)[:, None]
    loss = build_loss(spec_of({"type": "quantile", "quantile": 0.75}))
    guesses = torch.linspace(0, 1, 101)
    values = [loss(guess.expand(101, 1), targets, None).item() for guess in guesses]
    assert guesses[values.index(min(values))].item() == pytest.approx(0.75, abs=0.011)
