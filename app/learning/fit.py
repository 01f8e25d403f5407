"""The loop: epochs of steps, until the first stop condition. All it knows of a run's past is in `State`."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from app.errors import Diverged
from app.learning.averaging import WeightAverage
from app.learning.batches import Batching, epoch_order
from app.learning.evaluate import Judgement, mean_loss
from app.learning.losses import LossFunction
from app.learning.network import set_to_learn
from app.learning.rows import Rows
from app.learning.schedules import Span, learning_rate_at
from app.learning.steps import Engine
from app.specs.schedules import ConstantSchedule, PlateauSchedule
from app.specs.training import TrainingSpec

MORE_IS_BETTER = {"accuracy", "f1_macro", "roc_auc", "exact_match", "r2"}
MIN_CURVE = 20  # epochs, of which one can tell where they lead to
CHUNK_SECONDS = 0.2  # how long steps run without a look at the clock or at requests


@dataclass
class State:
    """Where a run is. With the weights, the optimizer's state and torch's RNG, this is all of a checkpoint."""

    epoch: int = 0  # epochs that are done
    step: int = 0  # updates that are done
    step_in_epoch: int = 0
    loss_sum: float = 0.0  # of this epoch so far, a row at a time
    elapsed_seconds: float = 0.0
    best: float | None = None  # of what is watched
    best_loss: float | None = None  # of that epoch
    gained: float = 0.0  # what it was when it last got better by more than `min_delta`
    best_epoch: int = 0
    epochs_without_gain: int = 0
    plateau_factor: float = 1.0
    plateau_epoch: int = 0  # when the plateau's patience began to count
    best_weights: "KeptWeights | None" = None


class KeptWeights(Protocol):
    """The best epoch's weights, put aside in memory or elsewhere."""

    def load(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class InMemory:
    weights: dict[str, Tensor]

    def load(self) -> dict[str, Tensor]:
        return self.weights


def keep_in_memory(weights: dict[str, Tensor]) -> KeptWeights:
    return InMemory({name: value.detach().clone() for name, value in weights.items()})


@dataclass(frozen=True)
class Run:
    """What is trained on what."""

    spec: TrainingSpec
    network: nn.Module
    engine: Engine
    loss: LossFunction
    batching: Batching
    train: Rows
    validation: Rows | None = None
    shares: Tensor | None = None  # by which rows are drawn, where not every row is seen once: `add_up`
    average: WeightAverage | None = None
    judge: Callable[[], Judgement] | None = None  # of validation outputs, where no loss is watched
    keep: Callable[[dict[str, Tensor]], KeptWeights] = keep_in_memory  # of the best epoch so far


class Watcher(Protocol):
    """Whoever looks on; `pause_point` may stop the run by returning a reason."""

    def pause_point(self, state: State) -> str | None:
        """Called between chunks of steps, a few times a second, with all of the state consistent."""

    def epoch_done(self, state: State, metrics: dict[str, Any]) -> None:
        """Called with every epoch's losses."""


def fit(run: Run, state: State, watcher: Watcher, clock: Callable[[], float] = time.perf_counter) -> str:
    """Train in place until a stop condition holds or the watcher stops it; returns which.

    Raises:
        Diverged: the loss is no finite number any more.
    """
    spec, batching = run.spec, run.batching
    span = Span(batching.steps_per_epoch, last_step(spec, batching))
    started = clock() - state.elapsed_seconds
    chunk, rate, steps_per_epoch = 1, 0.0, batching.steps_per_epoch
    set_to_learn(run.network)
    reason = _over(spec, state) or _out_of_epochs(spec, state)
    while reason is None:
        order = epoch_order(batching, spec.seed, state.epoch, run.train.inputs.device, run.shares)
        while reason is None and state.step_in_epoch < steps_per_epoch:
            begun = clock()
            rates = _learning_rates(spec, state, span, chunk)
            losses = run.engine.run(run.train, order, state.step_in_epoch, rates)
            num_taken = losses.shape[0]
            if num_taken:
                _take_in(losses.tolist(), batching, state, spec)
                rate = rates[num_taken - 1]
            state.elapsed_seconds = clock() - started
            chunk = max(1, min(4 * chunk, int(num_taken * CHUNK_SECONDS / max(clock() - begun, 1e-9))))
            reason = _over(spec, state)
            mid_epoch = reason is None and state.step_in_epoch < steps_per_epoch
            if mid_epoch and (asked := watcher.pause_point(state)):
                return asked
        if reason is not None and not state.step_in_epoch:
            return reason  # time was up while the engine waited: an epoch without a step is none
        metrics = _end_epoch(run, state, rate)
        watcher.epoch_done(state, metrics)
        reason = reason or _stop_after_epoch(run, state, metrics)
        if reason is None and (asked := watcher.pause_point(state)):
            return asked
    return reason


def last_step(spec: TrainingSpec, batching: Batching) -> int:
    """How many steps a run has if nothing ends it early; 0 where only time does."""
    ends = [spec.stop.max_steps, spec.stop.max_epochs and spec.stop.max_epochs * batching.steps_per_epoch]
    return min((end for end in ends if end is not None), default=0)


def _learning_rates(spec: TrainingSpec, state: State, span: Span, chunk: int) -> list[float]:
    """The rates of the next steps: at most `chunk`, and none past the epoch or `max_steps`."""
    num = min(chunk, span.steps_per_epoch - state.step_in_epoch)
    if spec.stop.max_steps is not None:
        num = min(num, spec.stop.max_steps - state.step)
    base = spec.optimizer.learning_rate
    assert base != "auto", "the range test has settled it"
    if isinstance(spec.schedule, ConstantSchedule) and state.step >= spec.schedule.warmup_steps:
        return [base] * num
    steps = range(state.step, state.step + num)
    return [learning_rate_at(spec.schedule, base, step, span) * state.plateau_factor for step in steps]


def _take_in(losses: list[float], batching: Batching, state: State, spec: TrainingSpec) -> None:
    """Count the steps and sum the losses one by one, so that the sum doesn't depend on how steps came in chunks."""
    sizes = batching.sizes(state.step_in_epoch, state.step_in_epoch + len(losses))
    for loss, size in zip(losses, sizes, strict=True):
        state.loss_sum += loss * size
    state.step += len(losses)
    state.step_in_epoch += len(losses)
    if not math.isfinite(state.loss_sum):
        cures = ["a smaller optimizer.learning_rate"]
        cures += ["descent.max_grad_norm"] if spec.descent.max_grad_norm is None else []
        cures += [] if spec.features and spec.features.standardize is True else ["standardised features"]
        raise Diverged(
            f"the loss was no finite number any more by step {state.step} (epoch {state.epoch + 1}); "
            f"try {' or '.join(cures)}"
        )


def _end_epoch(run: Run, state: State, learning_rate: float) -> dict[str, Any]:
    """Validate and count an epoch; one that `max_steps` or `max_seconds` cut short is an epoch of its rows."""
    train_loss = state.loss_sum / run.batching.bounds(0, state.step_in_epoch)[1]
    state.epoch, state.step_in_epoch, state.loss_sum = state.epoch + 1, 0, 0.0
    metrics = {"epoch": state.epoch, "step": state.step, "train_loss": train_loss, "val_loss": None}
    with run.average.in_place() if run.average else nullcontext():
        metrics |= _validate(run)
        _track_best(run, state, metrics)
    return metrics | {"learning_rate": learning_rate, "elapsed_seconds": round(state.elapsed_seconds, 6)}


def _validate(run: Run) -> dict[str, float]:
    rows = run.validation
    if rows is None:
        return {}
    judgement = run.judge() if run.judge else None
    losses = {"val_loss": mean_loss(run.network, run.loss, rows, judgement)}
    if judgement is None:
        return losses
    metric = run.spec.stop.metric
    return losses | {f"val_{metric}": judgement.values().get(metric, 0.0)}  # no roc_auc where one class is missing


def watched(spec: TrainingSpec, metrics: dict[str, Any]) -> float:
    """What early stopping, plateaus and the best epoch go by; less is better."""
    if metrics["val_loss"] is None:
        return float(metrics["train_loss"])
    value = float(metrics[f"val_{spec.stop.metric}"])
    return -value if spec.stop.metric in MORE_IS_BETTER else value


def still_gaining(spec: TrainingSpec, history: Sequence[dict[str, Any]]) -> bool:
    """Whether the last tenth of a run's epochs made what is watched better by a fiftieth, and by no trifle."""
    values = [watched(spec, metrics) for metrics in history]
    if len(values) < MIN_CURVE:
        return False
    best, before = min(values), min(values[: len(values) * 9 // 10])
    return before - best > max(abs(best) / 50, (values[0] - best) / 1000)


def _track_best(run: Run, state: State, metrics: dict[str, Any]) -> None:
    value, loss, schedule = watched(run.spec, metrics), metrics["val_loss"], run.spec.schedule
    known = state.best is not None and not math.isnan(state.best)
    if _is_better(value, loss, state):
        state.best, state.best_loss, state.best_epoch = value, loss, state.epoch
        if run.spec.stop.restore_best:
            state.best_weights = None  # so that there is never more than one copy
            state.best_weights = run.keep(run.network.state_dict())
    if not known or value < state.gained - run.spec.stop.min_delta:
        state.gained, state.epochs_without_gain, state.plateau_epoch = value, 0, state.epoch
        return
    state.epochs_without_gain += 1
    if isinstance(schedule, PlateauSchedule) and state.epoch - state.plateau_epoch >= schedule.patience:
        state.plateau_factor = max(schedule.end_factor, state.plateau_factor * schedule.gamma)
        state.plateau_epoch = state.epoch


def _is_better(value: float, loss: float | None, state: State) -> bool:
    """Whether an epoch is better than the best so far: of epochs with the same metric, the one with less loss is."""
    if state.best is None or math.isnan(state.best):
        return True
    if value == state.best and loss is not None and state.best_loss is not None:
        return loss < state.best_loss
    return value < state.best


def _over(spec: TrainingSpec, state: State) -> str | None:
    if spec.stop.max_steps is not None and state.step >= spec.stop.max_steps:
        return "max_steps"
    if spec.stop.max_seconds is not None and state.elapsed_seconds >= spec.stop.max_seconds:
        return "max_seconds"
    return None


def _stop_after_epoch(run: Run, state: State, metrics: dict[str, Any]) -> str | None:
    stop = run.spec.stop
    loss = metrics["train_loss"] if metrics["val_loss"] is None else metrics["val_loss"]
    if stop.target_loss is not None and loss <= stop.target_loss:
        return "target_loss"
    if stop.patience is not None and state.epochs_without_gain >= stop.patience:
        return "patience"
    if stop.min_grad_norm is not None and _grad_norm(run.network) < stop.min_grad_norm:
        return "min_grad_norm"
    return _out_of_epochs(run.spec, state)


def _out_of_epochs(spec: TrainingSpec, state: State) -> str | None:
    return "max_epochs" if spec.stop.max_epochs is not None and state.epoch >= spec.stop.max_epochs else None


def _grad_norm(network: nn.Module) -> float:
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients).item()
