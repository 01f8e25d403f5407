"""Gradients by hand are those of autograd, bit for bit."""

from typing import Any

import pytest
import torch
from torch import nn

from app.learning.chain import ACTIVATIONS, Chain, chained
from app.learning.losses import build_loss
from app.learning.rows import Rows
from app.specs import losses as specs
from tests.unit.learning.runs import session


def wide(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Sequential(nn.Linear(6, 16), activation), nn.Linear(16, 8, bias=False), nn.Linear(8, 3))


NETS: dict[str, Any] = {
    **{kind.__name__.lower(): lambda kind=kind: wide(kind()) for kind in ACTIVATIONS},
    "gelu of tanh": lambda: wide(nn.GELU("tanh")),
    "line": lambda: nn.Sequential(nn.Linear(6, 3)),
    "front": lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)),
    "flat front": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)),
    "dropout": lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3), nn.Sigmoid()),
}
LOSSES = [specs.PlainLoss(type="mse"), specs.HuberLoss(), specs.BinaryCrossEntropyLoss()]


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.type)
def test_gradients_are_those_of_autograd(make: Any, loss: Any) -> None:
    function, networks = build_loss(loss), []
    for weighted in (False, True):
        for num_rows in (2, 7, 64, 333):
            torch.manual_seed(num_rows)
            weights = torch.rand(num_rows) if weighted else None
            rows = Rows(torch.randn(num_rows, 6), torch.rand(num_rows, 3), weights)
            torch.manual_seed(0)
            by_hand, autograd = make(), make()
            autograd.load_state_dict(by_hand.state_dict())
            torch.manual_seed(1)
            found = Chain(by_hand, function).backward(rows)
            torch.manual_seed(1)
            expected = function(autograd(rows.inputs), rows.targets, rows.weights)
            expected.backward()
            assert torch.equal(found, expected.detach())
            assert not found.requires_grad
            networks.append((by_hand, autograd))
    for by_hand, autograd in networks:
        for (name, one), other in zip(by_hand.named_parameters(), autograd.parameters(), strict=True):
            assert one.grad is not None
            assert torch.equal(one.grad, other.grad), name


def test_what_is_taken_by_hand() -> None:
    """The last layers, up to one that is of another kind; nothing where weights are frozen."""
    network = NETS["front"]()
    assert chained(network) == list(network)[2:]
    assert chained(nn.Sequential(nn.Linear(2, 2), nn.Softplus())) == []
    network[0].bias.requires_grad_(False)
    assert chained(network) == []


@pytest.mark.parametrize(
    ("options", "by_hand"),
    [
        ({}, True),
        ({"descent": {"batch_size": 8, "max_grad_norm": 0.1}}, True),
        ({"mixup": 0.2}, False),
        ({"precision": "bfloat16"}, False),
        ({"activation_checkpointing": True}, False),
        ({"freeze": ["layers.0"]}, False),
    ],
)
def test_runs_take_them_by_hand_where_they_can(options: dict[str, Any], by_hand: bool) -> None:
    assert (session(network={"hidden_features": [4]}, **options).eager.chain is not None) is by_hand
