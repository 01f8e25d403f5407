"""Small runs: what a worker puts together, watched and stopped by a test."""

from collections.abc import Callable
from typing import Any

import polars as pl
import torch
from torch import Tensor

from app.jobs.session import Session, Workplace
from app.learning.fit import State, fit
from tests.samples import prepared, resolved

NUM_ROWS = 30
_x = torch.randn((NUM_ROWS, 3), generator=torch.Generator().manual_seed(5)).double().numpy()
FRAME = pl.DataFrame(
    {
        "a": _x[:, 0],
        "b": _x[:, 1],
        "w": abs(_x[:, 2]) + 0.1,
        "y": _x[:, 0] * 2 - _x[:, 1] + 0.1 * _x[:, 2],
        "k": ["low" if value < 0 else "high" for value in _x[:, 0] - _x[:, 1]],
    }
)
DATA = {"features": ["a", "b"]}
QUICK: dict[str, Any] = {"network": {"hidden_features": [4]}, "stop": {"max_epochs": 3}, "device": "cpu"}


def session(
    frame: pl.DataFrame = FRAME,
    target: str = "y",
    data: dict[str, Any] = DATA,
    workplace: Workplace | None = None,
    **spec: Any,
) -> Session:
    """A run of `QUICK` with other fields as given, before its first step."""
    settled = resolved(frame, target, data, **{**QUICK, **spec})
    found = Session(settled, prepared(settled, frame), None, workplace)
    found.settle_learning_rate()
    return found


class Watcher:
    """Keeps what it is told; `stop` says at which state the run is to end, and why."""

    def __init__(self, stop: Callable[[State], str | None] = lambda _: None) -> None:
        self.stop = stop
        self.history: list[dict[str, Any]] = []
        self.steps: list[int] = []

    def pause_point(self, state: State) -> str | None:
        self.steps.append(state.step)
        return self.stop(state)

    def epoch_done(self, _state: State, metrics: dict[str, Any]) -> None:
        self.history.append({name: value for name, value in metrics.items() if name != "elapsed_seconds"})


class SlowClock:
    """Each look at it is a second later, so that every chunk is a single step."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 1.0
        return self.seconds


def stands_still() -> float:
    """A clock by which steps take no time, so that chunks grow as fast as they may."""
    return 0.0


def run(started: Session, watcher: Watcher | None = None, clock: Callable[[], float] = SlowClock()) -> str:  # noqa: B008
    return fit(started.run(), started.state, watcher or Watcher(), clock)


def weights(started: Session) -> dict[str, Tensor]:
    """Weights and buffers as they are now."""
    return {name: value.detach().clone() for name, value in started.network.state_dict().items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
