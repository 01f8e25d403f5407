"""`engine: auto`: what a step takes here decides, once for all runs of a spec."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.jobs.session import Session, Workplace
from app.learning.compiled import CompiledSteps
from app.learning.library import Libraries
from app.learning.trial import changed_by_steps
from app.storage.checkpoints import Checkpoints
from tests.disks import small_disk
from tests.unit.learning.runs import assert_equal, run, session, weights

LONG = {"max_steps": 10**9}


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def start(tmp_path: Path, warnings: list[str]) -> Callable[..., Session]:
    choice = tmp_path / "engines" / "some"
    workplace = Workplace(Checkpoints(tmp_path / "job"), tmp_path / "libraries", choice, warnings.append)
    return partial(session, workplace=workplace, num_threads=1, descent={"batch_size": 4})


@pytest.mark.parametrize(
    ("stop", "engine"), [(LONG, "compiled"), ({"max_steps": 100}, "eager"), ({"max_seconds": 1.0}, "eager")]
)
def test_long_runs_are_compiled(start: Callable[..., Session], stop: dict[str, Any], engine: str) -> None:
    begun = start(stop=stop)
    begun.settle_engine()
    assert begun.spec.engine == engine
    assert isinstance(begun.engine, CompiledSteps) is (engine == "compiled")


@pytest.mark.parametrize(
    ("seconds", "pace", "engine"), [(1e-4, 1.0, "eager"), (1e-2, 1.0, "compiled"), (1e-2, 100.0, "eager")]
)
def test_measured_steps_and_compiles_decide(
    start: Callable[..., Session],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    pace: float,
    engine: str,
) -> None:
    """10 000 steps: 1 s, or 100 s, to be saved, against a compile of about 10 s, or 1 000 s."""
    monkeypatch.setattr("app.jobs.session.step_seconds", lambda *_: seconds)
    (tmp_path / "libraries").mkdir()
    Libraries(tmp_path / "libraries")._pace.write_text(str(pace))
    begun = start(stop={"max_steps": 10_000})
    begun.settle_engine()
    assert begun.spec.engine == engine


@pytest.mark.parametrize("optimizer", [{"type": "adam"}, {"type": "sgd", "learning_rate": "auto"}])
def test_a_run_that_was_measured_is_the_run_of_that_engine(
    start: Callable[..., Session], optimizer: dict[str, Any]
) -> None:
    spec = {"optimizer": optimizer, "network": {"hidden_features": [4], "normalization": "batch_norm", "dropout": 0.2}}
    ends = []
    for engine in ("auto", "eager"):
        begun = start(engine=engine, **spec)
        begun.settle_engine()
        begun.settle_learning_rate()
        run(begun)
        ends.append(weights(begun))
    assert_equal(*ends)


def test_where_no_rate_learns_it_is_the_default_and_told(
    start: Callable[..., Session], warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 0 < start(optimizer={"type": "sgd", "learning_rate": "auto"}).spec.optimizer.learning_rate != 0.01
    assert warnings == []
    monkeypatch.setattr("app.learning.range_test.HIGHEST", 1e-5)
    begun = start(optimizer={"type": "sgd", "learning_rate": "auto"})
    assert begun.spec.optimizer.learning_rate == 0.01
    assert warnings == ["no learning rate made the loss 1% less in the range test: it is 0.01, the default of sgd"]


def test_a_trial_copies_no_frozen_weights(start: Callable[..., Session]) -> None:
    begun = start(freeze=["layers.0"])
    copied = {value.data_ptr() for value in changed_by_steps(begun.network)}
    left_out = {name for name, value in begun.network.state_dict().items() if value.data_ptr() not in copied}
    assert left_out == {"layers.0.weight", "layers.0.bias"}


def test_a_compile_serves_all_fits_of_a_cross_validation(
    start: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 000 steps of 3 ms each do not repay it, and 9 times as many do."""
    monkeypatch.setattr("app.jobs.session.step_seconds", lambda *_: 3e-3)
    found = []
    for validation in ({"fraction": 0.1}, {"folds": 8}):
        begun = start(stop={"max_steps": 2_000}, validation=validation)
        found.append(begun._faster_engine())
    assert found == ["eager", "compiled"]


def refuse(_: Session) -> str:
    raise AssertionError("it was measured before")


def test_the_next_run_of_a_spec_is_not_measured(start: Callable[..., Session], monkeypatch: pytest.MonkeyPatch) -> None:
    begun = start(stop=LONG)
    begun.settle_engine()
    monkeypatch.setattr(Session, "_faster_engine", refuse)
    again = start(stop=LONG)
    again.settle_engine()
    assert again.spec.engine == begun.spec.engine == "compiled"


def test_on_a_full_disk_a_run_is_eager(start: Callable[..., Session], tmp_path: Path, warnings: list[str]) -> None:
    begun = start(stop=LONG)
    with small_disk(tmp_path / "engines", 1) as disk:
        disk.fill()
        begun.settle_engine()
    assert begun.spec.engine == "eager"
    assert warnings == [
        "training goes on without the compiled engine, as the choice of it can't be kept: the disk is full "
        "(No space left on device); this works again once there is space"
    ]
