"""Losses: what the network's outputs `[B, T]` cost against the targets, and how outputs become predictions."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from app.learning.shortcuts import mse_loss
from app.specs import losses as specs
from app.specs.base import Spec

LossFunction = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""`(outputs, targets, weights [B] or None) -> mean over rows`, a scalar; of all rows, the mean weight is 1."""

RowLoss = Callable[[Any, Tensor, Tensor], Tensor]
"""`(spec, outputs, targets) -> losses` of the targets' shape, or one per row."""


def _log_cosh(_spec: Spec, outputs: Tensor, targets: Tensor) -> Tensor:
    difference = (outputs - targets).abs()
    return difference + F.softplus(-2 * difference) - 0.6931471805599453  # log 2; stable where cosh overflows


def _squared(_spec: Spec | None, outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square()


def _plain(spec: specs.PlainLoss, outputs: Tensor, targets: Tensor) -> Tensor:
    return PLAIN[spec.type](spec, outputs, targets)


def _quantile(spec: specs.QuantileLoss, outputs: Tensor, targets: Tensor) -> Tensor:
    difference = targets - outputs
    return torch.maximum(spec.quantile * difference, (spec.quantile - 1) * difference)


PLAIN: dict[str, RowLoss] = {
    "mse": _squared,
    "mae": lambda spec, outputs, targets: (outputs - targets).abs(),
    "log_cosh": _log_cosh,
    "poisson_nll": lambda spec, outputs, targets: F.poisson_nll_loss(outputs, targets, reduction="none"),
}
LOSSES: dict[type[Spec], RowLoss] = {
    specs.PlainLoss: _plain,
    specs.HuberLoss: lambda spec, outputs, targets: F.huber_loss(outputs, targets, reduction="none", delta=spec.delta),
    specs.QuantileLoss: _quantile,
    specs.CrossEntropyLoss: lambda spec, outputs, targets: F.cross_entropy(
        outputs, targets, reduction="none", label_smoothing=spec.label_smoothing
    ),
    specs.BinaryCrossEntropyLoss: lambda spec, outputs, targets: F.binary_cross_entropy_with_logits(
        outputs, targets, reduction="none"
    ),
}

LINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "poisson_nll": torch.exp,
    "cross_entropy": lambda outputs: outputs.softmax(-1),
    "binary_cross_entropy": torch.sigmoid,
}
"""From outputs to rates or probabilities; absent: the outputs are the predictions."""


def mean_squared_error(outputs: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """A `LossFunction`."""
    return mse_loss(outputs, targets) if weights is None else _weighted(_squared(None, outputs, targets), weights)


def build_loss(spec: Spec) -> LossFunction:
    """The mean over rows and targets; with weights, of `w loss`.

    It is not divided by the batch's own `Σ w`: that would make a row's weight count the less the smaller the batch is,
    and not at all where it is one row.
    """
    per_row = LOSSES[type(spec)]
    if isinstance(spec, specs.PlainLoss) and spec.type == "mse":
        return mean_squared_error

    def loss(outputs: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        losses = per_row(spec, outputs, targets)
        return losses.mean() if weights is None else _weighted(losses, weights)

    return loss


def _weighted(losses: Tensor, weights: Tensor) -> Tensor:
    if losses.dim() > 1:
        losses = losses.flatten(1).mean(1)
    return (losses * weights).mean()
