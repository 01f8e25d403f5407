"""One fit: everything that learns, and its form in a checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from app.errors import BadData, StorageFailed
from app.learning.averaging import WeightAverage
from app.learning.batches import add_up, epoch_order, plan_batches
from app.learning.compiled import CompiledSteps
from app.learning.cost import StepCost
from app.learning.devices import set_float32_precision
from app.learning.evaluate import Judgement, mean_loss
from app.learning.fit import InMemory, KeptWeights, Run, State, keep_in_memory, watched
from app.learning.library import Libraries
from app.learning.losses import build_loss
from app.learning.memory import MAX_KEPT_BYTES
from app.learning.model import Model, assemble
from app.learning.network import freeze, initialize, least_rows, set_to_learn
from app.learning.optimizers import build_optimizers, export_state, load_state
from app.learning.plan import num_steps, num_steps_of_job, step_cost
from app.learning.prepare import Prepared
from app.learning.range_test import LEAST_GAIN, find_learning_rate
from app.learning.rehearsal import rehearse
from app.learning.steps import EagerSteps
from app.learning.stopwatch import step_seconds
from app.learning.targets import class_chances
from app.learning.trial import changed_by_steps, taken_back
from app.specs.resolve import FEW_ROWS
from app.specs.table import Label
from app.specs.training import TrainingSpec
from app.storage.checkpoints import Checkpoints, OnDisk
from app.storage.choice import Choice

T = TypeVar("T")
MUCH = 1.5  # times the share of rows that each label would have if all had the same
WORSE = 0.02  # of what is watched, than before: less is no news
LEAST_R2 = 0.01  # of a regression that has learnt something


@dataclass(frozen=True)
class Workplace:
    """Where a session puts large weights aside, keeps compiled code and finds which engine it was given before, and
    whom it tells of what went another way.
    """

    checkpoints: Checkpoints
    libraries: Path
    choice: Path
    warn: Callable[[str], None]


class Session:
    """A network with its optimizer over prepared rows. Without a workplace it is eager, and all of it in memory."""

    def __init__(
        self,
        spec: TrainingSpec,
        prepared: Prepared,
        weights: dict[str, Tensor] | None = None,
        workplace: Workplace | None = None,
    ) -> None:
        torch.manual_seed(spec.seed)
        self.workplace = workplace
        self.spec, self.prepared, self.state = spec, prepared, State()
        self.device = torch.device(spec.device)
        set_float32_precision(spec.precision, self.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # streams, graphs and the generator's state are the current device's
        self.network = assemble(spec, prepared.features, prepared.targets.num_outputs)
        least = least_rows(self.network, prepared.features.num_inputs)
        initialize(self.network, spec.init)
        if weights is not None:
            self.network.load_state_dict(self.network.state_dict() | weights)  # which a new output layer is not among
        self.network.to(self.device)
        freeze(self.network, spec.freeze)
        row_bytes = prepared.train.inputs[:1].nbytes
        self.batching = plan_batches(spec.descent, len(prepared.train), row_bytes=row_bytes, least=least)
        if self.batching.batch_size < least:
            raise BadData(
                "batch_norm needs at least 2 rows a gradient, and of the rows that can be used one is left to learn "
                "from; use layer_norm"
            )
        self.loss = build_loss(spec.loss)
        self.train = prepared.train.to(self.device)
        self.validation = prepared.validation and prepared.validation.to(self.device)
        self._weigh_draws()
        self._build_engine()

    def _build_engine(self) -> None:
        spec = self.spec
        if spec.optimizer.learning_rate == "auto":
            spec = spec.model_copy(update={"optimizer": spec.optimizer.model_copy(update={"learning_rate": 1e-3})})
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.optimizers = build_optimizers(spec.optimizer, trained, scaled=spec.precision == "float16")
        self.average = WeightAverage(self.network, spec.ema_decay) if spec.ema_decay is not None else None
        self.eager = EagerSteps(
            self.network,
            self.loss,
            self.optimizers,
            self.batching,
            max_grad_norm=spec.descent.max_grad_norm,
            precision=spec.precision,
            mixup=spec.mixup,
            average=self.average,
            recompute=spec.activation_checkpointing,
        )
        self.engine: EagerSteps | CompiledSteps = self.eager
        if spec.engine == "compiled" and self.workplace is not None:
            self.engine = self._compiled(self.workplace)

    def _compiled(self, workplace: Workplace) -> CompiledSteps:
        cost = self._step_cost
        meanwhile = cost.eager_steps(num_steps(self.spec, self.batching, cost.eager_seconds))
        return CompiledSteps(
            self.eager,
            self.spec.optimizer,
            workplace.libraries,
            eager_steps=1 if self.device.type == "cuda" else meanwhile,  # a capture is made at once
            compile_seconds=cost.compile_seconds,
            warn=workplace.warn,
            leave_gradient=self.spec.stop.min_grad_norm is not None,
        )

    @cached_property
    def _step_cost(self) -> StepCost:
        features, num_outputs = self.prepared.features, self.prepared.targets.num_outputs
        like = assemble(self.spec, features, num_outputs)
        gradient = rehearse(self.spec, like, features.num_inputs, num_outputs, self.batching)
        return step_cost(self.spec, self.network, gradient)

    def settle_engine(self) -> None:
        """Turn `auto` into an engine; weights, optimizer and RNG are as before."""
        if self.spec.engine != "auto" or self.workplace is None:
            return
        try:
            engine = Choice(self.workplace.choice).settle(self._faster_engine)
        except StorageFailed as error:
            self.workplace.warn(
                f"training goes on without the compiled engine, as the choice of it can't be kept: {error}"
            )
            engine = "eager"
        self._take_engine(engine)
        self._build_engine()

    def _take_engine(self, engine: str) -> None:
        self.spec = self.spec.model_copy(update={"engine": engine})

    def _faster_engine(self) -> str:
        assert self.workplace is not None
        cost = self._step_cost
        seconds = self._try_out(lambda order: step_seconds(self.eager, self.train, order))
        num = num_steps_of_job(self.spec, self.batching, seconds)
        compile_pace = Libraries(self.workplace.libraries).pace() or 1.0
        return "compiled" if cost.repays_compiling(num, seconds / cost.eager_seconds, compile_pace) else "eager"

    def settle_learning_rate(self) -> None:
        """Turn `auto` into a rate; weights, optimizer and RNG are as before."""
        if self.spec.optimizer.learning_rate == "auto":
            rate = self._try_out(lambda order: find_learning_rate(self.eager, self.train, order))
            self._take_learning_rate(self._usual_learning_rate() if rate is None else rate)
            self._build_engine()

    def _usual_learning_rate(self) -> float:
        """The optimizer's default, of which the user hears."""
        optimizer = self.spec.optimizer
        rate = type(optimizer)().learning_rate
        assert rate != "auto"
        if self.workplace is not None:
            self.workplace.warn(
                f"no learning rate made the loss {LEAST_GAIN:.0%} less in the range test: it is {rate}, the default of "
                f"{optimizer.type}"
            )
        return rate

    def _try_out(self, take_steps: Callable[[Tensor | None], T]) -> T:
        """What eager steps in the first epoch's order tell; they are taken back, all but the optimizer's state."""
        set_to_learn(self.network)
        order = epoch_order(self.batching, self.spec.seed, 0, self.train.inputs.device, self._shares())
        with taken_back(changed_by_steps(self.network), self.device):
            return take_steps(order)

    def _take_learning_rate(self, rate: float) -> None:
        optimizer = self.spec.optimizer.model_copy(update={"learning_rate": rate})
        self.spec = self.spec.model_copy(update={"optimizer": optimizer})

    def _shares(self) -> Tensor | None:
        if self.spec.descent.sampling != "class_balanced":
            return None
        return add_up(self._chances())

    def _chances(self) -> Tensor:
        return class_chances(self.prepared.train.targets.flatten().long())

    def _weigh_draws(self) -> None:
        """Weights are relative to the mean one of the rows that are seen, of which some may come more often."""
        weights = self.train.weights
        if weights is not None and self.spec.descent.sampling == "class_balanced":
            chances = self._chances().to(weights.device)
            weights /= (weights * chances).sum() / chances.sum()

    def run(self) -> Run:
        return Run(
            self.spec,
            self.network,
            self.engine,
            self.loss,
            self.batching,
            self.train,
            self.validation,
            self._shares(),
            self.average,
            None if self.spec.stop.metric == "loss" else self._judge,
            self._keep,
        )

    def _keep(self, weights: dict[str, Tensor]) -> KeptWeights:
        """Large weights go to disk, so that training them takes no more memory than it must."""
        if self.workplace is None or sum(value.nbytes for value in weights.values()) <= MAX_KEPT_BYTES:
            return keep_in_memory(weights)
        return self.workplace.checkpoints.keep(weights)

    def _judge(self) -> Judgement:
        return Judgement(self.prepared.targets, self.prepared.truth)

    def finish(self) -> Model:
        """The model of the weights that are to be kept; gradients and the optimizer's state give their memory back."""
        for optimizer in self.optimizers:
            optimizer.state.clear()
        self.network.zero_grad()
        if self.state.best_weights is not None:
            self.network.load_state_dict(self.state.best_weights.load())
        elif self.average is not None:
            self.average.swap()
        return Model(self.spec, self.prepared.features, self.prepared.targets, self.network)

    def measure(self) -> dict[str, float]:
        """The task's metrics over the validation rows (`val_…`), or the training rows where there are none."""
        judged, prefix = (self.validation, "val") if self.validation is not None else (self.train, "train")
        judgement = self._judge()
        mean_loss(self.network, self.loss, judged, judgement)
        values = judgement.values()
        if self.validation is not None and self.workplace is not None:
            if (label := judgement.only_label()) is not None:
                self.workplace.warn(self._one_label(label, values["accuracy"]))
            if len(judged) >= FEW_ROWS and values.get("r2", 1.0) < LEAST_R2:
                self.workplace.warn(
                    "on the validation rows the model is no better than the mean of the target "
                    f"(r2 {values['r2']:.2g}): try another optimizer.learning_rate or more epochs, or features that "
                    "tell more"
                )
        return {f"{prefix}_{name}": value for name, value in values.items()}

    def compare(self, metrics: dict[str, Any], start: Model) -> None:
        """Warn where the validation rows tell that the run began with a better model than it ended with."""
        if self.validation is None or self.workplace is None:
            return
        judgement, metric = self._judge(), self.spec.stop.metric
        begun = {"val_loss": mean_loss(start.network.to(self.device), self.loss, self.validation, judgement)}
        begun |= {f"val_{name}": value for name, value in judgement.values().items()}
        name = f"val_{metric}"
        if not (name in metrics and name in begun):
            return
        before, after = watched(self.spec, begun), watched(self.spec, metrics)
        if after - before > abs(before) * WORSE:
            self.workplace.warn(
                f"warm_start: the model is worse than the version that it began with: {name} is {metrics[name]:.4g}, "
                f"and that one's is {begun[name]:.4g}; try a smaller optimizer.learning_rate"
            )

    def _one_label(self, label: Label, share: float) -> str:
        """The sentence for a model that tells no labels apart, of which the one it says has that share of the rows."""
        is_balanced = self.spec.descent.sampling == "class_balanced" or getattr(self.spec.loss, "class_weight", None)
        are_rare = share * len(self.prepared.targets.classes) > MUCH
        hint = ""
        if are_rare and not is_balanced:
            hint = "descent.sampling class_balanced, which lets rare labels count, or "
        return (
            f"the model takes all validation rows for {label!r}, so that its accuracy is only the share of these: try "
            f"{hint}more epochs or another optimizer.learning_rate"
        )

    # ---- on disk

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, and the rest as JSON."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= export_state(self.optimizers) | {f"rng.{name}": value for name, value in _get_rng().items()}
        best = self.state.best_weights
        if isinstance(best, InMemory):
            tensors |= {f"best.{name}": value for name, value in best.weights.items()}
        if self.average is not None:
            tensors |= {f"average.{name}": value for name, value in self.average.average.items()}
        position = {item.name: getattr(self.state, item.name) for item in fields(State) if item.name != "best_weights"}
        scaler = self.eager.scaler.state_dict() if self.eager.scaler else None
        return tensors, {
            "state": position,
            "scaler": scaler,
            "learning_rate": self.spec.optimizer.learning_rate,
            "engine": self.spec.engine,
            "best_file": best.path.name if isinstance(best, OnDisk) else None,
        }

    def load(self, tensors: dict[str, Tensor], position: dict[str, Any]) -> None:
        """The opposite of `export`, bit for bit."""
        self._take_learning_rate(position["learning_rate"])
        self._take_engine(position.get("engine", self.spec.engine))  # an older one names none: its spec did
        self._build_engine()
        self.network.load_state_dict(_under(tensors, "network."))
        load_state(self.optimizers, tensors)
        self.state = State(**position["state"], best_weights=self._load_best(tensors, position["best_file"]))
        if isinstance(self.engine, CompiledSteps):
            self.engine.steps_done = self.state.step
        if self.average is not None:
            self.average.load(_under(tensors, "average."), self.state.step)
        if self.eager.scaler:
            self.eager.scaler.load_state_dict(position["scaler"])
        _set_rng(_under(tensors, "rng."))

    def _load_best(self, tensors: dict[str, Tensor], file: str | None) -> KeptWeights | None:
        if file is not None:
            assert self.workplace is not None
            return self.workplace.checkpoints.kept(file)
        in_memory = _under(tensors, "best.")
        return InMemory(in_memory) if in_memory else None


def _under(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _get_rng() -> dict[str, Tensor]:
    cuda = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {}
    return {"cpu": torch.get_rng_state()} | cuda


def _set_rng(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
