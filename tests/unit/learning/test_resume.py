"""A run that is stopped at any step, and goes on from disk in another place, is the run that nobody disturbed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from app.jobs.session import Session, Workplace
from app.learning.compiled import CompiledSteps
from app.learning.fit import State
from app.learning.run_tensors import RunTensors
from app.learning.step_graph import trace_loop, trace_step
from app.learning.update_rules import UPDATE_RULES
from app.storage.checkpoints import Checkpoints
from tests.unit.learning.cases import loop_of
from tests.unit.learning.runs import SlowClock, Watcher, assert_equal, run, session, stands_still, weights
from tests.unit.learning.test_optimizers import TABLE as OPTIMIZERS
from tests.unit.learning.test_optimizers import spec_of
from tests.unit.learning.test_schedules import TABLE as SCHEDULES

NUM_STEPS = 8
BASE: dict[str, Any] = {
    "network": {"hidden_features": [4], "dropout": 0.3, "normalization": "batch_norm"},
    "descent": {"batch_size": 7, "max_grad_norm": 1.0},
    "stop": {"max_epochs": 2},
}


NARROW = [
    {"type": "linear", "out_features": 5},
    {"type": "linear", "out_features": 1},
    {"type": "flatten"},
]


Start = Callable[..., Session]


@pytest.fixture(params=["eager", "compiled"])
def start(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Starts runs with either engine. The compiled one's graph is run by torch, as compiling each would take minutes;
    that libraries do the same whatever the step is in `test_compiled`.
    """
    if request.param == "eager":
        return session
    graphs = []  # one shape a test

    def load(engine: CompiledSteps, tensors: RunTensors) -> bool:
        if not graphs:
            graphs.append(trace_loop(trace_step(tensors.recipe, tensors.tensors), tensors.tensors))
        engine._loop = loop_of(graphs[0], tensors.tensors)
        return True

    monkeypatch.setattr(CompiledSteps, "_load", load)
    monkeypatch.setattr("app.learning.compiled.trace_step", lambda *_: None)
    monkeypatch.setattr("app.learning.compiled.digest_of", lambda *_: "")
    workplace = Workplace(Checkpoints(tmp_path / "work"), tmp_path, tmp_path / "engine", pytest.fail)
    return partial(session, workplace=workplace, engine="compiled", num_threads=1)


def assert_resumes(start: Start, folder: Path, num_steps: int = NUM_STEPS, **spec: Any) -> None:
    """A checkpoint is written after each step but the last; from each, a new run goes on to the same end."""
    spec = BASE | spec
    expected, folder = start(**spec), folder / "checkpoints"

    def write(state: State) -> None:
        tensors, position = expected.export()
        Checkpoints(folder / str(state.step)).save(tensors, position, watcher.history)

    watcher = Watcher(write)
    run(expected, watcher, SlowClock())
    last = weights(expected)
    expected.finish()
    steps = sorted(int(path.name) for path in folder.iterdir())
    assert steps == list(range(1, num_steps))
    for step in steps:
        torch.manual_seed(99)
        resumed = start(**spec)
        torch.rand(5)
        found = Checkpoints(folder / str(step)).load()
        assert found is not None
        resumed.load(*found)
        again = Watcher()
        again.history = Checkpoints(folder / str(step)).load_history(resumed.state.epoch)
        run(resumed, again, SlowClock())
        assert again.history == watcher.history
        assert_equal(weights(resumed), last)
        resumed.finish()
        assert_equal(weights(resumed), weights(expected))
        assert (resumed.state.best_epoch, resumed.state.best) == (expected.state.best_epoch, expected.state.best)


@pytest.mark.parametrize("fields", [fields for fields, _ in OPTIMIZERS], ids=lambda fields: fields["type"])
def test_every_optimizer_at_every_step(fields: dict[str, Any], start: Start, tmp_path: Path) -> None:
    if start is not session and type(spec_of(fields)) not in UPDATE_RULES:
        pytest.skip("it has no rule, so its runs are eager")
    assert_resumes(start, tmp_path, optimizer=fields)


@pytest.mark.parametrize("fields", [fields for fields, _ in SCHEDULES], ids=lambda fields: fields["type"])
def test_every_schedule_at_every_step(fields: dict[str, Any], start: Start, tmp_path: Path) -> None:
    assert_resumes(start, tmp_path, schedule={**fields, "warmup_steps": 3})


@pytest.mark.parametrize(
    "spec",
    [
        {"descent": {"batch_size": 7}},
        {"descent": {"batch_size": 7, "shuffle": False}},
        {"descent": {"batch_size": 3, "accumulate_steps": 2}},
        {"descent": {"variant": "stochastic"}, "network": {"input_shape": [5, 1], "layers": NARROW}},
    ],
)
def test_steps_are_the_same_however_they_come_in_chunks(spec: dict[str, Any], start: Start) -> None:
    """Rows of 20 bytes, whose batches begin anywhere in a chunk: products with few columns are rounded by the place."""
    rows = torch.randn(300, 6, generator=torch.Generator().manual_seed(0)).numpy()
    frame = pl.DataFrame(rows, [*"abcdey"])
    spec = {"data": {}, "frame": frame, "network": {"hidden_features": [8]}, "stop": {"max_epochs": 2}} | spec
    one, other = start(**spec), start(**spec)
    run(one, few := Watcher(), stands_still)
    run(other, many := Watcher(), SlowClock())
    assert len(few.steps) < len(many.steps) / 4
    assert few.history == many.history
    assert_equal(weights(one), weights(other))


@pytest.mark.parametrize(
    ("spec", "num_steps"),
    [
        ({"descent": {"batch_size": 2, "accumulate_steps": 3}}, 10),
        ({"mixup": 0.4}, 8),
        ({"ema_decay": 0.9}, 8),
        ({"ema_decay": 0.9, "stop": {"max_epochs": 2, "restore_best": False}}, 8),
        ({"freeze": ["layers.0"]}, 8),
        ({"optimizer": {"type": "adam", "learning_rate": "auto"}}, 8),
        ({"stop": {"max_epochs": 9, "patience": 2, "min_delta": 10.0}}, 12),
        ({"stop": {"max_epochs": 3, "min_delta": 10.0}, "schedule": {"type": "plateau", "patience": 1}}, 12),
        ({"stop": {"max_epochs": 9, "max_steps": 7}}, 7),
        ({"validation": None, "stop": {"max_epochs": 2, "target_loss": 0.0}}, 10),
        ({"precision": "bfloat16"}, 8),
        ({"precision": "float16", "optimizer": {"type": "adamw"}}, 8),
        ({"activation_checkpointing": True, "network": {"hidden_features": [4, 4], "dropout": 0.3}}, 8),
        ({"target": "k", "descent": {"batch_size": 7, "sampling": "class_balanced"}}, 8),
    ],
)
def test_whatever_else_is_in_a_run(spec: dict[str, Any], num_steps: int, start: Start, tmp_path: Path) -> None:
    if start is not session and {"mixup", "precision", "activation_checkpointing"} & spec.keys():
        pytest.skip("such runs are eager")
    assert_resumes(start, tmp_path, num_steps, **spec)
