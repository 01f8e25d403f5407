"""A refactor must give the same losses as before: those of `losses.json`.

Where they are meant to change, `pytest tests/golden --regenerate-golden` writes them anew; look at the difference.
"""

import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from tests.unit.learning.runs import Watcher, run, session

FILE = Path(__file__).with_name("losses.json")
TOLERANCE = 1e-5  # relative; float32 sums differ from processor to processor
NUM_ROWS = 64

FRAME = pl.DataFrame(
    {
        "a": [math.sin(1.7 * i) for i in range(NUM_ROWS)],
        "b": [None if i % 9 == 4 else math.cos(0.9 * i) * 10 for i in range(NUM_ROWS)],
        "c": [["red", "green", "blue"][i * i % 3] for i in range(NUM_ROWS)],
        "w": [1 + i % 4 for i in range(NUM_ROWS)],
        "amount": [math.sin(1.7 * i) * 3 + i * i % 3 + 0.1 * math.cos(5.0 * i) for i in range(NUM_ROWS)],
        "kind": [["low", "mid", "high"][int(1.5 + 1.4 * math.sin(1.7 * i))] for i in range(NUM_ROWS)],
        "flag": [math.cos(0.9 * i) + math.sin(1.7 * i) > 0 for i in range(NUM_ROWS)],
    }
)
DATA = {"features": ["a", "b", "c"]}
SPECS: dict[str, dict[str, Any]] = {
    "defaults": {"target": "amount"},
    "linear regression": {
        "target": "amount",
        "data": {"features": ["a", "w"]},
        "network": {"hidden_features": []},
        "init": {"weight": "normal"},
        "optimizer": {"type": "sgd", "learning_rate": 0.05},
        "descent": {"variant": "full_batch"},
        "features": None,
        "validation": None,
    },
    "stochastic": {"target": "amount", "optimizer": {"type": "sgd"}, "descent": {"variant": "stochastic"}},
    "classes, one-hot, weighted, clipped": {
        "target": "kind",
        "data": DATA | {"sample_weight": "w"},
        "network": {"hidden_features": [16, 16], "activation": "gelu", "normalization": "layer_norm"},
        "loss": {"type": "cross_entropy", "class_weight": "balanced", "label_smoothing": 0.1},
        "optimizer": {"type": "rmsprop", "momentum": 0.5},
        "descent": {"batch_size": 5, "accumulate_steps": 2, "max_grad_norm": 0.5},
        "schedule": {"type": "cosine", "warmup_steps": 3},
        "features": {"categorical": "one_hot"},
    },
    "binary, residual, dropout": {
        "target": "flag",
        "network": {
            "layers": [
                {"type": "linear", "out_features": 8},
                {
                    "type": "residual",
                    "layers": [{"type": "batch_norm"}, {"type": "silu"}, {"type": "linear", "out_features": 8}],
                },
                {"type": "dropout", "p": 0.25},
            ]
        },
        "optimizer": {"type": "nadam"},
        "schedule": {"type": "exponential", "gamma": 0.8},
        "validation": {"fraction": 0.25},
        "seed": 7,
    },
}


def losses(spec: dict[str, Any]) -> list[dict[str, float]]:
    watcher = Watcher()
    run(session(FRAME, **{"data": DATA, "network": {}, "stop": {"max_epochs": 4}, **spec}), watcher)
    names = ("train_loss", "val_loss")
    return [{name: row[name] for name in names if row[name] is not None} for row in watcher.history]


@pytest.mark.parametrize("name", SPECS)
def test_losses_are_as_they_were(name: str, request: pytest.FixtureRequest) -> None:
    torch.set_num_threads(1)
    found, golden = losses(SPECS[name]), json.loads(FILE.read_text()) if FILE.exists() else {}
    if request.config.getoption("--regenerate-golden"):
        FILE.write_text(json.dumps({key: golden.get(key) for key in SPECS} | {name: found}, indent=1) + "\n")
        pytest.fail(f"{FILE.name} has been written; run again without --regenerate-golden")
    for epoch, (row, expected) in enumerate(zip(found, golden[name], strict=True), start=1):
        assert row == pytest.approx(expected, rel=TOLERANCE), f"epoch {epoch}"


def test_nothing_is_golden_that_is_not_run() -> None:
    assert list(json.loads(FILE.read_text())) == list(SPECS)
