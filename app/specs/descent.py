"""Descent: how many rows a gradient sees, and when it stops."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from app.specs.base import NonNegativeFloat, PositiveFloat, PositiveInt, Spec

Metric = Literal["loss", "accuracy", "f1_macro", "roc_auc", "exact_match", "mae", "rmse", "r2"]


class DescentSpec(Spec):
    """How many rows a gradient sees: all of them, `batch_size`, or one.

    An update takes the mean of `accumulate_steps` gradients; `max_grad_norm` clips the norm of that mean.
    `shuffle`: anew each epoch; where the inputs are more than 256 MB, within windows of 32 MB from all over the table.
    `sampling`: every row once an epoch, or as many draws with replacement in which all classes are as likely.
    """

    variant: Literal["full_batch", "mini_batch", "stochastic"] = "mini_batch"
    batch_size: PositiveInt | None = None
    shuffle: bool = True
    sampling: Literal["every_row", "class_balanced"] = "every_row"
    accumulate_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    max_grad_norm: PositiveFloat | None = None

    @model_validator(mode="after")
    def _batch_size_fits_variant(self) -> "DescentSpec":
        if self.variant == "stochastic" and self.batch_size not in (None, 1):
            raise ValueError("stochastic descent has batch_size 1; for more rows a step use mini_batch")
        return self


class StopSpec(Spec):
    """Whichever comes first, of each fit where there are several, as with folds.

    `max_epochs` is 100 where neither it, `max_steps` nor `max_seconds` is given. What is watched is `metric` over the
    validation rows (the training loss where there are none). `patience`: epochs in which it got no better by more than
    `min_delta`. `target_loss` is compared with the watched loss. `min_grad_norm`: the norm of an epoch's last gradient.
    `restore_best`: the weights of the best epoch are kept rather than the last (of epochs with the same metric, the one
    with the least loss); absent, that is done where there is validation or patience.
    """

    max_epochs: PositiveInt | None = None
    max_steps: PositiveInt | None = None
    max_seconds: PositiveFloat | None = None
    metric: Metric = "loss"
    patience: PositiveInt | None = None
    min_delta: NonNegativeFloat = 0.0
    target_loss: float | None = None
    min_grad_norm: PositiveFloat | None = None
    restore_best: bool | None = None
