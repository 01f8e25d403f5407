"""One training run from a work order to a staged version. Imports all that a worker needs, so fork after importing."""

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import polars as pl
import torch
import torch._dynamo  # torch.optim and meta tensors import it on first use, which takes a second
import torchmetrics.functional.classification  # as do metrics: both are here before the fork
import torchmetrics.functional.regression  # noqa: F401
from torch import nn

from app import __version__
from app.errors import Diverged, OutOfMemory
from app.jobs.order import Control, Emit, Outcome, WorkOrder
from app.learning.batches import plan_batches
from app.learning.evaluate import forward_all
from app.learning.fit import Run, State, fit
from app.learning.losses import build_loss
from app.learning.metrics import measure
from app.learning.model import Model, assemble
from app.learning.network import initialize
from app.learning.optimizers import Optimizers, build_optimizers, export_state, load_state
from app.learning.prepare import Prepared, prepare
from app.learning.steps import EagerSteps
from app.specs.resolve import signature_of
from app.specs.table import StoredData, Table
from app.specs.training import TrainingSpec, ValidationDataset
from app.storage.checkpoints import Checkpoints
from app.storage.datasets import read_facts, table_path
from app.storage.models import ModelStore, write_version
from app.storage.tables import read_table
from app.storage.tensors import write_tensors

PROGRESS_SECONDS = 0.2


def train(order: WorkOrder, emit: Emit, control: Control) -> Outcome:
    """Run, or go on from the last checkpoint.

    Raises:
        TrainingFailed: diverged, out of memory, or data that the spec does not allow.
    """
    with _out_of_memory_explained():
        return Training(order, emit, control).run()


class Training:
    """A run in progress: the watcher of `fit`, which reports, checkpoints, and stops on request."""

    def __init__(self, order: WorkOrder, emit: Emit, control: Control) -> None:
        self.order, self.emit, self.control = order, emit, control
        self.spec = TrainingSpec.model_validate(order.spec)
        self.checkpoints = Checkpoints(order.job_dir)
        self.models = ModelStore(Path(order.models_dir))
        self.state = State()
        self.history: list[dict[str, Any]] = []
        self.last_checkpoint = self.last_progress = time.monotonic()

    def run(self) -> Outcome:
        spec = self.spec
        assert spec.num_threads is not None
        torch.set_num_threads(spec.num_threads)
        torch.manual_seed(spec.seed)
        prepared = self._prepare()
        self.network = initialize(assemble(spec, prepared.features, prepared.targets.num_outputs), spec.init)
        self._warm_start()
        self.network.to(spec.device)
        self.optimizers: Optimizers = build_optimizers(spec.optimizer, self.network.parameters())
        self._resume()
        reason = fit(self._plan(prepared), self.state, self)
        if reason == "cancel":
            return Outcome("cancelled")
        if reason == "pause":
            self._checkpoint()
            return Outcome("paused")
        return self._publishable(prepared, reason)

    # ---- before

    def _prepare(self) -> Prepared:
        spec, data = self.spec, self.spec.data
        assert isinstance(data, StoredData)
        assert data.digest is not None
        assert data.features is not None
        columns = [*data.features, *data.targets, *([data.sample_weight] if data.sample_weight else [])]
        root = Path(self.order.data_dir) / "datasets"
        table: Table = read_facts(root, data.digest)
        other: pl.DataFrame | None = None
        if isinstance(spec.validation, ValidationDataset):
            assert spec.validation.digest is not None
            other = read_table(table_path(root, spec.validation.digest), columns)
        frame = read_table(table_path(root, data.digest), columns)
        prepared = prepare(spec, signature_of(spec, table), frame, other)
        for warning in prepared.warnings:
            self.emit("warning", {"detail": warning})
        return prepared

    def _plan(self, prepared: Prepared) -> Run:
        spec = self.spec
        device = torch.device(spec.device)
        least = 2 if any(isinstance(module, nn.BatchNorm1d) for module in self.network.modules()) else 1
        batching = plan_batches(spec.descent, len(prepared.train), least=least)
        loss = build_loss(spec.loss)
        engine = EagerSteps(
            self.network,
            loss,
            self.optimizers,
            batching,
            max_grad_norm=spec.descent.max_grad_norm,
            precision=spec.precision,
        )
        validation = prepared.validation and prepared.validation.to(device)
        return Run(spec, self.network, engine, loss, batching, prepared.train.to(device), validation)

    def _warm_start(self) -> None:
        start = self.spec.warm_start
        if start is None:
            return
        version = self.models.get(start.model, self.models.resolve(start.model, start.version))
        weights = Model.load(version.load_tensors(), version.config).network.state_dict()
        self.network.load_state_dict(weights)

    def _resume(self) -> None:
        found = self.checkpoints.load()
        if found is None:
            return
        tensors, position = found
        best = _under(tensors, "best.")
        self.network.load_state_dict(_under(tensors, "network."))
        load_state(self.optimizers, tensors)
        _set_rng(_under(tensors, "rng."))
        self.state = State(
            **position, best_weights={name: tensor.to(self.spec.device) for name, tensor in best.items()}
        )
        self.history = self.checkpoints.load_history(self.state.epoch)

    # ---- during (the watcher of `fit`)

    def epoch_done(self, _state: State, metrics: dict[str, Any]) -> None:
        self.history.append(metrics)
        self.emit("metrics", metrics)

    def pause_point(self, state: State) -> str | None:
        now = time.monotonic()
        if now - self.last_progress >= PROGRESS_SECONDS:
            self.last_progress = now
            self.emit("progress", _progress(self.spec, state))
        if self.control.request is None and now - self.last_checkpoint >= self.order.checkpoint_interval_seconds:
            self._checkpoint()
        return self.control.request

    def _checkpoint(self) -> None:
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= export_state(self.optimizers) | {f"rng.{name}": value for name, value in _get_rng().items()}
        tensors |= {f"best.{name}": value for name, value in self.state.best_weights.items()}
        position = {item.name: getattr(self.state, item.name) for item in fields(State) if item.name != "best_weights"}
        self.checkpoints.save(tensors, position, self.history)
        self.last_checkpoint = time.monotonic()

    # ---- after

    def _publishable(self, prepared: Prepared, reason: str) -> Outcome:
        if self.state.best_weights:
            self.network.load_state_dict(self.state.best_weights)
        for name, value in self.network.state_dict().items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise Diverged(f"{name} holds numbers that are not finite; try a smaller optimizer.learning_rate")
        model = Model(self.spec, prepared.features, prepared.targets, self.network)
        metrics = self._metrics(model, prepared)
        self._stage(model, metrics)
        self.emit("progress", _progress(self.spec, self.state) | {"fraction": 1.0, "eta_seconds": 0.0})
        return Outcome("succeeded", metrics, reason)

    def _metrics(self, model: Model, prepared: Prepared) -> dict[str, Any]:
        rows, prefix = (prepared.train, "train") if prepared.validation is None else (prepared.validation, "val")
        outputs = forward_all(self.network, rows.inputs, device=torch.device(self.spec.device))
        measured = measure(model.signature.task, prepared.targets.activate(outputs), prepared.truth)
        last = next((row for row in self.history if row["epoch"] == self.state.best_epoch), self.history[-1])
        kept = last if self.state.best_weights else self.history[-1]
        losses = {key: kept[key] for key in ("train_loss", "val_loss") if kept[key] is not None}
        return losses | {f"{prefix}_{name}": value for name, value in measured.items()}

    def _stage(self, model: Model, metrics: dict[str, Any]) -> None:
        folder = self.models.staging(self.order.job_id)
        tensors, config = model.export()
        write_tensors(folder / "model.safetensors", tensors)
        Checkpoints.write_history(folder / "history.jsonl", self.history)
        origin = {
            "job_id": self.order.job_id,
            "created_at": time.time(),
            "versions": {"gradserve": __version__, "torch": torch.__version__, "python": platform.python_version()},
        }
        write_version(folder, origin | config, metrics)


def _progress(spec: TrainingSpec, state: State) -> dict[str, Any]:
    """How far, by the nearest of the ends that are known."""
    stop = spec.stop
    parts = [
        state.epoch / stop.max_epochs if stop.max_epochs else 0.0,
        state.step / stop.max_steps if stop.max_steps else 0.0,
        state.elapsed_seconds / stop.max_seconds if stop.max_seconds else 0.0,
    ]
    fraction = min(1.0, max(parts))
    eta = state.elapsed_seconds * (1 - fraction) / fraction if fraction else None
    return {
        "epoch": state.epoch,
        "num_epochs": stop.max_epochs,
        "step": state.step,
        "fraction": fraction,
        "eta_seconds": eta,
    }


def _under(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _get_rng() -> dict[str, Any]:
    cuda = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {}
    return {"cpu": torch.get_rng_state()} | cuda


def _set_rng(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


@contextmanager
def _out_of_memory_explained() -> Iterator[None]:
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemory(f"memory ran out: {error}; try a smaller network or descent.batch_size") from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise OutOfMemory(f"memory ran out: {error}; try a smaller network or descent.batch_size") from error
