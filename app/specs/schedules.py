"""Schedules: the learning rate over the steps of a run."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from app.specs.base import NonNegativeInt, PositiveInt, Spec


class ConstantSchedule(Spec):
    type: Literal["constant"] = "constant"
    warmup_steps: NonNegativeInt = 0


class CosineSchedule(Spec):
    """Half a cosine from 1 down to `end_factor` at the last step (Loshchilov & Hutter 2017, without restarts)."""

    type: Literal["cosine"] = "cosine"
    end_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    warmup_steps: NonNegativeInt = 0


class LinearSchedule(Spec):
    """A straight line from 1 to `end_factor` at the last step."""

    type: Literal["linear"] = "linear"
    end_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    warmup_steps: NonNegativeInt = 0


class StepSchedule(Spec):
    """Times `gamma` every `every_epochs` epochs."""

    type: Literal["step"] = "step"
    every_epochs: PositiveInt = 30
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup_steps: NonNegativeInt = 0


class ExponentialSchedule(Spec):
    """Times `gamma` every epoch."""

    type: Literal["exponential"] = "exponential"
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.95
    warmup_steps: NonNegativeInt = 0


class OneCycleSchedule(Spec):
    """Up from `start_factor` to 1 in `rise` of the steps, then down to `end_factor`, by half cosines (Smith 2018)."""

    type: Literal["one_cycle"] = "one_cycle"
    rise: Annotated[float, Field(gt=0, lt=1)] = 0.3
    start_factor: Annotated[float, Field(gt=0, le=1)] = 0.04
    end_factor: Annotated[float, Field(ge=0, le=1)] = 4e-6
    warmup_steps: NonNegativeInt = 0


class PlateauSchedule(Spec):
    """Times `gamma` after `patience` epochs in which the watched loss or metric got no better."""

    type: Literal["plateau"] = "plateau"
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1
    patience: PositiveInt = 10
    end_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    warmup_steps: NonNegativeInt = 0


ScheduleSpec = Annotated[
    ConstantSchedule
    | CosineSchedule
    | LinearSchedule
    | StepSchedule
    | ExponentialSchedule
    | OneCycleSchedule
    | PlateauSchedule,
    Field(discriminator="type"),
]
SCHEDULE_SPECS: tuple[type[Spec], ...] = get_args(get_args(ScheduleSpec)[0])
