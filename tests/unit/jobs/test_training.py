"""A whole run of a worker's training, in this process: cross-validation, large tables, what is kept on disk."""

import errno
import gc
import json
import math
import os
import re
import shutil
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file

from app.errors import Diverged, OutOfMemory
from app.jobs import journal, session, training
from app.jobs.order import Outcome, WorkOrder
from app.jobs.session import Session
from app.learning import memory, rows, windows
from app.learning.plan import plan
from app.learning.steps import EagerSteps
from app.storage.checkpoints import Checkpoints
from app.storage.models import ModelStore
from app.storage.profile import profile_table
from app.storage.tensors import write_tensors
from app.storage.version import write_version
from tests.samples import DIGEST, publish, resolved, table_of, untrained

RNG = np.random.default_rng(3)
FRAME = pl.DataFrame({"a": RNG.standard_normal(400), "b": RNG.choice(["u", "v", None], 400), "c": RNG.random(400)})
FRAME = FRAME.with_columns(
    pl.when(pl.col("c") < 0.05).then(None).otherwise(pl.col("a") * 3).alias("c"),
    pl.when(pl.col("a") < 2.0)
    .then(pl.col("a").sin() + pl.col("b").eq("u").fill_null(False).cast(pl.Float64))
    .alias("y"),
)


def run(
    folder: Path,
    frame: pl.DataFrame = FRAME,
    *,
    order: dict[str, Any] | None = None,
    job: str = "job",
    pause_at: int | None = None,
    control: Any = None,
    **spec: Any,
) -> tuple[Outcome, list[Any]]:
    table = folder / "datasets" / DIGEST.removeprefix("sha256:")
    if not table.exists():
        table.mkdir(parents=True)
        frame.write_parquet(table / "table.parquet")
        (table / "profile.json").write_text(profile_table(frame.lazy(), DIGEST).model_dump_json())
    settled, _, _ = plan(resolved(frame, **spec), table_of(frame), device="cpu", max_parameters=10**6)
    body = settled.model_dump(mode="json")
    more: dict[str, Any] = {"checkpoint_interval_seconds": 1000.0, **(order or {})}
    work = WorkOrder(job, body, str(folder), str(folder / "models"), **more)
    events: list[Any] = []
    control = control or SimpleNamespace(request=None)

    def emit(kind: str, data: dict[str, Any]) -> None:
        events.append((kind, data))
        if kind == "metrics" and data["epoch"] == pause_at:
            control.request = "pause"

    return training.train(work, emit, control), events


def held_sessions(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], Session | None]]:
    """Looks whether the sessions are still there that runs have made since."""
    found: list[Callable[[], Session | None]] = []

    class Noted(Session):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            found.append(weakref.ref(self))

    monkeypatch.setattr(training, "Session", Noted)
    return found


@pytest.mark.parametrize("diverges", [False, True])
def test_nothing_of_a_run_is_left_when_its_outcome_is_known(
    diverges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the next one finds a card's memory free."""
    held = held_sessions(monkeypatch)
    optimizer = {"type": "sgd", "learning_rate": 1e6 if diverges else 0.01}
    with pytest.raises(Diverged) if diverges else nullcontext():
        run(tmp_path, optimizer=optimizer, stop={"max_epochs": 50})
    gc.collect()
    assert [look() for look in held] == [None]


@pytest.mark.parametrize(
    "words",
    [
        "[enforce fail at alloc_cpu.cpp:130] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_memory_that_runs_out_is_told_whoever_asked_for_it(words: str) -> None:
    with pytest.raises(OutOfMemory, match=r"descent\.batch_size") as caught, training._out_of_memory_explained():
        raise RuntimeError(words)
    assert words in caught.value.detail
    with pytest.raises(RuntimeError, match="shapes"), training._out_of_memory_explained():
        raise RuntimeError("shapes differ")


def told(events: list[Any], kind: str) -> list[dict[str, Any]]:
    return [data for each, data in events if each == kind]


def weights(folder: Path, job: str) -> dict[str, Any]:
    return dict(load_file(folder / "models" / ".staging" / job / "model.safetensors"))


def failing(write: Callable[..., None], *, times: int, fault: int) -> Callable[..., None]:
    """As `write`, but for the first times."""
    faults = [fault] * times

    def fails_at_first(*arguments: Any) -> None:
        if faults:
            number = faults.pop()
            raise OSError(number, os.strerror(number))
        write(*arguments)

    return fails_at_first


@pytest.mark.parametrize("windowed_bytes", [windows.WINDOWED_BYTES, 0])
def test_a_table_that_is_mapped_gives_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, windowed_bytes: int
) -> None:
    monkeypatch.setattr(memory, "PART_ROWS", 64)
    monkeypatch.setattr(windows, "WINDOWED_BYTES", windowed_bytes)
    monkeypatch.setattr(windows, "BLOCK_BYTES", 100)
    in_memory, _ = run(tmp_path, job="memory", stop={"max_epochs": 3})
    monkeypatch.setattr(rows, "MAPPED_BYTES", 0)
    monkeypatch.setattr(rows, "SCATTERED_ROWS", 7)  # of the batches of 32
    mapped, _ = run(tmp_path, job="mapped", stop={"max_epochs": 3}, order={"max_rows_bytes": 1})
    assert in_memory.metrics == mapped.metrics
    one, other = weights(tmp_path, "memory"), weights(tmp_path, "mapped")
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    assert not list((tmp_path / "jobs" / "mapped").glob("rows-*"))


def test_best_weights_on_disk_are_those_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec: dict[str, Any] = {"stop": {"max_epochs": 8}, "optimizer": {"type": "adamw", "learning_rate": 0.3}}
    in_memory, _ = run(tmp_path, job="memory", **spec)
    monkeypatch.setattr(session, "MAX_KEPT_BYTES", 0)
    on_disk, _ = run(tmp_path, job="disk", **spec)
    assert in_memory.metrics == on_disk.metrics
    np.testing.assert_array_equal(
        weights(tmp_path, "memory")["network.layers.0.weight"], weights(tmp_path, "disk")["network.layers.0.weight"]
    )


def test_cross_validation_holds_out_each_fold_and_publishes_a_model_of_all_rows(tmp_path: Path) -> None:
    outcome, events = run(tmp_path, validation={"folds": 3}, stop={"max_epochs": 4})
    folds = outcome.metrics["folds"]
    assert len(folds) == 3
    assert outcome.metrics["val_loss"] == pytest.approx(np.mean([fold["val_loss"] for fold in folds]))
    assert outcome.metrics["val_loss_std"] == pytest.approx(np.std([fold["val_loss"] for fold in folds], ddof=1))
    rows = told(events, "metrics")
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    assert [row["fold"] for row in rows[:12]] == [1] * 4 + [2] * 4 + [3] * 4
    assert rows[-1]["val_loss"] is None
    for index, fold in enumerate(folds):
        best = min(rows[4 * index : 4 * index + 4], key=lambda row: row["val_loss"])
        assert (fold["train_loss"], fold["val_loss"]) == (best["train_loss"], best["val_loss"])
        assert (fold["best_epoch"], fold["num_epochs"]) == (best["epoch"] - 4 * index, 4)
        assert fold["stop_reason"] == "max_epochs"
    assert outcome.metrics["num_epochs"] == round(np.mean([fold["best_epoch"] for fold in folds]))
    assert len(rows) == 12 + outcome.metrics["num_epochs"]
    fractions = [data["fraction"] for data in told(events, "progress")]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    last_steps = {row["fold"]: row["step"] for row in rows}
    assert told(events, "progress")[-1]["step"] == sum(last_steps.values()), "of all fits, as epochs are"
    config = json.loads((tmp_path / "models" / ".staging" / "job" / "config.json").read_text())
    assert config["spec"]["validation"] == {"folds": 3}


def test_without_a_best_epoch_the_last_one_counts(tmp_path: Path) -> None:
    spec: dict[str, Any] = {"validation": {"folds": 2}, "optimizer": {"type": "adamw", "learning_rate": 0.3}}
    outcome, _ = run(tmp_path, stop={"max_epochs": 5, "restore_best": False}, **spec)
    assert [fold["best_epoch"] for fold in outcome.metrics["folds"]] == [5, 5]


def test_patience_of_the_folds_ends_the_last_run(tmp_path: Path) -> None:
    spec: dict[str, Any] = {"validation": {"folds": 2}, "optimizer": {"type": "adamw", "learning_rate": 0.3}}
    outcome, events = run(tmp_path, stop={"max_epochs": 200, "patience": 2, "restore_best": False}, **spec)
    lengths = [fold["num_epochs"] for fold in outcome.metrics["folds"]]
    assert max(lengths) < 200
    assert {fold["stop_reason"] for fold in outcome.metrics["folds"]} == {"patience"}
    assert len(told(events, "metrics")) == sum(lengths) + round(np.mean(lengths))


def test_a_metric_that_some_folds_lack_is_the_mean_of_the_others() -> None:
    folds = [{"val_loss": 1.0}, {"val_loss": 3.0, "val_roc_auc": 0.5}, {"val_loss": 2.0, "val_roc_auc": 0.7}]
    found = training.summarize(folds, {"train_loss": 4.0})
    assert (found["val_loss"], found["val_roc_auc"], found["train_loss"]) == pytest.approx((2.0, 0.6, 4.0))


def test_folds_may_be_without_any_label(tmp_path: Path) -> None:
    one = pl.int_range(400) == 7
    frame = FRAME.with_columns(one.cast(pl.Int64).alias("y"), one.alias("z"))
    outcome, _ = run(tmp_path, frame, target=["y", "z"], validation={"folds": 3}, stop={"max_epochs": 2})
    assert sum("val_f1_macro" in fold for fold in outcome.metrics["folds"]) < 3
    assert outcome.metrics["val_exact_match_std"] > 0


def test_metrics_that_are_no_numbers_are_told_of(tmp_path: Path) -> None:
    """A row that is far from all that are learnt from is the first of them, which is held out."""
    frame = pl.DataFrame({"a": [1e30, *(0.5 * row for row in range(1, 20))], "y": [0.5 * row for row in range(20)]})
    outcome, events = run(tmp_path, frame, stop={"max_epochs": 1}, init={"weight": "normal"})
    assert outcome.metrics["val_loss"] == math.inf
    assert told(events, "warning")[-1]["detail"].startswith("val_loss: no number")


def test_a_fold_may_have_a_loss_beyond_all_numbers() -> None:
    found = training.summarize([{"val_loss": 1.0}, {"val_loss": math.inf}], {})
    assert found["val_loss"] == math.inf
    assert math.isnan(found["val_loss_std"])


def test_a_cross_validation_has_as_many_epochs_as_it_says_it_is_to_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "PROGRESS_SECONDS", 0.0)
    spec: dict[str, Any] = {"validation": {"folds": 2}, "optimizer": {"type": "adamw", "learning_rate": 0.3}}
    outcome, events = run(tmp_path, stop={"max_epochs": 9}, **spec)
    assert max(fold["best_epoch"] for fold in outcome.metrics["folds"]) < 9
    found = [(data["epoch"], data["num_epochs"]) for data in told(events, "progress")]
    assert all(epoch <= num_epochs for epoch, num_epochs in found)
    assert found[-1] == (len(told(events, "metrics")),) * 2


def test_losses_are_those_of_the_epoch_that_is_kept(tmp_path: Path) -> None:
    outcome, events = run(tmp_path, stop={"max_epochs": 12}, optimizer={"type": "adamw", "learning_rate": 0.1})
    rows = told(events, "metrics")
    best = min(rows, key=lambda row: row["val_loss"])
    assert 1 < best["epoch"] < 12
    assert {name: outcome.metrics[name] for name in ("train_loss", "val_loss")}.items() <= best.items()
    assert outcome.metrics["best_epoch"] == best["epoch"]
    last, _ = run(tmp_path, job="last", stop={"max_epochs": 2, "restore_best": False})
    assert "best_epoch" not in last.metrics


@pytest.mark.parametrize("pause_at", [2, 6, 9])
def test_a_paused_cross_validation_goes_on_where_it_was(tmp_path: Path, pause_at: int) -> None:
    spec: dict[str, Any] = {"validation": {"folds": 2}, "stop": {"max_epochs": 4, "restore_best": False}}
    undisturbed, _ = run(tmp_path, job="undisturbed", **spec)
    paused, _ = run(tmp_path, job="paused", pause_at=pause_at, **spec)
    assert paused.state == "paused"
    outcome, events = run(tmp_path, job="paused", **spec)
    assert outcome.metrics == undisturbed.metrics
    assert [(row["epoch"], row["fold"]) for row in told(events, "metrics")] == [
        (epoch, (epoch - 1) // 4 + 1) for epoch in range(1, 13)
    ]
    one, other = ((tmp_path / "models" / ".staging" / job / "history.jsonl") for job in ("undisturbed", "paused"))
    assert pl.read_ndjson(one).drop("elapsed_seconds").equals(pl.read_ndjson(other).drop("elapsed_seconds"))


def test_a_paused_run_that_went_on_from_a_version_encodes_as_it_does(tmp_path: Path) -> None:
    other = FRAME.with_columns(pl.col("a") * 5 + 1, pl.lit("u").alias("b"))
    publish(ModelStore(tmp_path / "models"), untrained(other, validation=None))
    spec: dict[str, Any] = {"warm_start": {"model": "m", "version": "1"}, "stop": {"max_epochs": 4}}
    run(tmp_path, job="undisturbed", **spec)
    run(tmp_path, job="paused", pause_at=2, **spec)
    run(tmp_path, job="paused", **spec)
    one, two = weights(tmp_path, "undisturbed"), weights(tmp_path, "paused")
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    start = load_file(tmp_path / "models" / "m" / "1" / "model.safetensors")
    np.testing.assert_array_equal(one["features.mean"], start["features.mean"])


@pytest.mark.parametrize("validation", [{"fraction": 0.1}, {"folds": 2}])
def test_a_paused_run_with_a_new_output_layer_ends_as_an_undisturbed_one(
    tmp_path: Path, validation: dict[str, Any]
) -> None:
    network = {"hidden_features": [64, 64], "dropout": 0.5}
    publish(ModelStore(tmp_path / "models"), untrained(FRAME, "y", validation=None, network=network))
    spec: dict[str, Any] = {"warm_start": {"model": "m", "version": "1"}, "network": network, "validation": validation}
    spec |= {"stop": {"max_epochs": 4}, "loss": {"type": "poisson_nll"}}  # rates, on a scale of their own
    frame = FRAME.with_columns(pl.col("y").abs())
    run(tmp_path, frame, job="undisturbed", **spec)
    run(tmp_path, frame, job="paused", pause_at=2, **spec)
    run(tmp_path, frame, job="paused", **spec)
    one, two = weights(tmp_path, "undisturbed"), weights(tmp_path, "paused")
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


@pytest.mark.parametrize("validation", [{"fraction": 0.1}, {"folds": 2}])
def test_a_run_goes_on_from_a_version_that_was_deleted_since(tmp_path: Path, validation: dict[str, Any]) -> None:
    store = ModelStore(tmp_path / "models")
    publish(store, untrained(FRAME, validation=None))
    spec = {"warm_start": {"model": "m", "version": "1"}, "stop": {"max_epochs": 4}, "validation": validation}
    run(tmp_path, job="undisturbed", **spec)
    run(tmp_path, job="paused", pause_at=2, **spec)
    store.delete("m", "1")
    assert run(tmp_path, job="paused", **spec)[0].state == "succeeded"
    one, two = weights(tmp_path, "undisturbed"), weights(tmp_path, "paused")
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_a_checkpoint_of_another_release_is_told_of_and_no_more(tmp_path: Path) -> None:
    undisturbed, _ = run(tmp_path, job="undisturbed", stop={"max_epochs": 2})
    write_tensors(Checkpoints(tmp_path / "jobs" / "job").path, {"a": torch.zeros(1)}, {"format": "0", "position": "[]"})
    outcome, events = run(tmp_path, stop={"max_epochs": 2})
    assert outcome.metrics == undisturbed.metrics
    assert any("another release wrote" in data["detail"] for data in told(events, "warning"))


def test_rows_without_a_target_are_left_out_and_told(tmp_path: Path) -> None:
    missing = FRAME["y"].null_count()
    assert missing
    _, events = run(tmp_path, stop={"max_epochs": 1})
    warnings = [data["detail"] for data in told(events, "warning")]
    assert warnings == [f"{missing} of 400 rows have no y and are left out"]


@pytest.mark.parametrize("descent", [{"batch_size": 32}, {"batch_size": 32, "sampling": "class_balanced"}])
def test_the_range_test_sees_rows_in_the_order_of_the_first_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, descent: dict[str, Any]
) -> None:
    """In a table that is sorted, the first rows are not as all are."""
    orders = list[Any]()
    batches = EagerSteps.run

    def run_noted(self: EagerSteps, rows: Any, order: Any, first: int, rates: Any) -> Any:
        if not orders or not torch.equal(orders[-1], order):
            orders.append(order)
        return batches(self, rows, order, first, rates)

    monkeypatch.setattr(EagerSteps, "run", run_noted)
    label = {"data": {"features": ["a"], "target": "b"}, "task": "binary"}
    more = {"optimizer": {"type": "adam", "learning_rate": "auto"}, "stop": {"max_epochs": 1}}
    run(tmp_path, descent=descent, engine="eager", **label, **more)
    assert len(orders) == 1
    assert not torch.equal(orders[0], torch.arange(len(orders[0])))


def test_the_range_test_leaves_no_trace(tmp_path: Path) -> None:
    """A found rate and the same rate given by hand are the same run."""
    run(tmp_path, job="found", optimizer={"type": "adam", "learning_rate": "auto"}, stop={"max_epochs": 2})
    history = (tmp_path / "models" / ".staging" / "found" / "history.jsonl").read_text()
    rate = pl.read_ndjson(history.encode())["learning_rate"][0]
    run(tmp_path, job="given", optimizer={"type": "adam", "learning_rate": rate}, stop={"max_epochs": 2})
    one, other = weights(tmp_path, "found"), weights(tmp_path, "given")
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("more", [{}, {"mixup": 0.3}])
def test_recomputed_activations_give_the_same_weights(tmp_path: Path, more: dict[str, Any]) -> None:
    spec: dict[str, Any] = {"network": {"hidden_features": [8] * 6, "dropout": 0.2}, "stop": {"max_epochs": 2}, **more}
    run(tmp_path, job="kept", **spec)
    run(tmp_path, job="recomputed", activation_checkpointing=True, **spec)
    one, other = weights(tmp_path, "kept"), weights(tmp_path, "recomputed")
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_full_disk_costs_a_checkpoint_and_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed, _ = run(tmp_path, job="undisturbed", stop={"max_epochs": 3})

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Checkpoints, "save", fail)
    order = {"checkpoint_interval_seconds": 0.0}
    disturbed, events = run(tmp_path, job="disturbed", stop={"max_epochs": 3}, order=order)
    assert disturbed.metrics == undisturbed.metrics
    warnings = {data["detail"] for kind, data in events if kind == "warning"}
    assert any("No space left on device" in warning for warning in warnings)


@pytest.mark.parametrize("folds", [{}, {"validation": {"folds": 2}}])
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_a_published_spec_names_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, folds: dict[str, Any]
) -> None:
    """The first run measures; all fits and the next runs of the spec, whatever their model is called, do as it did."""
    monkeypatch.setenv("CXX", "no-such-compiler")  # a run that was to be compiled is told so, and ends all the same
    measured = iter([engine])
    monkeypatch.setattr(session.Session, "_faster_engine", lambda _: next(measured))
    spec: dict[str, Any] = {"stop": {"max_steps": 10**8, "target_loss": 1e9}, **folds}
    for job in ("one", "other"):
        _, events = run(tmp_path, job=job, model=job, **spec)
        config = json.loads((tmp_path / "models" / ".staging" / job / "config.json").read_bytes())
        assert config["spec"]["engine"] == engine
        assert '"auto"' not in json.dumps(config["spec"])  # it can be repeated from what it says
        assert any("no-such-compiler" in each["detail"] for each in told(events, "warning")) is (engine == "compiled")


@pytest.mark.parametrize(("pause_at", "folds"), [(1, {}), (4, {"validation": {"folds": 2}})])
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_a_run_that_goes_on_keeps_its_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, pause_at: int, folds: dict[str, Any]
) -> None:
    """Whatever has become of the choice meanwhile: it is forgotten among many, or could never be kept."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    measured = iter([engine])
    monkeypatch.setattr(session.Session, "_faster_engine", lambda _: next(measured))
    spec: dict[str, Any] = {"stop": {"max_steps": 10**8, "patience": 2, "min_delta": 1e9}, **folds}
    outcome, _ = run(tmp_path, pause_at=pause_at, **spec)
    assert outcome.state == "paused"
    shutil.rmtree(tmp_path / "cache")
    outcome, _ = run(tmp_path, **spec)
    assert outcome.state == "succeeded"
    config = json.loads((tmp_path / "models" / ".staging" / "job" / "config.json").read_bytes())
    assert config["spec"]["engine"] == engine


@pytest.mark.parametrize("place", [(Checkpoints, "save"), (training, "write_version")])
def test_a_fault_that_is_not_the_disks_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: tuple[Any, str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(*place, fail)
    with pytest.raises(OSError, match="Bad file descriptor"):
        run(tmp_path, stop={"max_epochs": 3}, order={"checkpoint_interval_seconds": 0.0})


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EROFS])
def test_a_model_for_which_the_disk_has_no_room_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    monkeypatch.setattr(training, "STORE_SECONDS", 0.01)
    undisturbed, _ = run(tmp_path, job="undisturbed", stop={"max_epochs": 3})
    monkeypatch.setattr(training, "write_version", failing(write_version, times=2, fault=fault))
    disturbed, events = run(tmp_path, job="disturbed", stop={"max_epochs": 3})
    assert disturbed.metrics == undisturbed.metrics
    one, other = weights(tmp_path, "disturbed"), weights(tmp_path, "undisturbed")
    assert all(np.array_equal(one[name], other[name]) for name in other)
    warning = f"the trained model can't be stored yet, which is tried again until it can be: .*{os.strerror(fault)}"
    assert sum(bool(re.match(warning, data["detail"])) for data in told(events, "warning")) == 2


@pytest.mark.parametrize(("asked", "state"), [("pause", "paused"), ("cancel", "cancelled")])
def test_a_run_that_waits_for_the_disk_does_as_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, state: str
) -> None:
    control = SimpleNamespace(request=None)

    def full(*_: object) -> None:
        control.request = asked
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(training, "write_version", full)
    outcome, _ = run(tmp_path, control=control, stop={"max_epochs": 3})
    assert outcome.state == state
    assert not list((tmp_path / "models" / ".staging").iterdir()), "what would take room that others need"


@pytest.mark.parametrize(
    ("spec", "is_told"),
    [
        ({"stop": {"max_epochs": 25}}, "better"),
        ({"stop": {"max_epochs": 25}, "optimizer": {"type": "adamw", "learning_rate": 0.05}}, None),
        ({"stop": {"max_steps": 25 * 11}}, None),
        ({"stop": {"max_epochs": 25}, "validation": {"folds": 2}}, None),
        ({"stop": {"max_epochs": 25}, "validation": None}, "smaller"),
    ],
)
def test_a_run_that_was_too_short_says_so(tmp_path: Path, spec: dict[str, Any], is_told: str | None) -> None:
    slow = {"optimizer": {"type": "adamw", "learning_rate": 0.0003}, "engine": "eager"}
    _, events = run(tmp_path, **(slow | spec))
    said = {
        "better": "the model was still getting better in the last of 25 epochs: a larger stop.max_epochs may give a "
        "better one",
        "smaller": "the training loss was still falling in the last of 25 epochs: a larger stop.max_epochs may give a "
        "smaller one, which only validation rows show to be better",
    }
    found = [each["detail"] for each in told(events, "warning")]
    assert [name for name, sentence in said.items() if sentence in found] == ([is_told] if is_told else [])
