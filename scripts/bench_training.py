"""Seconds per epoch: the learning room against a tight loop that one would write by hand."""

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from torch import nn

from app.jobs.session import Session
from app.learning.fit import State, fit
from app.learning.plan import plan, usable_cores
from app.learning.prepare import prepare
from app.specs.resolve import resolve, signature_of
from app.specs.training import TrainingSpec
from app.storage.profile import profile_table


class Work(NamedTuple):
    """A multi-layer perceptron with one output on random rows; `batch_size` None is full batch."""

    num_rows: int
    num_features: int
    hidden_features: list[int]
    batch_size: int | None
    optimizer: dict[str, Any]
    num_epochs: int

    def __str__(self) -> str:
        rows = f"{self.num_rows // 1000}k × {self.num_features}"
        batch = "full batch" if self.batch_size is None else f"batch {self.batch_size}"
        return f"{rows}, {'-'.join(map(str, self.hidden_features))}, {batch}, {self.optimizer['type']}"


SGD = {"type": "sgd", "learning_rate": 0.01}
ADAM = {"type": "adam", "learning_rate": 0.001}
WORKS = [
    Work(100_000, 32, [64, 64], 256, ADAM, 1),
    Work(20_000, 32, [64, 64], 32, SGD, 1),
    Work(5_000, 10, [16], 1, SGD, 1),
    Work(20_000, 32, [64, 64], None, SGD, 20),
    Work(20_000, 256, [1024, 1024], 512, ADAM, 1),
]
DESCENTS = {None: {"variant": "full_batch"}, 1: {"variant": "stochastic"}}


Contender = Callable[[], tuple[float, float]]
"""Trains a fresh network for the work's epochs; returns how many seconds they took, and the last epoch's loss."""


def table(repetitions: int) -> str:
    rows = [
        "| work | tight loop (s/epoch) | ours (s/epoch) | ours / tight | loss, tight | loss, ours |",
        "|---|---|---|---|---|---|",
    ]
    for work in WORKS:
        rows.append(_row(work, repetitions))
        print(rows[-1], flush=True)
    return "\n".join(rows)


def _row(work: Work, repetitions: int) -> str:
    """Repetitions take turns, so that a machine that slows down slows all. Of the tight loops the faster one counts."""
    frame = _rows_of(work)
    contenders = {threads: tight_loop(work, frame, threads) for threads in sorted({1, usable_cores()})}
    ours = our_loop(work, frame)
    for contender in (*contenders.values(), ours):
        contender()  # warm up
    tight_runs: dict[int, list[tuple[float, float]]] = {threads: [] for threads in contenders}
    our_runs = []
    for _ in range(repetitions):
        for threads, contender in contenders.items():
            tight_runs[threads].append(contender())
        our_runs.append(ours())
    tight, our = min(map(_median_seconds, tight_runs.values())), _median_seconds(our_runs)
    losses = f"{tight_runs[1][0][1]:.4f} | {our_runs[0][1]:.4f}"
    return (
        f"| {work} | {tight / work.num_epochs:.4f} | {our / work.num_epochs:.4f} | **{our / tight:.2f}** | {losses} |"
    )


def _median_seconds(runs: list[tuple[float, float]]) -> float:
    return statistics.median(seconds for seconds, _ in runs)


def _rows_of(work: Work) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((work.num_rows, work.num_features)).astype(np.float32)
    y = np.tanh(x @ rng.standard_normal(work.num_features)) + 0.1 * rng.standard_normal(work.num_rows)
    frame = pl.DataFrame(x, schema=[f"x{i}" for i in range(work.num_features)])
    return frame.with_columns(y=pl.Series(y.astype(np.float32)))


# ---- ours


def our_loop(work: Work, frame: pl.DataFrame) -> Contender:
    table = profile_table(frame.lazy(), f"sha256:{0:064}")
    asked = TrainingSpec.model_validate(_body(work, table.digest))
    spec, _, _ = plan(resolve(asked, table)[0], table, device="cpu", max_parameters=10**9)
    prepared = prepare(spec, signature_of(spec, table), [frame], None)

    def train() -> tuple[float, float]:
        assert spec.num_threads
        torch.set_num_threads(spec.num_threads)
        session, watcher = Session(spec, prepared, None), Watcher()
        begun = time.perf_counter()
        fit(session.run(), session.state, watcher)
        return time.perf_counter() - begun, watcher.loss

    return train


class Watcher:
    """Looks on and keeps the last epoch's loss."""

    loss = float("nan")

    def pause_point(self, _state: State) -> None:
        return None

    def epoch_done(self, _state: State, metrics: dict[str, Any]) -> None:
        self.loss = metrics["train_loss"]


def _body(work: Work, digest: str) -> dict[str, Any]:
    mini_batch = {"variant": "mini_batch", "batch_size": work.batch_size}
    return {
        "model": "bench",
        "data": {"digest": digest, "target": "y", "positional": True},
        "task": "regression",
        "network": {"hidden_features": work.hidden_features},
        "optimizer": work.optimizer,
        "descent": DESCENTS.get(work.batch_size, mini_batch),
        "stop": {"max_epochs": work.num_epochs},
        "validation": None,
        "features": None,
    }


# ---- by hand


def tight_loop(work: Work, frame: pl.DataFrame, num_threads: int) -> Contender:
    x = torch.from_numpy(frame.drop("y").to_numpy().copy())
    y = torch.from_numpy(frame.select("y").to_numpy().copy())
    batch_size = work.batch_size or len(x)

    def train() -> tuple[float, float]:
        torch.set_num_threads(num_threads)
        torch.manual_seed(0)
        network = _network(work)
        optimizer = _optimizer(work, network)
        begun = time.perf_counter()
        for _ in range(work.num_epochs):
            total = torch.zeros(())
            order = torch.randperm(len(x))
            x_shuffled, y_shuffled = (x[order], y[order]) if batch_size < len(x) else (x, y)
            for i in range(0, len(x), batch_size):
                optimizer.zero_grad(set_to_none=True)
                inputs = x_shuffled[i : i + batch_size]
                loss = nn.functional.mse_loss(network(inputs), y_shuffled[i : i + batch_size])
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(inputs)
            mean_loss = total.item() / len(x)
        return time.perf_counter() - begun, mean_loss

    return train


def _network(work: Work) -> nn.Sequential:
    """With the weights that ours starts with, up to the draw: He's uniform, zero biases, an output of zero."""
    sizes = [work.num_features, *work.hidden_features]
    layers: list[nn.Module] = []
    for in_features, out_features in pairwise(sizes):
        linear = nn.Linear(in_features, out_features)
        nn.init.kaiming_uniform_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    head = nn.Linear(sizes[-1], 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(*layers, head)


def _optimizer(work: Work, network: nn.Module) -> torch.optim.Optimizer:
    learning_rate = work.optimizer["learning_rate"]
    if work.optimizer["type"] == "sgd":
        return torch.optim.SGD(network.parameters(), lr=learning_rate, fused=True)
    return torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)
