"""Tables, resolved specs and trained models for tests that are about something else."""

from typing import Any

import polars as pl
import torch

from app.learning.model import Model, assemble
from app.learning.network import initialize
from app.learning.prepare import Prepared, prepare
from app.specs.resolve import resolve, signature_of
from app.specs.table import Table
from app.specs.training import TrainingSpec
from app.storage.models import ModelStore
from app.storage.profile import profile_table
from app.storage.tensors import write_tensors
from app.storage.version import write_version

DIGEST = f"sha256:{'0' * 64}"


def table_of(frame: pl.DataFrame) -> Table:
    return profile_table(frame.lazy(), DIGEST)


def posted(target: str | list[str] = "y", data: dict[str, Any] | None = None, **spec: Any) -> TrainingSpec:
    """A spec as a user gives it, of a stored table."""
    stored = {"digest": DIGEST, "target": target, **(data or {})}
    return TrainingSpec.model_validate({"model": "m", "data": stored, **spec})


def resolved(
    frame: pl.DataFrame, target: str | list[str] = "y", data: dict[str, Any] | None = None, **spec: Any
) -> TrainingSpec:
    return resolve(posted(target, data, **spec), table_of(frame))[0]


def prepared(
    spec: TrainingSpec, frame: pl.DataFrame, other: pl.DataFrame | None = None, *, fold: int | None = None
) -> Prepared:
    return prepare(spec, signature_of(spec, table_of(frame)), [frame], None if other is None else [other], fold)


def untrained(frame: pl.DataFrame, target: str | list[str] = "y", **spec: Any) -> Model:
    """A model with its features and targets fitted, and its weights as they start."""
    resolved_spec = resolved(frame, target, **spec)
    parts = prepared(resolved_spec, frame)
    network = assemble(resolved_spec, parts.features, parts.targets.num_outputs)
    torch.manual_seed(resolved_spec.seed)
    initialize(network, resolved_spec.init)
    return Model(resolved_spec, parts.features, parts.targets, network.requires_grad_(False).eval())


def publish(store: ModelStore, model: Model, name: str = "m") -> str:
    """Make a model the next version of its name."""
    version = store.next_version(name)
    job_id = f"job-{name}-{version}"
    folder = store.staging(job_id)
    tensors, config = model.export()
    write_tensors(folder / "model.safetensors", tensors)
    (folder / "history.jsonl").write_bytes(b"")
    write_version(folder, {"job_id": job_id, "created_at": 0.0, "versions": {}} | config, {"train_loss": 0.5})
    store.publish(job_id, name, version)
    return version
