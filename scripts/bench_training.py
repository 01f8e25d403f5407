"""Seconds per epoch: both engines against a tight loop that one would write by hand, and what others take."""

import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor
from torch import nn

from app.jobs.session import Session, Workplace
from app.learning.devices import usable_cores
from app.learning.fit import State, fit
from app.learning.plan import plan
from app.learning.prepare import prepare
from app.specs.resolve import resolve, signature_of
from app.specs.table import Table
from app.specs.training import TrainingSpec
from app.storage.checkpoints import Checkpoints
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
MOMENTUM = {"type": "sgd", "learning_rate": 0.001, "momentum": 0.9}
ADAM = {"type": "adam", "learning_rate": 0.001}
WORKS = [
    Work(100_000, 32, [64, 64], 256, ADAM, 1),
    Work(20_000, 32, [64, 64], 32, SGD, 1),
    Work(5_000, 10, [16], 1, SGD, 1),
    Work(20_000, 32, [64, 64], None, SGD, 20),
    Work(20_000, 256, [1024, 1024], 512, ADAM, 1),
    Work(50_000, 20, [32, 32, 32], 64, ADAM, 1),
    Work(10_000, 100, [256], 16, MOMENTUM, 1),
]
DESCENTS = {None: {"variant": "full_batch"}, 1: {"variant": "stochastic"}}


Contender = Callable[[], tuple[float, float]]
"""Trains a fresh network for the work's epochs; returns how many seconds one took, and the last epoch's loss."""


def table(repetitions: int) -> str:
    rows = [
        "| work | tight loop | eager | eager / tight | compiled | **tight / compiled** | scikit-learn | H2O-3 "
        "| 100 epochs: eager, compiled and the compile (s) | `auto` | losses: tight, eager, compiled |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder, h2o_server() as h2o:
        for work in WORKS:
            rows.append(_row(work, repetitions, Path(folder), h2o))
            print(rows[-1], flush=True)
    return "\n".join(rows)


def _row(work: Work, repetitions: int, folder: Path, h2o: Any) -> str:
    """Repetitions take turns, so that a machine that slows down slows all. Of the tight loops the faster one counts."""
    frame = _rows_of(work)
    contenders: dict[str, Contender] = {
        **{f"tight {threads}": tight_loop(work, frame, threads) for threads in sorted({1, usable_cores()})},
        "eager": our_loop(work, frame, "eager", folder),
        "compiled": our_loop(work, frame, "compiled", folder),
        "scikit-learn": scikit_learn(work, frame),
    }
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    first = {name: _whole_seconds(contender) for name, contender in contenders.items()}  # warm up
    compile_seconds = first["compiled"] - _whole_seconds(contenders["compiled"])  # the library is there by now
    for _ in range(repetitions):
        for name, contender in contenders.items():
            runs[name].append(contender())
    seconds = {name: _median_seconds(found) for name, found in runs.items()}
    tight, eager, compiled = (
        min(value for name, value in seconds.items() if name.startswith("tight")), seconds["eager"], seconds["compiled"]
    )  # fmt: skip
    losses = ", ".join(f"{runs[name][0][1]:.4f}" for name in ("tight 1", "eager", "compiled"))
    other = f"{h2o_seconds(h2o, work, frame):.3f}" if h2o is not None else "–"
    return (
        f"| {work} | {tight:.4f} | {eager:.4f} | {eager / tight:.2f} | {compiled:.4f} | **{tight / compiled:.1f}** "
        f"| {seconds['scikit-learn']:.3f} | {other} | {100 * eager:.1f}, {100 * compiled + compile_seconds:.1f} "
        f"| {chosen_engine(work, frame, folder)} | {losses} |"
    )


def _whole_seconds(contender: Contender) -> float:
    begun = time.perf_counter()
    contender()
    return time.perf_counter() - begun


def _median_seconds(runs: list[tuple[float, float]]) -> float:
    return statistics.median(seconds for seconds, _ in runs)


def _rows_of(work: Work) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((work.num_rows, work.num_features)).astype(np.float32)
    y = np.tanh(x @ rng.standard_normal(work.num_features)) + 0.1 * rng.standard_normal(work.num_rows)
    frame = pl.DataFrame(x, schema=[f"x{i}" for i in range(work.num_features)])
    return frame.with_columns(y=pl.Series(y.astype(np.float32)))


# ---- ours


def our_loop(work: Work, frame: pl.DataFrame, engine: str, folder: Path) -> Contender:
    """The last epoch counts: a compiled run takes its first steps eagerly."""
    start = _starter(_spec(work, frame, engine, 2 * work.num_epochs + 1), frame, folder)

    def train() -> tuple[float, float]:
        session, watcher = start(), Watcher()
        fit(session.run(), session.state, watcher)
        times = watcher.times
        return (times[-1] - times[-1 - work.num_epochs]) / work.num_epochs, watcher.losses[work.num_epochs - 1]

    return train


def chosen_engine(work: Work, frame: pl.DataFrame, folder: Path) -> str:
    """What `auto` chooses for 100 epochs, after the compiles that were measured before."""
    session = _starter(_spec(work, frame, "auto", 100), frame, folder)()
    session.settle_engine()
    return session.spec.engine


def _starter(spec: TrainingSpec, frame: pl.DataFrame, folder: Path) -> Callable[[], Session]:
    prepared = prepare(spec, signature_of(spec, _facts(frame)), [frame], None)
    workplace = Workplace(Checkpoints(folder / "job"), folder / "libraries", folder / "engine", _refuse)

    def start() -> Session:
        assert spec.num_threads
        (folder / "engine").unlink(missing_ok=True)
        torch.set_num_threads(spec.num_threads)
        return Session(spec, prepared, None, workplace)

    return start


def _refuse(warning: str) -> None:
    raise RuntimeError(warning)


class Watcher:
    """Looks on, and keeps each epoch's end and loss."""

    def __init__(self) -> None:
        self.times, self.losses = [time.perf_counter()], list[float]()

    def pause_point(self, _state: State) -> None:
        return None

    def epoch_done(self, _state: State, metrics: dict[str, Any]) -> None:
        self.times.append(time.perf_counter())
        self.losses.append(metrics["train_loss"])


def _facts(frame: pl.DataFrame) -> Table:
    return profile_table(frame.lazy(), f"sha256:{0:064}")


def _spec(work: Work, frame: pl.DataFrame, engine: str, num_epochs: int) -> TrainingSpec:
    facts = _facts(frame)
    mini_batch = {"variant": "mini_batch", "batch_size": work.batch_size}
    asked = {
        "model": "bench",
        "data": {"digest": facts.digest, "target": "y", "positional": True},
        "task": "regression",
        "network": {"hidden_features": work.hidden_features},
        "optimizer": work.optimizer,
        "descent": DESCENTS.get(work.batch_size, mini_batch),
        "stop": {"max_epochs": num_epochs},
        "validation": None,
        "features": None,
        "engine": engine,
    }
    spec, _ = resolve(TrainingSpec.model_validate(asked), facts)
    return plan(spec, facts, device="cpu", max_parameters=10**9)[0]


# ---- others


def scikit_learn(work: Work, frame: pl.DataFrame) -> Contender:
    x, y = frame.drop("y").to_numpy(), frame["y"].to_numpy()
    adam = work.optimizer["type"] == "adam"

    def train() -> tuple[float, float]:
        model = MLPRegressor(
            hidden_layer_sizes=tuple(work.hidden_features),
            solver="adam" if adam else "sgd",
            batch_size=work.batch_size or len(x),
            learning_rate_init=work.optimizer["learning_rate"],
            momentum=work.optimizer.get("momentum", 0.0),
            nesterovs_momentum=False,
            alpha=0,
            max_iter=work.num_epochs,
            n_iter_no_change=10**6,
            tol=0,
            random_state=0,
        )
        begun = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x, y)
        return (time.perf_counter() - begun) / work.num_epochs, 2 * model.loss_

    return train


@contextmanager
def h2o_server() -> Iterator[Any]:
    """H2O-3 where its package (`pip install h2o`) and Java are, else None."""
    if find_spec("h2o") is None or shutil.which("java") is None:
        yield None
        return
    import h2o

    h2o.init(nthreads=usable_cores(), verbose=False, bind_to_localhost=True, start_h2o=True)
    h2o.no_progress()
    try:
        yield h2o
    finally:
        h2o.cluster().shutdown()


def h2o_seconds(h2o: Any, work: Work, frame: pl.DataFrame) -> float:
    """One run, by H2O's own clock. It has no full batch: that is a mini-batch of all rows there, too."""
    rows = h2o.H2OFrame({name: frame[name].to_list() for name in frame.columns})
    estimator = h2o.estimators.H2ODeepLearningEstimator(
        hidden=work.hidden_features,
        epochs=work.num_epochs,
        mini_batch_size=work.batch_size or frame.height,
        adaptive_rate=False,
        rate=work.optimizer["learning_rate"],
        train_samples_per_iteration=0,
        score_training_samples=1,
        reproducible=False,
    )
    estimator.train(y="y", training_frame=rows)
    return float(estimator._model_json["output"]["run_time"]) / 1000 / work.num_epochs


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
        return (time.perf_counter() - begun) / work.num_epochs, mean_loss

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
        momentum = work.optimizer.get("momentum", 0.0)
        return torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=momentum, fused=True)
    return torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)
