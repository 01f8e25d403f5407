"""How long steps take, by a clock."""

from typing import Any

import pytest
import torch

from app.learning import stopwatch
from app.learning.stopwatch import step_seconds
from tests.unit.learning.cases import build, mlp


def test_a_step_is_as_long_as_the_fastest_round_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    case, asked, seconds = build(mlp), list[int](), iter([9.0, 1e-3, 5e-3, 7e-3, 2e-3, 9e-3, 3e-3])

    def timed(_engine: Any, _rows: Any, _order: Any, num_steps: int) -> float:
        asked.append(num_steps)
        return next(seconds)

    monkeypatch.setattr(stopwatch, "_timed", timed)
    assert step_seconds(case.eager, case.rows, None) == 2e-3
    per_epoch = case.batching.steps_per_epoch
    assert asked == [1, 1, *[min(10, per_epoch)] * 5]


def test_steps_are_really_timed() -> None:
    case = build(mlp)
    before = {name: value.clone() for name, value in case.network.state_dict().items()}
    seconds = step_seconds(case.eager, case.rows, None)
    assert 1e-6 < seconds < 1.0
    assert any(not torch.equal(before[name], value) for name, value in case.network.state_dict().items())
