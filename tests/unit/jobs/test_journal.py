"""What a run tells of how far it is."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from app.jobs import journal
from app.jobs.journal import Journal
from app.learning.fit import fit
from app.learning.rows import Rows
from app.learning.steps import Engine
from app.storage.checkpoints import Checkpoints
from tests.unit.learning.runs import SlowClock, session


class Hesitant:
    """Takes one or two of the steps that it is asked for, and every third time none, as an engine may."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.num_calls = engine, 0

    def run(self, rows: Rows, order: Tensor | None, first: int, learning_rates: Sequence[float]) -> Tensor:
        self.num_calls += 1
        num = self.num_calls % 3
        if not num:
            return torch.empty(0)
        return self.engine.run(rows, order, first, learning_rates[:num])


@pytest.mark.parametrize("hesitant", [False, True])
@pytest.mark.parametrize(
    ("stop", "last"),
    [
        ({"max_epochs": 1}, 1.0),
        ({"max_epochs": 2}, 1.0),
        ({"max_epochs": 4, "max_steps": 21}, 1.0),
        ({"max_epochs": 4, "target_loss": 1e9}, 0.25),
    ],
)
def test_the_fraction_moves_within_an_epoch(
    stop: dict[str, Any], last: float, hesitant: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "PROGRESS_SECONDS", 0.0)
    told: list[dict[str, Any]] = []
    started = session(stop=stop, descent={"batch_size": 3}, validation=None)
    steps_per_epoch = started.batching.steps_per_epoch
    assert steps_per_epoch == 10
    told_to = Journal(
        started.spec, Checkpoints(tmp_path), lambda _, data: told.append(data), SimpleNamespace(request=None), 1e9
    )
    told_to.watch(started, None)
    run = started.run()
    fit(replace(run, engine=Hesitant(run.engine)) if hesitant else run, started.state, told_to, SlowClock())
    told.append(told_to.progress())
    found = [data for data in told if "fraction" in data]
    fractions = [data["fraction"] for data in found]
    assert fractions == sorted(fractions)
    assert fractions[-1] == last
    num_epochs, num_steps = stop["max_epochs"], stop.get("max_steps", 1000)
    for data in found:
        assert data["fraction"] == max(data["step"] / steps_per_epoch / num_epochs, data["step"] / num_steps)
    assert {1, 2, 3} <= {data["step"] for data in found}
