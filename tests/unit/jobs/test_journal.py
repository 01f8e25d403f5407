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
from app.jobs.journal import Journal, Pace
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


def test_progress_and_checkpoints_come_as_often_as_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, control, told = [0.0], SimpleNamespace(request=None), list[str]()
    monkeypatch.setattr(journal, "time", SimpleNamespace(monotonic=lambda: now[0]))
    started, checkpoints = session(validation=None), Checkpoints(tmp_path)
    teller = Journal(started.spec, checkpoints, lambda kind, _: told.append(kind), control, 1.0)
    teller.watch(started, None)
    noted = []
    for now[0], control.request in ((0.1, None), (0.2, None), (0.3, None), (1.0, None), (1.1, None), (9.0, "pause")):
        assert teller.pause_point(started.state) == control.request
        noted.append((len(told), checkpoints.path.exists()))
        checkpoints.path.unlink(missing_ok=True)
    assert noted == [(0, False), (1, False), (1, False), (3, True), (3, False), (4, False)]
    assert set(told) == {"progress"}


@pytest.mark.parametrize(("stop", "num_epochs"), [({"max_epochs": 4}, 16), ({"max_steps": 40}, None)])
def test_what_is_left_is_foretold_of_all_folds(stop: dict[str, Any], num_epochs: int | None, tmp_path: Path) -> None:
    started = session(stop=stop, validation={"folds": 3}, descent={"batch_size": 2})
    told_to = Journal(started.spec, Checkpoints(tmp_path), lambda *_: None, SimpleNamespace(request=None), 1e9)
    told_to.watch(started, 1)
    told_to.folds = [{"val_loss": 1.0}]
    assert (told_to.progress()["fraction"], told_to.progress()["eta_seconds"]) == (0.25, None)
    started.state.epoch, started.state.step, started.state.elapsed_seconds = 1, 10, 10.0
    assert told_to.progress() == {
        "epoch": 0 + 1,
        "num_epochs": num_epochs,
        "step": 10,
        "fraction": 1.25 / 4,
        "eta_seconds": 10.0 * 2.75 / 0.25,
    }


def test_what_is_left_is_foretold_by_the_pace_of_late() -> None:
    """A compiled run: for a minute it is a hundred times slower than from then on."""
    pace, done = Pace(), 0.0
    told = []
    for second in range(100):
        told.append(pace.seconds(float(second), done))
        done += 1e-4 if second < 60 else 1e-2
    assert told[:10] == [None] * 10
    assert told[10:60] == pytest.approx([1e4] * 50)
    assert told[75:] == pytest.approx([100.0] * 25, rel=0.2)


def test_a_pace_takes_no_more_memory_the_longer_it_is_followed() -> None:
    pace = Pace()
    for second in range(0, 10**6, 5):
        told = pace.seconds(float(second), second / 1e7)
    assert told == pytest.approx(1e7)
    assert len(pace._seen) < 100


def test_a_run_that_stands_still_has_no_pace_and_one_with_pauses_has_their_mean() -> None:
    pace = Pace()
    assert [pace.seconds(float(second), 0.5) for second in range(20)] == [None] * 20
    pace = Pace()
    told = [pace.seconds(float(second), (second - second // 10 * 5) / 1000) for second in range(0, 500, 10)]
    assert told[20:] == pytest.approx([2000.0] * 30, rel=0.2)
