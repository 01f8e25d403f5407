"""One training run from a work order to a staged version. Imports all that a worker needs, so fork after importing."""

import hashlib
import math
import mmap
import os
import platform
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.ma  # polars imports it on first use, which takes some of a short run: here, before the fork
import torch
import torch._dynamo  # as do torch.optim and meta tensors, where it takes a second
from torch import Tensor

from app import __version__
from app.errors import Diverged, OutOfMemory, StorageFailed, is_out_of_memory
from app.jobs.journal import Journal
from app.jobs.order import Control, Emit, Outcome, WorkOrder
from app.jobs.session import Session, Workplace
from app.jobs.start import Start
from app.learning.devices import free_cards as free_cards  # for the worker, which imports no torch itself
from app.learning.fit import fit, still_gaining
from app.learning.leaks import leaks
from app.learning.memory import part_rows
from app.learning.model import Model
from app.learning.plan import encoded_bytes
from app.learning.prepare import Frames, Prepared, in_memory, prepare
from app.specs.resolve import signature_of
from app.specs.table import StoredData
from app.specs.training import TrainingSpec, ValidationDataset
from app.storage.checkpoints import ROWS, Checkpoints
from app.storage.datasets import read_facts, table_path
from app.storage.matrices import map_matrix, write_matrix
from app.storage.models import ModelStore
from app.storage.tables import TableParts, read_table
from app.storage.tensors import write_tensors
from app.storage.version import write_version

STORE_SECONDS = 5.0  # between two attempts to store a model for which the disk has no room
LOOK_SECONDS = 0.1  # for a request, meanwhile

torch.manual_seed(0)  # what torch looks up at its first use is looked up before the fork, too
torch.nn.Linear(1, 1, device="meta")(torch.empty(1, 1, device="meta"))


def train(order: WorkOrder, emit: Emit, control: Control) -> Outcome:
    """Run, or go on from the last checkpoint.

    Raises:
        TrainingFailed: diverged, out of memory, or data that the spec does not allow.
    """
    spec = TrainingSpec.model_validate(order.spec)
    assert spec.num_threads is not None
    torch.set_num_threads(spec.num_threads)
    checkpoints = Checkpoints(order.job_dir)
    checkpoints.remove_leftovers()
    journal = Journal(spec, checkpoints, emit, control, order.checkpoint_interval_seconds)
    with _denormals_flushed(), _out_of_memory_explained():
        return Training(order, spec, journal).run()


class Training:
    """The fits of a job: one, or with cross-validation one for each fold and one over all rows."""

    def __init__(self, order: WorkOrder, spec: TrainingSpec, journal: Journal) -> None:
        self.order, self.spec, self.journal = order, spec, journal
        self.models = ModelStore(Path(order.models_dir))
        cache = Path(order.data_dir) / "cache"
        choice = cache / "engines" / _digest(spec)
        self.workplace = Workplace(journal.checkpoints, cache / "libraries", choice, journal.warn)

    def run(self) -> Outcome:
        self._read()
        folds = self.spec.num_fits - 1
        resumed = self.journal.load()
        self.start = Start.of(self.models, self.spec.warm_start) if self.spec.warm_start else None
        is_fresh = resumed is None or folds  # a checkpoint has weights of its own
        weights = self.start.weights(self.spec) if self.start and is_fresh else None
        for fold in range(len(self.journal.folds), folds + 1):
            held_out = fold if fold < folds else None
            spec = self.spec if held_out is not None or not folds else _over_all_rows(self.spec, self.journal.folds)
            prepared = self._prepare(held_out)
            if held_out is None:
                self.tables.clear()  # what is encoded is all that is still needed
            session = Session(spec, prepared, weights, self.workplace)
            if resumed is not None:
                session.load(*resumed)
                resumed = None
            else:
                session.settle_engine()
                session.settle_learning_rate()
            self.spec = self.spec.model_copy(update={"engine": session.spec.engine})  # that of all fits
            self.journal.watch(session, fold if folds else None)
            reason = fit(session.run(), session.state, self.journal)
            if reason in ("cancel", "pause"):
                return self._interrupted(reason)
            model = session.finish()
            _require_finite(model)
            metrics = self.journal.losses() | session.measure() | self.journal.best_epoch()
            if held_out is not None:
                self.journal.end_fold(metrics, session.state, reason)
                del prepared, session, model  # before the next ones take memory
        if self.start is not None and self.start.is_comparable(self.spec):
            session.compare(metrics, self.start.model)
        if folds:
            model = replace(model, spec=self.spec)  # what the job can be repeated from, not its last fit alone
            metrics |= {"num_epochs": session.state.epoch}
        elif reason == "max_epochs" and still_gaining(self.spec, self.journal.history):
            gain, hope = "the model was still getting better", "better one"
            if self.spec.validation is None:
                gain = "the training loss was still falling"
                hope = "smaller one, which only validation rows show to be better"
            self.journal.warn(
                f"{gain} in the last of {len(self.journal.history)} epochs: a larger stop.max_epochs may give a {hope}"
            )
        return self._stage(model, metrics, reason)

    def _interrupted(self, reason: str) -> Outcome:
        if reason == "cancel":
            return Outcome("cancelled")
        self.journal.checkpoint()
        return Outcome("paused")

    # ---- before

    def _read(self) -> None:
        """The rows of table and validation dataset: in memory, or part by part where they would take too much of it."""
        data, validation, root = self.spec.data, self.spec.validation, Path(self.order.data_dir) / "datasets"
        assert isinstance(data, StoredData)
        assert data.digest is not None
        assert data.features is not None
        columns = [*data.features, *data.targets, *([data.sample_weight] if data.sample_weight else [])]
        facts = read_facts(root, data.digest)
        self.signature = signature_of(self.spec, facts)
        self.streams = encoded_bytes(self.spec, facts) > self.order.max_rows_bytes
        digests = [data.digest]
        if isinstance(validation, ValidationDataset):
            assert validation.digest is not None
            digests.append(validation.digest)
        num_rows = part_rows(len(columns))
        paths = [table_path(root, digest) for digest in digests]
        self.tables: list[Frames] = [
            TableParts(path, columns, num_rows)
            if self.streams
            else list(read_table(path, columns).iter_slices(num_rows))
            for path in paths
        ]
        if not self.streams:  # else it would be a pass over the disk
            for warning in leaks(self.spec, facts, self.tables[0]):
                self.journal.warn(warning)

    def _prepare(self, fold: int | None) -> Prepared:
        collect = self._on_disk if self.streams else in_memory
        table, other = self.tables[0], self.tables[1] if len(self.tables) > 1 else None
        fitted = self.start.fitted(self.spec, self.signature) if self.start else None
        prepared = prepare(self.spec, self.signature, table, other, fold, collect, fitted)
        if not self.journal.folds:
            for warning in prepared.warnings:
                self.journal.warn(warning)
        return prepared

    def _on_disk(self, parts: Iterable[Tensor], shape: tuple[int, int]) -> tuple[Tensor, mmap.mmap]:
        descriptor, name = tempfile.mkstemp(prefix=ROWS, dir=self.order.job_dir)
        os.close(descriptor)
        write_matrix(Path(name), (part.numpy() for part in parts))
        matrix, mapping = map_matrix(Path(name), shape)
        Path(name).unlink()  # the mapping keeps it for as long as it is needed
        return torch.from_numpy(matrix), mapping

    # ---- after

    def _stage(self, model: Model, metrics: dict[str, Any], reason: str) -> Outcome:
        """Where the disk takes nothing, wait until it does: what is learnt is not lost for that."""
        metrics = summarize(self.journal.folds, metrics)
        if beyond := [name for name, value in metrics.items() if name != "folds" and not math.isfinite(value)]:
            self.journal.warn(f"{', '.join(beyond)}: no number, as outputs for some of the rows are beyond float32")
        while (error := self._try_to_write(model, metrics)) is not None:
            self.journal.warn(f"the trained model can't be stored yet, which is tried again until it can be: {error}")
            if asked := self._asked_within(STORE_SECONDS):
                return Outcome("cancelled" if asked == "cancel" else "paused")
        self.journal.emit("progress", self.journal.progress() | {"fraction": 1.0, "eta_seconds": 0.0})
        return Outcome("succeeded", metrics, reason)

    def _try_to_write(self, model: Model, metrics: dict[str, Any]) -> StorageFailed | None:
        """What the disk is to blame for; nothing is left of a version that did not find room."""
        try:
            self._write(model, metrics)
        except OSError as error:
            self.models.discard(self.order.job_id)
            if (known := StorageFailed.of(error)) is None:
                raise
            return known
        return None

    def _write(self, model: Model, metrics: dict[str, Any]) -> None:
        folder = self.models.staging(self.order.job_id)
        tensors, config = model.export()
        write_tensors(folder / "model.safetensors", tensors)
        Checkpoints.write_history(folder / "history.jsonl", self.journal.history)
        origin = {
            "job_id": self.order.job_id,
            "created_at": time.time(),
            "versions": {"gradserve": __version__, "torch": torch.__version__, "python": platform.python_version()},
        }
        write_version(folder, origin | config, metrics)

    def _asked_within(self, seconds: float) -> str | None:
        """What is asked of the run meanwhile. One that is paused now goes on from its last checkpoint."""
        end = time.monotonic() + seconds
        while (asked := self.journal.control.request) is None and time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
        return asked


def _digest(spec: TrainingSpec) -> str:
    """Of all that a run's numbers depend on."""
    content = spec.model_dump_json(exclude={"model", "tags", "description"})
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _over_all_rows(spec: TrainingSpec, folds: list[dict[str, Any]]) -> TrainingSpec:
    """The last run of a cross-validation has no validation to stop it: it is as long as what is kept of the folds."""
    update: dict[str, Any] = {"metric": "loss", "patience": None, "restore_best": False}
    if spec.stop.restore_best or spec.stop.patience is not None:
        update["max_epochs"] = max(1, round(fmean(fold["best_epoch"] for fold in folds)))
    return spec.model_copy(update={"stop": spec.stop.model_copy(update=update), "validation": None})


def summarize(folds: list[dict[str, Any]], metrics: dict[str, Any]) -> dict[str, Any]:
    """With cross-validation: mean and deviation of each fold's metrics beside those of the published model."""
    if not folds:
        return metrics
    names = dict.fromkeys(name for fold in folds for name in fold if name.startswith("val_"))
    values = {name: [fold[name] for fold in folds if name in fold] for name in names}
    means = {name: fmean(found) for name, found in values.items()}
    with np.errstate(invalid="ignore"):  # a loss beyond float32 has no deviation
        spread = {f"{name}_std": float(np.std(found, ddof=1)) for name, found in values.items() if len(found) > 1}
    return means | spread | {name: value for name, value in metrics.items() if name not in means} | {"folds": folds}


def _require_finite(model: Model) -> None:
    for name, value in model.network.state_dict().items():
        if value.is_floating_point() and not math.isfinite(value.sum().item()) and not bool(value.isfinite().all()):
            raise Diverged(f"{name} holds numbers that are not finite; try a smaller optimizer.learning_rate")


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    """Moments that fade away would slow down all arithmetic on them."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def _out_of_memory_explained() -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"memory ran out: {error}; try a smaller network or descent.batch_size") from error
