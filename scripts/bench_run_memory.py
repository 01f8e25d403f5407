"""The most memory that a job's process takes, in a real service, against what a dry run says before.

Every work has a service of its own. The peak is Linux's high-water mark of the process's resident memory (VmHWM), read
until it ends: what it shares with the process that it was forked from counts, so does a file's mapped part.
"""

import io
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import polars as pl

from scripts.beside import Beside
from scripts.processes import with_role
from scripts.service import Service

MIB = 2**20
WAIT_SECONDS = 900
IMAGES = [
    *({"type": "conv2d", "out_channels": 64, "padding": 1}, {"type": "batch_norm"}, {"type": "relu"}),
    *({"type": "conv2d", "out_channels": 64, "padding": 1}, {"type": "relu"}, {"type": "max_pool2d"}),
    *({"type": "conv2d", "out_channels": 128, "padding": 1}, {"type": "relu"}, {"type": "global_avg_pool"}),
]
WORDS = [{"type": "embedding", "num_embeddings": 200_000, "embedding_features": 128}, {"type": "mean_over_sequence"}]
SERIES = [{"type": "lstm", "hidden_features": 256, "num_layers": 2}]
SENTENCES = [
    *({"type": "embedding", "num_embeddings": 5_000, "embedding_features": 128}, {"type": "positional_embedding"}),
    {"type": "transformer_encoder", "num_heads": 4, "feedforward_features": 512, "num_layers": 4},
    {"type": "mean_over_sequence"},
]


@dataclass(frozen=True)
class Work:
    """A job over `num_rows` rows of `num_columns` numbers; with `whole`, whole numbers below that.

    `mapped`: the encoded rows go to a file.
    """

    name: str
    num_rows: int
    num_columns: int
    network: dict[str, Any]
    batch_size: int
    max_steps: int | None = None
    whole: int | None = None
    mapped: bool = False
    accumulate_steps: int = 1
    engine: str = "eager"

    @property
    def body(self) -> dict[str, Any]:
        return {
            "model": "bench",
            "data": {"dataset": "rows", "target": "y"},
            "task": "regression",
            "network": self.network,
            "features": {"standardize": True if self.whole is None else "target"},
            "descent": {"batch_size": self.batch_size, "accumulate_steps": self.accumulate_steps},
            "stop": {"max_steps": self.max_steps},
            "validation": None,
            "engine": self.engine,
        }


LARGE = Work("296 M parameters, checkpoints, publishing", 1_000, 32, {"hidden_features": [8600] * 5}, 64, 3)
WORKS = [
    LARGE,
    Work("wide MLP, 4 × 2048, batch 4096", 8_192, 64, {"hidden_features": [2048] * 4}, 4096, 2),
    Work(
        "the same, a step of 4 gradients of 2048",
        *(16_384, 64, {"hidden_features": [2048] * 4}, 2048, 2),
        accumulate_steps=4,
    ),
    Work("the same net, batch 512, compiled", 20_000, 64, {"hidden_features": [2048] * 4}, 512, 60, engine="compiled"),
    Work("LSTM, 2 × 256, 64 places, batch 256", 1_024, 1024, {"layers": SERIES, "input_shape": [64, 16]}, 256, 3),
    Work(
        "convolutions on 3×32×32 images, batch 512", 1_024, 3072, {"layers": IMAGES, "input_shape": [3, 32, 32]}, 512, 2
    ),
    Work("embedding of 200 000 words", 20_000, 32, {"layers": WORDS, "input_shape": [32]}, 1024, 6, 200_000),
    Work("transformer, 128 places, batch 128", 1_000, 128, {"layers": SENTENCES, "input_shape": [128]}, 128, 2, 5_000),
    Work("3 M rows of 32 numbers, in memory", 3_000_000, 32, {"hidden_features": [64, 64]}, 1024, 50),
    Work(
        "the same as a mapped file",
        *(3_000_000, 32, {"hidden_features": [64, 64]}, 1024, 50, None),
        mapped=True,
    ),
]


class Peak(Beside):
    """Watches the job's process of a service."""

    def __init__(self, service: Service) -> None:
        super().__init__(0.003)
        assert service.process
        self._pid, self.num_bytes = service.process.pid, 0

    def look(self) -> None:
        for pid in with_role(self._pid, "worker"):
            self.num_bytes = max(self.num_bytes, high_water(pid))


def high_water(pid: int) -> int:
    """The most resident memory that a process has had, in bytes; 0 where it has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def table() -> str:
    lines = [
        "| work | parameters (M) | predicted (MiB) | peak (MiB) | **predicted / peak** | a job of ten rows (MiB) "
        "| peak / (weights, gradients, state) |",
        "|---|---|---|---|---|---|---|",
    ]
    for work in WORKS:
        lines.append(measure(work))
        print(lines[-1], flush=True)
    return "\n".join(lines)


@dataclass(frozen=True)
class Trained:
    """What a job's run took."""

    peak_bytes: int
    seconds: float


def measure(work: Work) -> str:
    """A row of the table."""
    foretold, base, peak = figures(work)
    state = 16 * foretold["num_parameters"]
    share = foretold["memory_bytes"] / peak
    return (
        f"| {work.name} | {foretold['num_parameters'] / 1e6:.1f} | {foretold['memory_bytes'] / MIB:.0f} "
        f"| {peak / MIB:.0f} | **{share:.2f}** | {base / MIB:.0f} "
        f"| {f'**{peak / state:.2f}**' if work is LARGE else '–'} |"
    )


def figures(work: Work) -> tuple[dict[str, Any], int, int]:
    """The dry run's answer, and the peaks of a job of ten rows and of the work's, in bytes."""
    settings = {"GRADSERVE_CHECKPOINT_INTERVAL_SECONDS": "5", "GRADSERVE_MAX_STALL_SECONDS": "600"}
    if work.mapped:
        settings["GRADSERVE_MAX_ROWS_BYTES"] = str(MIB)
    rows = rows_of(work)
    with TemporaryDirectory() as folder, Service(Path(folder), settings=settings) as service:
        url = service.url
        httpx.put(f"{url}/datasets/rows", content=rows, timeout=WAIT_SECONDS).raise_for_status()
        ten = {"inputs": [[x] for x in range(10)], "targets": list(range(10))}
        base = train(service, {"model": "ten", "data": ten, "stop": {"max_seconds": 1}}).peak_bytes
        answer = httpx.post(f"{url}/train?dry_run=true", json=work.body, timeout=WAIT_SECONDS).raise_for_status()
        return answer.json(), base, train(service, work.body).peak_bytes


def train(service: Service, body: dict[str, Any]) -> Trained:
    """A job, until it has succeeded."""
    with Peak(service) as peak:
        answer = httpx.post(f"{service.url}/train", json=body, headers={"Prefer": "wait=60"}, timeout=WAIT_SECONDS)
        job = answer.raise_for_status().json()
        while not job["terminal"]:
            job = httpx.get(f"{service.url}/jobs/{job['id']}", timeout=WAIT_SECONDS).json()
            peak.join(0.1)
    assert job["state"] == "succeeded", job["error"]
    begun, ended = (datetime.fromisoformat(job[name]) for name in ("started_at", "finished_at"))
    return Trained(peak.num_bytes, (ended - begun).total_seconds())


def rows_of(work: Work) -> bytes:
    generator = np.random.default_rng(0)
    shape = (work.num_rows, work.num_columns)
    x = generator.standard_normal(shape) if work.whole is None else generator.integers(0, work.whole, shape)
    frame = pl.DataFrame(x, schema=[f"x{index}" for index in range(work.num_columns)])
    file = io.BytesIO()
    frame.with_columns(y=pl.Series(np.tanh(x[:, 0] + x[:, -1]))).write_parquet(file)
    return file.getvalue()
