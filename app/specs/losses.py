"""Losses: what a network learns to make small."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from app.specs.base import Fraction, PositiveFloat, Spec

ClassWeight = Literal["balanced"] | dict[str, PositiveFloat] | None
"""`balanced`: each class weighs `num_rows / (num_classes * its rows)`; or a weight per label."""


class AutoLoss(Spec):
    """The loss that fits the task: mse, binary_cross_entropy or cross_entropy."""

    type: Literal["auto"] = "auto"
    class_weight: ClassWeight = None


class PlainLoss(Spec):
    """`mse`, `mae` and `log_cosh` of the difference; `poisson_nll` of a predicted log rate (of rates in
    multiples of their mean where the target is standardised).
    """

    type: Literal["mse", "mae", "log_cosh", "poisson_nll"]


class HuberLoss(Spec):
    """Quadratic up to `delta` (in deviations of the target where it is standardised), linear beyond (Huber 1964)."""

    type: Literal["huber"] = "huber"
    delta: PositiveFloat = 1.0


class QuantileLoss(Spec):
    """The pinball loss, whose minimum is the target's `quantile` (Koenker & Bassett 1978)."""

    type: Literal["quantile"] = "quantile"
    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5


class CrossEntropyLoss(Spec):
    """Softmax cross-entropy over classes."""

    type: Literal["cross_entropy"] = "cross_entropy"
    class_weight: ClassWeight = None
    label_smoothing: Fraction = 0.0


class BinaryCrossEntropyLoss(Spec):
    """Sigmoid cross-entropy: one output for two classes, or one per label."""

    type: Literal["binary_cross_entropy"] = "binary_cross_entropy"
    class_weight: ClassWeight = None


LossSpec = Annotated[
    AutoLoss | PlainLoss | HuberLoss | QuantileLoss | CrossEntropyLoss | BinaryCrossEntropyLoss,
    Field(discriminator="type"),
]
LOSS_SPECS: tuple[type[Spec], ...] = get_args(get_args(LossSpec)[0])
