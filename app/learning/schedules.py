"""The learning rate of every step, in closed form, so that a resumed run needs nothing but its step."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from app.specs import schedules as specs
from app.specs.base import Spec


class Span(NamedTuple):
    """How long a run is: `num_steps` is 0 where its end is not known, and no schedule that needs it is allowed."""

    steps_per_epoch: int
    num_steps: int


def _toward_end(step: int, warmup: int, span: Span) -> float:
    """0 at the first step after the warm-up, 1 at the last step."""
    return (step - warmup) / max(1, span.num_steps - 1 - warmup)


def _cosine(spec: specs.CosineSchedule, step: int, span: Span) -> float:
    return _half_cosine(1.0, spec.end_factor, _toward_end(step, spec.warmup_steps, span))


def _one_cycle(spec: specs.OneCycleSchedule, step: int, span: Span) -> float:
    way = _toward_end(step, spec.warmup_steps, span)
    if way < spec.rise:
        return _half_cosine(spec.start_factor, 1.0, way / spec.rise)
    return _half_cosine(1.0, spec.end_factor, (way - spec.rise) / (1 - spec.rise))


def _half_cosine(start: float, end: float, way: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * way)) / 2


SCHEDULES: dict[type[Spec], Callable[[Any, int, Span], float]] = {
    specs.ConstantSchedule: lambda spec, step, span: 1.0,
    specs.CosineSchedule: _cosine,
    specs.LinearSchedule: lambda spec, step, span: (
        1 + (spec.end_factor - 1) * _toward_end(step, spec.warmup_steps, span)
    ),
    specs.OneCycleSchedule: _one_cycle,
    specs.PlateauSchedule: lambda spec, step, span: 1.0,  # falls by what the run sees: `State.plateau_factor`
    specs.StepSchedule: lambda spec, step, span: spec.gamma ** (step // span.steps_per_epoch // spec.every_epochs),
    specs.ExponentialSchedule: lambda spec, step, span: spec.gamma ** (step // span.steps_per_epoch),
}


def learning_rate_at(schedule: Any, base: float, step: int, span: Span) -> float:
    """The rate of update number `step` (from 0). In the warm-up it grows linearly up to `base`."""
    warmup: int = schedule.warmup_steps
    if step < warmup:
        return base * (step + 1) / warmup
    return base * SCHEDULES[type(schedule)](schedule, step, span)
