"""Published versions of models that were never trained, for tests of how they are served."""

import time
from pathlib import Path
from typing import Any

import polars as pl

from app.learning.model import Model
from app.storage.models import ModelStore
from app.storage.tensors import write_tensors
from app.storage.version import write_version
from tests.samples import untrained

ROWS = 60

NUMBERS = pl.DataFrame(
    {"x0": [row * 0.1 for row in range(ROWS)], "x1": [row % 7 * 1.5 for row in range(ROWS)], "y": [0.5] * ROWS}
)
"""Plain rows of two numbers."""

COLUMNS = pl.DataFrame(
    {
        "size": [None if row % 9 == 0 else row * 0.1 for row in range(ROWS)],
        "count": [row % 5 for row in range(ROWS)],
        "kept": [row % 2 == 0 for row in range(ROWS)],
        "color": [None if row % 8 == 0 else ("red", "grün", "blue")[row % 3] for row in range(ROWS)],
        "species": [("Adelie", "Gentoo", "Chinstrap")[row % 3] for row in range(ROWS)],
        "y": [row * 0.3 for row in range(ROWS)],
        "z": [row * 0.2 for row in range(ROWS)],
        "wet": [row % 3 == 0 for row in range(ROWS)],
        "cold": [row % 5 < 2 for row in range(ROWS)],
    }
)
"""Inputs of each kind, with gaps, and targets of each task: `species`, `y` and `z`, `wet` and `cold`."""
FEATURES = ("size", "count", "kept", "color")


DRAWN: dict[str, Any] = {"init": {}}
"""Weights that are all drawn: an output layer that starts at zero would give the same answer to every row."""


def numbers_model(**spec: Any) -> Model:
    return untrained(NUMBERS, data={"positional": True}, **DRAWN | spec)


def columns_model(target: str | list[str] = "species", **spec: Any) -> Model:
    return untrained(COLUMNS, target, data={"features": list(FEATURES)}, **DRAWN | spec)


def publish(models_dir: Path, name: str, model: Model) -> str:
    """The version's number."""
    store = ModelStore(models_dir)
    version = store.next_version(name)
    job_id = f"test-{name}-{version}"
    folder = store.staging(job_id)
    tensors, config = model.export()
    write_tensors(folder / "model.safetensors", tensors)
    (folder / "history.jsonl").write_bytes(b"")
    write_version(folder, {"job_id": job_id, "created_at": time.time(), **config}, {"loss": 0.5})
    store.publish(job_id, name, version)
    return version
