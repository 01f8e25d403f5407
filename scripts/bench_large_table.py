"""A table that is larger than the memory that a service may have: Linux holds all of its processes to a limit together.

The limit is a memory control group's, in which the pages of files count as well, those of the mapped table among them.
The same job in a service without a limit, which keeps the table in memory, must learn the same to the last digit.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import polars as pl

from scripts.service import Service

MB = 10**6
NUM_ROWS, NUM_COLUMNS = 2_000_000, 256
ROWS_AT_ONCE, GROUP_ROWS = 50_000, 5_000  # made, and in a row group of the file, which is read as a whole
LIMIT_BYTES = 1400 * MB
MAPPED_FROM_BYTES = 100 * MB
WAIT_SECONDS = 1200
ROOTS = [
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max", "memory.peak"),
]
BODY: dict[str, Any] = {
    "model": "large",
    "data": {"dataset": "rows", "target": "y"},
    "network": {"hidden_features": [32]},
    "descent": {"batch_size": 4096},
    "stop": {"max_epochs": 1},
    "validation": None,
    "engine": "eager",
}


def table() -> str:
    """Raises SystemExit where this user may limit nothing."""
    with TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.parquet"
        write_rows(rows)
        with limited(LIMIT_BYTES) as (join, peak_bytes):
            held = run(rows, {"GRADSERVE_MAX_ROWS_BYTES": str(MAPPED_FROM_BYTES)}, join)
            most = peak_bytes()
        free = run(rows, {}, [])
    assert held["metrics"]["train_loss"] == free["metrics"]["train_loss"], (held["metrics"], free["metrics"])
    encoded = 4 * NUM_ROWS * (NUM_COLUMNS + 1)
    return "\n".join(
        [
            "| rows × numbers | encoded (MB) | limit of all processes (MB) | **table / limit** | most in use (MB) "
            "| s per epoch, limited | s per epoch, in memory | loss, both |",
            "|---|---|---|---|---|---|---|---|",
            f"| {NUM_ROWS:,} × {NUM_COLUMNS} | {encoded / MB:.0f} | {LIMIT_BYTES / MB:.0f} "
            f"| **{encoded / LIMIT_BYTES:.2f}** | {most / MB:.0f} | {held['epoch_seconds']:.1f} "
            f"| {free['epoch_seconds']:.1f} | {held['metrics']['train_loss']:.6f} |",
        ]
    )


def run(rows: Path, settings: dict[str, str], within: list[str]) -> dict[str, Any]:
    """The job once it has succeeded, with the seconds of an epoch as `epoch_seconds`."""
    with (
        TemporaryDirectory() as folder,
        Service(Path(folder), settings=settings, within=within) as service,
        httpx.Client(base_url=service.url, timeout=WAIT_SECONDS) as http,
    ):
        with rows.open("rb") as file:
            http.put("/datasets/rows", content=file).raise_for_status()
        job = http.post("/train", json=BODY, headers={"Prefer": "wait=60"}).raise_for_status().json()
        while not job["terminal"]:
            job = http.get(f"/jobs/{job['id']}").raise_for_status().json()
        assert job["state"] == "succeeded", job["error"]
        last = http.get(f"/jobs/{job['id']}/history").raise_for_status().json()["data"][-1]
    return {**job, "epoch_seconds": last["elapsed_seconds"] / last["epoch"]}


def write_rows(path: Path) -> None:
    """A table of numbers, made and written some rows at a time."""
    names = [f"x{index}" for index in range(NUM_COLUMNS)]
    generator = np.random.default_rng(0)

    def part() -> pl.DataFrame:
        x = generator.standard_normal((ROWS_AT_ONCE, NUM_COLUMNS), np.float32)
        return pl.DataFrame(x, schema=names).with_columns(y=pl.Series(np.tanh(x[:, 0] + x[:, -1])))

    parts = [path.with_name(f"{number}.parquet") for number in range(NUM_ROWS // ROWS_AT_ONCE)]
    for each in parts:
        part().write_parquet(each, row_group_size=GROUP_ROWS)
    pl.scan_parquet(parts).sink_parquet(path, row_group_size=GROUP_ROWS)
    for each in parts:
        each.unlink()


@contextmanager
def limited(num_bytes: int) -> Iterator[tuple[list[str], Any]]:
    """A command that runs another one within the limit, and what tells the most that was in use."""
    root, limit, peak = next(found for found in ROOTS if (found[0] / "cgroup.procs").exists())
    group = root / f"gradserve-bench-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(num_bytes))
    except OSError as error:
        raise SystemExit(f"this user may limit no memory: {error}") from error
    try:
        join = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
        yield join, lambda: int((group / peak).read_text())
    finally:
        group.rmdir()
