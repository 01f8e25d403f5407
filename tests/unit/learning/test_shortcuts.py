"""The short ways lead to the same place, bit for bit."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.learning.optimizers import build_optimizers, export_state, load_state, set_learning_rate
from app.learning.shortcuts import Backward, forward_of, mse_loss, step_of
from tests.unit.learning.cases import CPU, some_rows
from tests.unit.learning.runs import assert_equal
from tests.unit.learning.test_optimizers import TABLE, spec_of


def weights_after(fields: dict[str, Any], *, short: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    network, rows = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1)), some_rows()
    optimizers = build_optimizers(spec_of(fields), network.parameters())
    backward, updates = Backward(CPU), [step_of(optimizer) for optimizer in optimizers]
    for _ in range(5):
        network.zero_grad()
        loss = nn.functional.mse_loss(network(rows.inputs), rows.targets)
        if short:
            backward(loss)
        else:
            loss.backward()
        for update, optimizer in zip(updates, optimizers, strict=True):
            update() if short else optimizer.step()
        assert torch.is_grad_enabled()
    return network.state_dict()


@pytest.mark.parametrize("fields", [fields for fields, _ in TABLE], ids=lambda fields: fields["type"])
def test_a_step_is_that_of_torch(fields: dict[str, Any]) -> None:
    assert_equal(weights_after(fields, short=True), weights_after(fields, short=False))


@pytest.mark.parametrize("fields", [fields for fields, _ in TABLE], ids=lambda fields: fields["type"])
def test_a_step_goes_on_from_loaded_state_and_leaves_what_has_no_gradient(fields: dict[str, Any]) -> None:
    def train(*, short: bool) -> list[Tensor]:
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(2))]
        state: dict[str, Tensor] = {}
        for turn in range(3):
            optimizers = build_optimizers(spec_of(fields), parameters)
            updates = [step_of(optimizer) for optimizer in optimizers]
            load_state(optimizers, state)
            set_learning_rate(optimizers, 0.1 + 0.1 * turn)
            for _ in range(2):
                for parameter in parameters[: 2 if turn == 1 else 3]:
                    parameter.grad = torch.randn_like(parameter)
                for update, optimizer in zip(updates, optimizers, strict=True):
                    update() if short else optimizer.step()
                for parameter in parameters:
                    parameter.grad = None
            state = {name: value.clone() for name, value in export_state(optimizers).items()}
        return [*parameters, *state.values()]

    for short, long in zip(train(short=True), train(short=False), strict=True):
        assert torch.equal(short, long)


def test_forward_goes_through_sequences_of_sequences() -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3)), nn.Sequential())
    network, x = nn.Sequential(nn.Sequential(), inner, nn.Linear(3, 1)), torch.randn(8, 4)
    forward = forward_of(network)
    for training in (True, False):  # modes and moved weights are seen as they are when it is called
        network.train(training)
        with torch.no_grad():
            network[2].bias.add_(1)
        torch.manual_seed(1)
        there = forward(x)
        torch.manual_seed(1)
        if training:
            network[1][1][1].reset_running_stats()
        assert torch.equal(there, network(x))


def test_mse_loss_is_that_of_torch() -> None:
    outputs, targets = torch.randn(7, 2, requires_grad=True), torch.randn(7, 2)
    assert torch.equal(mse_loss(outputs, targets), nn.functional.mse_loss(outputs, targets))
