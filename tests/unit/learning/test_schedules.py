"""Learning rates in closed form, against torch's schedulers where there is an equal one."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch.optim import lr_scheduler

from app.learning.schedules import SCHEDULES, Span, learning_rate_at
from app.specs.schedules import SCHEDULE_SPECS, ScheduleSpec

BASE = 0.5
SPAN = Span(steps_per_epoch=4, num_steps=20)
Scheduler = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]


def per_epoch(factor: Callable[[int], float]) -> Scheduler:
    return lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: factor(step // SPAN.steps_per_epoch))


TABLE: list[tuple[dict[str, Any], Scheduler]] = [
    ({"type": "constant"}, lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)),
    ({"type": "cosine"}, lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, SPAN.num_steps - 1)),
    (
        {"type": "cosine", "end_factor": 0.2},
        lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, SPAN.num_steps - 1, eta_min=0.2 * BASE),
    ),
    (
        {"type": "linear", "end_factor": 0.1},
        lambda optimizer: lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=SPAN.num_steps - 1),
    ),
    ({"type": "step", "every_epochs": 2, "gamma": 0.3}, per_epoch(lambda epoch: 0.3 ** (epoch // 2))),
    ({"type": "exponential", "gamma": 0.9}, per_epoch(lambda epoch: 0.9**epoch)),
    (
        {"type": "one_cycle", "rise": 0.25, "start_factor": 0.1, "end_factor": 0.001},
        lambda optimizer: lr_scheduler.LambdaLR(optimizer, one_cycle),
    ),
    ({"type": "plateau"}, lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)),
]


def one_cycle(step: int) -> float:
    """torch's `OneCycleLR`, whose top is where its `pct_start` says only if that falls on a step."""
    rising = 0.25 * (SPAN.num_steps - 1)
    start, end, way = (0.1, 1.0, step / rising) if step < rising else (1.0, 0.001, (step - rising) / (19 - rising))
    return end + (start - end) * (1 + torch.tensor(way * torch.pi, dtype=torch.float64).cos().item()) / 2


def spec_of(fields: dict[str, Any]) -> Any:
    return TypeAdapter(ScheduleSpec).validate_python(fields)


def rates(fields: dict[str, Any], span: Span = SPAN) -> list[float]:
    return [learning_rate_at(spec_of(fields), BASE, step, span) for step in range(span.num_steps)]


def torch_rates(scheduler: Scheduler) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
    found, schedule = [], scheduler(optimizer)
    for _ in range(SPAN.num_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            schedule.step()
    return found


def test_every_schedule_has_a_function_and_a_test() -> None:
    assert set(SCHEDULES) == set(SCHEDULE_SPECS)
    assert {type(spec_of(fields)) for fields, _ in TABLE} == set(SCHEDULE_SPECS)


@pytest.mark.parametrize(("fields", "scheduler"), TABLE)
def test_rates_equal_those_of_torch(fields: dict[str, Any], scheduler: Scheduler) -> None:
    assert rates(fields) == pytest.approx(torch_rates(scheduler))


@pytest.mark.parametrize("warmup", [1, 4, 19])
@pytest.mark.parametrize(("fields", "_scheduler"), TABLE)
def test_a_warm_up_grows_linearly_to_the_base(fields: dict[str, Any], _scheduler: Scheduler, warmup: int) -> None:
    found = rates({**fields, "warmup_steps": warmup})
    assert found[:warmup] == pytest.approx([BASE * (step + 1) / warmup for step in range(warmup)])


@pytest.mark.parametrize(("warmup", "num_steps"), [(0, 20), (0, 2), (5, 20), (5, 7)])
@pytest.mark.parametrize("name", ["cosine", "linear", "one_cycle"])
def test_the_last_step_is_at_the_end(name: str, warmup: int, num_steps: int) -> None:
    found = rates({"type": name, "end_factor": 0.25, "warmup_steps": warmup}, Span(1, num_steps))
    assert found[-1] == pytest.approx(0.25 * BASE)
    if name != "one_cycle":
        assert found[warmup] == pytest.approx(BASE)
        assert found[warmup:] == sorted(found[warmup:], reverse=True)


@pytest.mark.parametrize(("fields", "_scheduler"), TABLE)
def test_any_length_of_run_has_rates(fields: dict[str, Any], _scheduler: Scheduler) -> None:
    for num_steps in (1, 2, 3):
        for warmup in (0, 1, 5):
            found = rates({**fields, "warmup_steps": warmup}, Span(1, num_steps))
            assert all(0 <= rate <= BASE for rate in found)
