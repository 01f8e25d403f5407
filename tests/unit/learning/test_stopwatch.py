"""How long steps take, by a clock."""

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app.learning.batches import Batching
from app.learning.stopwatch import step_seconds
from tests.unit.learning.cases import build, mlp


@pytest.mark.parametrize("num_steps", [1, 2, 9, 1000])
def test_a_step_is_as_long_as_the_fastest_round_tells(monkeypatch: pytest.MonkeyPatch, num_steps: int) -> None:
    case, rounds, clock = build(mlp), list[range](), SimpleNamespace(now=0.0)
    seconds = (about_ms / 1024 for about_ms in (9000, 4, 1, 5, 7, 2, 9, 0.75, 3, 5, 4))
    case.eager.batching = Batching(8 * num_steps - 2, 8)

    def run(_rows: Any, _order: Any, first: int, rates: Sequence[float]) -> None:
        rounds.append(range(first, first + len(rates)))
        clock.now += next(seconds) * len(rates)

    monkeypatch.setattr(case.eager, "run", run)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    assert step_seconds(case.eager, case.rows, None) == (0.75 if num_steps > 2 else 1) / 1024
    assert {len(steps) for steps in rounds[:6]} == {1}
    assert {len(steps) for steps in rounds[6:]} == ({min(10, num_steps - 1)} if num_steps > 2 else set())
    taken = [step for steps in rounds for step in steps]
    assert max(taken) < max(1, num_steps - 1), "the last step has fewer rows"
    if num_steps == 1000:
        assert taken == list(range(len(taken))), "as a run goes through its epoch"


def test_steps_are_really_timed() -> None:
    case = build(mlp)
    before = {name: value.clone() for name, value in case.network.state_dict().items()}
    seconds = step_seconds(case.eager, case.rows, None)
    assert 1e-6 < seconds < 1.0
    assert any(not torch.equal(before[name], value) for name, value in case.network.state_dict().items())
