"""The short ways lead to the same place, bit for bit."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.learning.optimizers import build_optimizers
from app.learning.shortcuts import Backward, step_of
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
