"""On a CUDA device: steps a second, eager against graphed, and the share of the matmul peak that a wide net reaches."""

import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import torch

from app.jobs.session import Session, Workplace
from app.learning.compiled import CompiledSteps
from app.learning.fit import State, fit
from app.learning.plan import plan
from app.learning.prepare import prepare
from app.specs.resolve import resolve, signature_of
from app.specs.training import TrainingSpec
from app.storage.checkpoints import Checkpoints
from app.storage.profile import profile_table

SMALL: list[tuple[str, int, list[int], int, dict[str, Any]]] = [
    ("10 × 16 × 1, batch 32, sgd", 10, [16], 32, {"type": "sgd", "learning_rate": 0.01}),
    ("32 × 64 × 64 × 1, batch 256, adam", 32, [64, 64], 256, {"type": "adam"}),
    ("32 × 64 × 64 × 1, batch 32, sgd with momentum", 32, [64, 64], 32, {"type": "sgd", "momentum": 0.9}),
]
NUM_ROWS = 2**20
WIDTH, DEPTH, WIDE_BATCH, WIDE_FEATURES = 8192, 4, 16384, 1024
WIDE_STEPS, PEAK_PRODUCTS = 16, 1000  # long enough for the clock rate that a card can keep up


class Watcher:
    """Looks on; knows how long each epoch took."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]
        self.loss = float("nan")

    def pause_point(self, _state: State) -> None:
        return None

    def epoch_done(self, _state: State, metrics: dict[str, Any]) -> None:
        torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        self.loss = metrics["train_loss"]

    @property
    def last_epoch_seconds(self) -> float:
        return self.times[-1] - self.times[-2]


def table(repetitions: int) -> str:
    card = torch.cuda.get_device_name()
    small = "\n".join(_small_row(*work, repetitions) for work in SMALL)
    return (
        f"On one {card}, torch {torch.__version__}.\n\n"
        "| work | eager, steps/s | graphed, steps/s | graphed / eager | loss, eager | loss, graphed |\n"
        f"|---|---|---|---|---|---|\n{small}\n\n{_wide()}"
    )


def _small_row(
    name: str, num_features: int, hidden: list[int], batch: int, optimizer: dict[str, Any], times: int
) -> str:
    frame = _frame(NUM_ROWS, num_features)
    steps = NUM_ROWS // batch
    eager, graphed = (
        [_train(frame, hidden, batch, optimizer, engine) for _ in range(times)] for engine in ("eager", "compiled")
    )
    rates = [steps / sorted(run.last_epoch_seconds for run in runs)[times // 2] for runs in (eager, graphed)]
    losses = f"{eager[0].loss:.4f} | {graphed[0].loss:.4f}"
    row = f"| {name} | {rates[0]:.0f} | {rates[1]:.0f} | {rates[1] / rates[0]:.1f} | {losses} |"
    print(row, flush=True)
    return row


def _wide() -> str:
    """Model FLOPs: six for each weight and row, of the first layer, whose inputs get no gradient, four. The peak: the
    better of two matrix products in bfloat16, a square one of the same width and one of a batch's rows.
    """
    frame = _frame(WIDE_BATCH * WIDE_STEPS, WIDE_FEATURES)
    run = _train(frame, [WIDTH] * DEPTH, WIDE_BATCH, {"type": "sgd"}, "eager", precision="bfloat16")
    first, others = WIDE_FEATURES * WIDTH, WIDTH * WIDTH * (DEPTH - 1) + WIDTH
    weights = first + others
    reached = (4 * first + 6 * others) * frame.height / run.last_epoch_seconds
    peak = max(_matmul_peak(WIDTH), _matmul_peak(WIDE_BATCH))
    text = (
        f"A net of {DEPTH} layers {WIDTH} wide ({weights / 1e6:.0f} M parameters), batch {WIDE_BATCH}, bfloat16: "
        f"{reached / 1e12:.0f} TFLOP/s, {100 * reached / peak:.0f} % of a matrix product's {peak / 1e12:.0f} TFLOP/s."
    )
    print(text, flush=True)
    return text


def _matmul_peak(num_rows: int) -> float:
    a, b = (torch.randn(size, WIDTH, device="cuda", dtype=torch.bfloat16) for size in (num_rows, WIDTH))
    for _ in range(PEAK_PRODUCTS // 10):
        a @ b
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(PEAK_PRODUCTS):
        a @ b
    torch.cuda.synchronize()
    return PEAK_PRODUCTS * 2 * num_rows * WIDTH**2 / (time.perf_counter() - begun)


def _train(
    frame: pl.DataFrame,
    hidden: list[int],
    batch: int,
    optimizer: dict[str, Any],
    engine: str,
    precision: str = "float32",
) -> Watcher:
    facts = profile_table(frame.lazy(), f"sha256:{0:064}")
    body = {
        "model": "bench",
        "data": {"digest": facts.digest, "target": "y", "positional": True},
        "task": "regression",
        "network": {"hidden_features": hidden},
        "optimizer": optimizer,
        "descent": {"batch_size": batch},
        "stop": {"max_epochs": 3},
        "validation": None,
        "features": None,
        "device": "cuda",
        "engine": engine,
        "precision": precision,
    }
    asked = TrainingSpec.model_validate(body)
    spec, _, _ = plan(resolve(asked, facts)[0], facts, device="cuda", max_parameters=10**10)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workplace = Workplace(Checkpoints(folder / "job"), folder / "libraries", folder / "engine", _refuse)
        session = Session(spec, prepare(spec, signature_of(spec, facts), [frame], None), None, workplace)
        watcher = Watcher()
        fit(session.run(), session.state, watcher)
    is_graphed = isinstance(session.engine, CompiledSteps) and session.engine._loop is not None
    assert is_graphed is (engine == "compiled"), "what is measured is what the column says"
    return watcher


def _refuse(warning: str) -> None:
    raise RuntimeError(warning)


def _frame(num_rows: int, num_features: int) -> pl.DataFrame:
    x = torch.randn(num_rows, num_features, generator=torch.Generator().manual_seed(0))
    y = torch.tanh(x.sum(1) / num_features**0.5)
    frame = pl.DataFrame(x.numpy(), schema=[f"x{index}" for index in range(num_features)])
    return frame.with_columns(y=pl.Series(y.numpy()))
