"""The loop: when it stops and why, what it keeps, and that chunks don't matter."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor, nn

from app.errors import Diverged
from app.learning.evaluate import Judgement, mean_loss
from app.learning.fit import State, _track_best, fit, still_gaining
from app.learning.rows import Rows
from app.learning.steps import Engine
from app.specs.descent import StopSpec
from app.specs.schedules import ConstantSchedule
from tests.samples import resolved
from tests.unit.learning.runs import (
    DATA,
    FRAME,
    SlowClock,
    Watcher,
    assert_equal,
    run,
    session,
    stands_still,
    weights,
)
from tests.unit.learning.test_network import uninitialized_memory_is_nan

SGD = {"type": "sgd", "learning_rate": 0.05}
STUCK = {"type": "sgd", "learning_rate": 1e-30}


# ---- why it stops


@pytest.mark.parametrize(
    ("stop", "spec", "reason", "epochs"),
    [
        ({"max_epochs": 2}, {}, "max_epochs", 2),
        ({"max_steps": 5}, {"descent": {"batch_size": 10}}, "max_steps", 2),
        ({"max_steps": 6}, {"descent": {"batch_size": 10}}, "max_steps", 2),
        ({"max_steps": 6, "max_epochs": 2}, {"descent": {"batch_size": 10}}, "max_steps", 2),
        ({"max_steps": 7, "max_epochs": 2}, {"descent": {"batch_size": 10}}, "max_epochs", 2),
        ({"max_seconds": 4.0}, {}, "max_seconds", 2),
        ({"target_loss": 1e9}, {}, "target_loss", 1),
        ({"target_loss": 0.5}, {"optimizer": SGD}, "target_loss", None),
        ({"patience": 3, "min_delta": 1e-5}, {"optimizer": STUCK}, "patience", 4),
        ({"patience": 3, "min_delta": 1e9}, {"optimizer": SGD}, "patience", 4),
        ({"min_grad_norm": 1e9}, {}, "min_grad_norm", 1),
        ({"min_grad_norm": 1e-2}, {"optimizer": SGD, "descent": {"variant": "full_batch"}}, "min_grad_norm", None),
    ],
)
@pytest.mark.parametrize("validation", [None, {"fraction": 0.1}])
def test_every_stop_gives_its_reason(
    stop: dict[str, Any], spec: dict[str, Any], reason: str, epochs: int | None, validation: Any
) -> None:
    started = session(stop=stop, network={"hidden_features": []}, validation=validation, **spec)
    watcher = Watcher()
    assert run(started, watcher, SlowClock()) == reason
    assert started.state.epoch == len(watcher.history)
    assert epochs is None or len(watcher.history) == epochs
    if reason == "target_loss":
        watched = [row["train_loss"] if validation is None else row["val_loss"] for row in watcher.history]
        assert watched[-1] <= stop["target_loss"] < min(watched[:-1], default=1e99)


class Waiting:
    """Takes a step and, as an engine whose library is not done, no more."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.has_begun = engine, False

    def run(self, rows: Rows, order: Tensor | None, first: int, learning_rates: Sequence[float]) -> Tensor:
        if self.has_begun:
            return torch.empty(0)
        self.has_begun = True
        return self.engine.run(rows, order, first, learning_rates[:1])


@pytest.mark.parametrize(("variant", "seen"), [("full_batch", 30), ("stochastic", 1)])
def test_time_that_is_up_while_the_engine_waits_ends_the_run(variant: str, seen: int) -> None:
    descent = {"variant": variant, "shuffle": False}
    started = session(stop={"max_seconds": 20.0}, descent=descent, optimizer=STUCK, validation=None)
    whole, watcher = started.run(), Watcher()
    waiting = replace(whole, engine=Waiting(whole.engine))
    assert fit(waiting, started.state, watcher, SlowClock()) == "max_seconds"
    rows = started.train.take(None, 0, seen, torch.device("cpu"))
    expected = mean_loss(started.network, started.loss, rows)
    assert [(row["epoch"], row["step"]) for row in watcher.history] == [(1, 1)]
    assert watcher.history[0]["train_loss"] == pytest.approx(expected)


@pytest.mark.parametrize("clock", [stands_still, SlowClock()])
def test_steps_are_counted_through(clock: Callable[[], float]) -> None:
    watcher = Watcher()
    run(session(descent={"batch_size": 10}, stop={"max_steps": 5}, validation=None), watcher, clock)
    assert [(row["epoch"], row["step"]) for row in watcher.history] == [(1, 3), (2, 5)]


@pytest.mark.parametrize("when", [1, 4, 7])
def test_the_watcher_can_stop_it_between_steps(when: int) -> None:
    started = session(descent={"batch_size": 10}, validation=None)
    assert run(started, Watcher(lambda state: "cancel" if state.step == when else None), SlowClock()) == "cancel"
    assert started.state.step == when


def test_seconds_before_a_pause_count() -> None:
    started = session(stop={"max_seconds": 30.0})
    assert run(started, Watcher(lambda state: "pause" if state.elapsed_seconds > 20 else None), SlowClock()) == "pause"
    clock = SlowClock()
    assert run(started, Watcher(), clock) == "max_seconds"
    assert 30 <= started.state.elapsed_seconds < 33
    assert clock.seconds < 13


def test_what_has_ended_does_nothing_more() -> None:
    started = session(stop={"max_epochs": 2})
    run(started)
    before, watcher = weights(started), Watcher()
    assert run(started, watcher) == "max_epochs"
    assert watcher.history == []
    assert_equal(weights(started), before)


# ---- the losses it tells


def test_the_losses_of_an_epoch_are_means_over_rows() -> None:
    """With steps that change nothing, the epoch's loss is that of all rows, whatever the batches."""
    for batch_size in (1, 4, 7, 30):
        watcher = Watcher()
        started = session(optimizer=STUCK, descent={"batch_size": batch_size}, validation={"fraction": 0.3})
        run(started, watcher)
        rows, validation = started.train, started.validation
        assert validation is not None
        expected = mean_loss(started.network, started.loss, rows)
        held_out = mean_loss(started.network, started.loss, validation)
        assert [row["train_loss"] for row in watcher.history] == pytest.approx([expected] * 3, rel=1e-5)
        assert [row["val_loss"] for row in watcher.history] == pytest.approx([held_out] * 3, rel=1e-6)


def test_an_epoch_that_was_cut_short_is_one_of_its_rows() -> None:
    started = session(
        optimizer=STUCK, descent={"batch_size": 10, "shuffle": False}, validation=None, stop={"max_steps": 2}
    )
    watcher = Watcher()
    run(started, watcher)
    rows = started.train.take(None, 0, 20, torch.device("cpu"))
    expected = mean_loss(started.network, started.loss, rows)
    assert [row["train_loss"] for row in watcher.history] == pytest.approx([expected])


def test_learning_rates_follow_the_schedule() -> None:
    watcher = Watcher()
    run(session(optimizer=SGD, schedule={"type": "exponential", "gamma": 0.5}), watcher)
    assert [row["learning_rate"] for row in watcher.history] == pytest.approx([0.05, 0.025, 0.0125])


@pytest.mark.parametrize("stop", [{"max_epochs": 3}, {"max_steps": 9, "max_epochs": 100}])
@pytest.mark.parametrize(("type_", "last"), [("linear", 0.0), ("constant", 0.05)])
def test_the_rate_that_is_told_is_that_of_the_epochs_last_step(stop: dict[str, Any], type_: str, last: float) -> None:
    watcher, schedule = Watcher(), {"type": type_, "warmup_steps": 4}
    spec = {"schedule": schedule, "stop": stop, "optimizer": SGD, "descent": {"batch_size": 10}}
    run(session(**spec, validation=None), watcher, stands_still)
    middle = 0.05 + (last - 0.05) / 4  # the sixth step: one of four from the warm-up's end to the last
    assert [row["learning_rate"] for row in watcher.history] == pytest.approx([0.05 * 3 / 4, middle, last])


def test_a_plateau_lowers_the_rate() -> None:
    watcher = Watcher()
    plateau = {"type": "plateau", "patience": 2, "gamma": 0.5, "end_factor": 0.3}
    run(session(optimizer=STUCK, schedule=plateau, stop={"max_epochs": 8}), watcher)
    factors = [row["learning_rate"] / 1e-30 for row in watcher.history]
    assert factors == pytest.approx([1, 1, 1, 0.5, 0.5, 0.3, 0.3, 0.3])


# ---- what it keeps


UPS_AND_DOWNS: dict[str, Any] = {
    "optimizer": {"type": "sgd", "learning_rate": 0.2},
    "descent": {"batch_size": 3},
    "validation": {"fraction": 0.3},
}


def test_the_best_epoch_is_kept() -> None:
    watcher = Watcher()
    started = session(**UPS_AND_DOWNS, stop={"max_epochs": 12})
    run(started, watcher)
    losses = [row["val_loss"] for row in watcher.history]
    best = losses.index(min(losses))
    assert 0 < best < 11
    assert (started.state.best_epoch, started.state.best) == (best + 1, losses[best])
    last = weights(started)
    started.finish()
    again = session(**UPS_AND_DOWNS, stop={"max_epochs": best + 1, "restore_best": False})
    run(again)
    assert_equal(weights(started), weights(again))
    assert any(not torch.equal(value, last[name]) for name, value in weights(started).items())


def test_the_last_epoch_is_kept_where_none_is_restored() -> None:
    started = session(**UPS_AND_DOWNS, stop={"max_epochs": 12, "restore_best": False})
    run(started)
    last = weights(started)
    started.finish()
    assert started.state.best_epoch < 12
    assert_equal(weights(started), last)


def test_an_epoch_that_could_not_be_judged_is_never_the_best() -> None:
    values = iter([float("nan"), 3.0, float("nan"), 2.0, float("nan")])
    started = session(stop={"max_epochs": 5, "metric": "rmse"})

    class Judged(Judgement):
        def values(self) -> dict[str, float]:
            return super().values() | {"rmse": next(values)}

    run = replace(started.run(), judge=lambda: Judged(started.prepared.targets, started.prepared.truth))
    fit(run, started.state, Watcher())
    assert (started.state.best_epoch, started.state.best) == (4, 2.0)


def test_more_is_better_of_some_metrics() -> None:
    watcher = Watcher()
    spec: dict[str, Any] = {"optimizer": {"type": "adam", "learning_rate": 1.0}, "validation": {"fraction": 0.4}}
    started = session(target="k", stop={"max_epochs": 9, "metric": "accuracy"}, **spec)
    run(started, watcher)
    accuracies = [row["val_accuracy"] for row in watcher.history]
    assert min(accuracies) < max(accuracies)
    best = max(watcher.history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert started.state.best_epoch == best["epoch"]


def test_of_epochs_with_the_same_metric_the_one_with_less_loss_is_kept() -> None:
    """A small validation set's metric is soon what it will be, and goes on to be for patience; the loss is not."""
    values, watcher = iter([2.0, 1.0, 1.0, 1.0, 1.0]), Watcher()
    started = session(stop={"max_epochs": 9, "metric": "rmse", "patience": 3}, validation={"fraction": 0.3})

    class Judged(Judgement):
        def values(self) -> dict[str, float]:
            return super().values() | {"rmse": next(values)}

    run = replace(started.run(), judge=lambda: Judged(started.prepared.targets, started.prepared.truth))
    assert fit(run, started.state, watcher) == "patience"
    losses = [row["val_loss"] for row in watcher.history]
    assert len(losses) == 5
    assert min(losses) == losses[4] < losses[1]
    assert (started.state.best_epoch, started.state.best) == (5, 1.0)


def test_the_moving_average_is_what_is_validated_and_kept() -> None:
    started = session(ema_decay=0.9, stop={"max_epochs": 3, "restore_best": False}, optimizer=SGD)
    watcher = Watcher()
    run(started, watcher)
    live = weights(started)
    started.finish()
    assert any(not torch.equal(value, live[name]) for name, value in weights(started).items())
    validation = started.validation
    assert validation is not None
    loss = mean_loss(started.network, started.loss, validation)
    assert watcher.history[-1]["val_loss"] == pytest.approx(loss, rel=1e-6)


# ---- what goes wrong


@pytest.mark.parametrize(
    ("spec", "scale", "cures"),
    [
        ({"optimizer": SGD | {"learning_rate": 1e6}}, 1, "rate or descent.max_grad_norm"),
        ({"features": None}, 1e15, "rate or descent.max_grad_norm or standardised features"),
        ({"features": None, "descent": {"max_grad_norm": 1e-3}}, 1e38, "rate or standardised features"),
    ],
)
def test_a_loss_that_is_no_number_ends_the_run(spec: dict[str, Any], scale: float, cures: str) -> None:
    started = session(FRAME.with_columns(a=pl.col("a") * scale), stop={"max_epochs": 50}, **{"optimizer": SGD} | spec)
    with pytest.raises(Diverged, match=f"try a smaller optimizer.learning_{cures}$"):
        run(started)


@pytest.mark.parametrize("optimizer", [{"type": "sgd", "momentum": 0.9}, {"type": "adamw"}, {"type": "rmsprop"}])
def test_a_first_step_that_overflows_in_float16_leaves_nothing_in_the_state(optimizer: dict[str, Any]) -> None:
    with uninitialized_memory_is_nan():
        started = session(precision="float16", optimizer=optimizer, descent={"batch_size": 1})
        run(started)
    scaler = started.eager.scaler
    assert scaler is not None
    assert scaler.get_scale() < scaler.__class__("cpu").get_scale()
    assert all(value.isfinite().all() for value in weights(started).values())


# ---- chunks


@pytest.mark.parametrize("clock", [stands_still, SlowClock()])
def test_chunks_of_steps_do_not_matter(clock: Callable[[], float]) -> None:
    spec: dict[str, Any] = {"network": {"hidden_features": [4], "dropout": 0.3, "normalization": "batch_norm"}}
    expected, expected_watcher = session(descent={"batch_size": 3}, **spec), Watcher()
    run(expected, expected_watcher)
    found, watcher = session(descent={"batch_size": 3}, **spec), Watcher()
    run(found, watcher, clock)
    assert watcher.history == expected_watcher.history
    assert_equal(weights(found), weights(expected))


def test_chunks_grow_until_they_take_a_fifth_of_a_second() -> None:
    started, watcher = session(descent={"variant": "stochastic"}, validation=None), Watcher()
    run(started, watcher, stands_still)
    assert watcher.steps[:4] == [1, 5, 21, 30]
    slow = Watcher()
    run(session(descent={"variant": "stochastic"}, validation=None), slow, SlowClock())
    assert slow.steps == list(range(1, 90))


# ---- the same again


def test_the_same_spec_gives_the_same_weights() -> None:
    one, other = session(), session()
    run(one)
    torch.rand(7)
    run(other)
    assert_equal(weights(one), weights(other))


def test_layers_train_though_somebody_left_them_predicting() -> None:
    found = []
    for training in (True, False):
        started = session(network={"hidden_features": [4], "dropout": 0.3, "normalization": "batch_norm"})
        started.network.train(training)
        run(started)
        found.append(weights(started))
    assert_equal(*found)


@pytest.mark.parametrize("mixup", [None, 0.5])
@pytest.mark.parametrize("hidden_features", [[], [4], [4, 4, 4]])
def test_activations_that_are_computed_again_are_the_same(hidden_features: list[int], mixup: float | None) -> None:
    """Batch norms see rows twice, and learn of them once."""
    found = []
    for again in (False, True):
        network = {"hidden_features": hidden_features, "dropout": 0.3, "normalization": "batch_norm"}
        started = session(network=network, activation_checkpointing=again, mixup=mixup)
        run(started)
        found.append({name: value for name, value in weights(started).items() if "num_batches" not in name})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("spec", [{"seed": 1}, {"descent": {"batch_size": 5}}, {"descent": {"shuffle": False}}])
def test_another_spec_gives_others(spec: dict[str, Any]) -> None:
    one, other = session(descent={"batch_size": 4}), session(**{"descent": {"batch_size": 4}, **spec})
    run(one)
    run(other)
    assert any(not torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


def test_full_batch_is_a_mini_batch_of_all_rows() -> None:
    full = session(optimizer=SGD, descent={"variant": "full_batch"})
    mini = session(optimizer=SGD, descent={"variant": "mini_batch", "batch_size": 1000})
    run(full)
    run(mini)
    for name, value in weights(full).items():
        torch.testing.assert_close(value, weights(mini)[name], atol=1e-6, rtol=1e-5)


def test_stochastic_is_a_mini_batch_of_one() -> None:
    one, other = session(descent={"variant": "stochastic"}), session(descent={"batch_size": 1})
    run(one)
    run(other)
    assert_equal(weights(one), weights(other))


def test_a_frozen_batch_norm_goes_by_the_statistics_that_it_keeps() -> None:
    layers = [{"type": "linear", "out_features": 4}, {"type": "batch_norm"}, {"type": "relu"}]
    started = session(network={"layers": layers}, freeze=["layers.1"])
    before = {name: value.clone() for name, value in weights(started).items()}
    run(started)  # which is validated after each epoch
    after = weights(started)
    assert [name for name in after if torch.equal(after[name], before[name])] == [
        f"layers.1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    ]
    learning = started.network(started.train.inputs)
    assert torch.equal(learning, started.network.eval()(started.train.inputs))


@pytest.mark.parametrize("batch_size", [1, 30])
def test_a_weighted_mean_is_learnt_in_batches_of_any_size(batch_size: int) -> None:
    """Of rows without features, by a bias alone."""
    frame = pl.DataFrame({"a": [0.0, 1.0] * 15, "w": [9.0, 1.0] * 15, "y": [2.5, 12.5] * 15})
    network = {"layers": [{"type": "linear", "out_features": 1}], "head": False}
    started = session(
        frame,
        data={"features": ["a"], "sample_weight": "w"},
        network=network,
        init={"weight": "zeros"},
        freeze=["layers.0.weight"],
        descent={"batch_size": batch_size},
        optimizer={"type": "sgd", "learning_rate": 0.1 * batch_size / 30},
        schedule={"type": "linear"},
        stop={"max_epochs": 100},
        features=None,
        validation=None,
    )
    run(started, clock=stands_still)
    assert weights(started)["layers.0.bias"].item() == pytest.approx(3.5, abs=0.05)


def test_weights_are_relative_to_those_of_the_rows_that_are_drawn() -> None:
    """Else a class that is rare, and so both drawn and weighed more, would make all gradients longer."""
    frame = FRAME.with_columns(k=pl.Series(["rare"] * 3 + ["common"] * 27))
    loss = {"type": "auto", "class_weight": "balanced"}
    started = session(frame, "k", loss=loss, descent={"sampling": "class_balanced", "batch_size": 8}, validation=None)
    of_common, of_rare = started.train.weights.unique().tolist()
    assert of_rare == pytest.approx(9 * of_common)
    assert (of_rare + of_common) / 2 == pytest.approx(1)


@pytest.mark.parametrize("sample_weight", [None, "w"])
def test_accumulation_is_a_larger_batch(sample_weight: str | None) -> None:
    data = {"features": ["a", "b"], "sample_weight": sample_weight}
    one = session(data=data, descent={"batch_size": 9}, optimizer=SGD)
    other = session(data=data, descent={"batch_size": 3, "accumulate_steps": 3}, optimizer=SGD)
    run(one)
    run(other)
    for name, value in weights(one).items():
        torch.testing.assert_close(value, weights(other)[name], atol=1e-6, rtol=1e-5)


def test_a_fresh_state_is_the_beginning() -> None:
    assert State() == State(epoch=0, step=0, best=None)


# ---- the range test


def test_a_rate_is_found_that_learns_and_nothing_is_left_of_the_trial() -> None:
    fixed = session(optimizer={"type": "adam", "learning_rate": 0.01})
    found = session(optimizer={"type": "adam", "learning_rate": "auto"})
    assert_equal(weights(found), weights(fixed))
    rate = found.spec.optimizer.learning_rate
    assert isinstance(rate, float)
    assert 1e-4 < rate < 0.5
    assert session(optimizer={"type": "adam", "learning_rate": "auto"}).spec.optimizer.learning_rate == rate
    watcher = Watcher()
    run(found, watcher)
    assert watcher.history[-1]["val_loss"] < 0.8 * watcher.history[0]["val_loss"]


@pytest.mark.parametrize("seed", range(4))
def test_the_luck_of_single_rows_finds_no_rate(seed: int) -> None:
    """A first row that happens to cost next to nothing makes all that follow look as if the rate had blown them up."""
    optimizer = {"type": "sgd", "learning_rate": "auto"}
    found = session(optimizer=optimizer, descent={"variant": "stochastic"}, seed=seed)
    assert 1e-3 < found.spec.optimizer.learning_rate < 0.1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_luck_of_single_batches_finds_no_rate(optimizer: str, seed: int) -> None:
    """Prices: most batches cost next to nothing, and those with a large one many times as much."""
    x = torch.randn((3000, 4), generator=torch.Generator().manual_seed(0)).double()
    prices = pl.DataFrame(x.numpy(), schema=list("abcd")).with_columns(y=(11 + x[:, 0] + 0.8 * x[:, 3]).exp().numpy())
    found = session(prices, "y", {}, optimizer={"type": optimizer, "learning_rate": "auto"}, seed=seed)
    assert 3e-4 < found.spec.optimizer.learning_rate < 0.3


def test_the_least_loss_is_kept_where_it_is_no_gain() -> None:
    """`min_delta` is for patience; what is kept is the best."""
    stop = StopSpec(min_delta=0.5, patience=5, restore_best=True)
    kept: list[Any] = []
    spec = SimpleNamespace(schedule=ConstantSchedule(), stop=stop)
    run = SimpleNamespace(spec=spec, network=nn.Linear(1, 1), keep=lambda weights: kept.append(weights))
    state, seen = State(), []
    for state.epoch, value in enumerate([3.0, 2.8, 2.9, 2.0], 1):
        _track_best(run, state, {"val_loss": value})  # type: ignore[arg-type]
        seen.append((state.best, state.best_epoch, state.epochs_without_gain))
    assert seen == [(3.0, 1, 0), (2.8, 2, 1), (2.8, 2, 2), (2.0, 4, 0)]
    assert len(kept) == 3


@pytest.mark.parametrize(
    ("curve", "gains"),
    [
        ([1.0 - epoch / 100 for epoch in range(100)], True),
        ([1.0 - epoch / 100 for epoch in range(20)], True),
        ([1.0 - epoch / 100 for epoch in range(19)], False),
        ([0.99**epoch for epoch in range(100)], True),
        ([0.9**epoch for epoch in range(100)], False),
        ([1.0, *[0.5] * 98, 0.49], True),
        ([1.0, *[0.5] * 98, 0.491], False),
        ([1.0, *[0.5] * 98, 0.7], False),
        ([100.0, *[0.5] * 98, 0.45], False),
        ([0.5] * 100, False),
        ([0.5 + epoch for epoch in range(100)], False),
    ],
)
@pytest.mark.parametrize("column", ["train_loss", "val_loss", "val_accuracy"])
def test_a_run_that_ends_while_it_gains_is_known(curve: list[float], gains: bool, column: str) -> None:
    metric, sign = ("accuracy", -1) if column == "val_accuracy" else ("loss", 1)
    spec = resolved(FRAME, "k" if metric == "accuracy" else "y", DATA, stop={"metric": metric})
    losses = {"train_loss": 1.0, "val_loss": None if column == "train_loss" else 1.0}
    assert still_gaining(spec, [losses | {column: sign * value} for value in curve]) == gains
