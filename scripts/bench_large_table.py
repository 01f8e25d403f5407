"""A table that is larger than the memory that a service may have: Linux holds all of its processes to a limit together.

The limit is a memory control group's, in which the pages of files count as well, those of the mapped table among them.
Rows are narrow, as what a run holds for each row beside the mapped file is the more of it, the narrower rows are.
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

from scripts.beside import Beside
from scripts.processes import processes_of
from scripts.service import Service

MB = 10**6
NUM_ROWS, NUM_COLUMNS = 6_000_000, 64
ROWS_AT_ONCE, GROUP_ROWS = 200_000, 20_000  # made, and in a row group of the file, which is read as a whole
LIMIT_BYTES = 1000 * MB
BATCH_SIZE = 4096
MAPPED_FROM_BYTES = 100 * MB
WAIT_SECONDS = 1200
ROOTS = [
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max"),
]
BODY: dict[str, Any] = {
    "model": "large",
    "data": {"dataset": "rows", "target": "y"},
    "network": {"hidden_features": [32]},
    "descent": {"batch_size": BATCH_SIZE},
    "stop": {"max_epochs": 1},
    "engine": "eager",
}


class Own(Beside):
    """The most that the processes of a service have had as their own, by what they do: files' pages are not in it."""

    def __init__(self, service: Service) -> None:
        super().__init__(0.02)
        assert service.process
        self._pid = service.process.pid
        self.num_bytes = {"main": 0, "worker": 0}

    def look(self) -> None:
        for process in processes_of(self._pid):
            if process.role in self.num_bytes:
                self.num_bytes[process.role] = max(self.num_bytes[process.role], anonymous(process.pid))


def anonymous(pid: int) -> int:
    """Resident memory that is no file's, in bytes; 0 where the process has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


def table() -> str:
    """Raises SystemExit where this user may limit nothing."""
    with TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.parquet"
        write_rows(rows)
        with limited(LIMIT_BYTES) as join:
            held = run(rows, {"GRADSERVE_MAX_ROWS_BYTES": str(MAPPED_FROM_BYTES)}, join)
        free = run(rows, {}, [])
    assert held["metrics"] == free["metrics"], (held["metrics"], free["metrics"])
    encoded = 4 * NUM_ROWS * (NUM_COLUMNS + 1)
    return "\n".join(
        [
            "| rows × numbers | encoded (MB) | limit of all processes (MB) | **table / limit** "
            "| own memory of service and worker (MB) | the same, in memory (MB) "
            "| s per million rows, limited | the same, in memory | validation loss, both |",
            "|---|---|---|---|---|---|---|---|---|",
            f"| {NUM_ROWS:,} × {NUM_COLUMNS} | {encoded / MB:.0f} | {LIMIT_BYTES / MB:.0f} "
            f"| **{encoded / LIMIT_BYTES:.2f}** | {_own(held)} | {_own(free)} | {held['seconds']:.1f} "
            f"| {free['seconds']:.1f} | {held['metrics']['val_loss']:.6f} |",
        ]
    )


def _own(job: dict[str, Any]) -> str:
    return ", ".join(f"{num_bytes / MB:.0f}" for num_bytes in job["own_bytes"].values())


def run(rows: Path, settings: dict[str, str], within: list[str]) -> dict[str, Any]:
    """The job once it has succeeded, with the seconds for a million rows, and the most memory of the processes' own."""
    with (
        TemporaryDirectory() as folder,
        Service(Path(folder), settings=settings, within=within) as service,
        httpx.Client(base_url=service.url, timeout=WAIT_SECONDS) as http,
        Own(service) as own,
    ):
        with rows.open("rb") as file:
            http.put("/datasets/rows", content=file).raise_for_status()
        job = http.post("/train", json=BODY, headers={"Prefer": "wait=60"}).raise_for_status().json()
        while not job["terminal"]:
            with http.stream("GET", f"/jobs/{job['id']}/events", headers={"Accept": "text/event-stream"}) as events:
                for _ in events.iter_lines():  # until the job's end
                    pass
            job = http.get(f"/jobs/{job['id']}").raise_for_status().json()
        assert job["state"] == "succeeded", job["error"]
        last = http.get(f"/jobs/{job['id']}/history").raise_for_status().json()["data"][-1]
    seconds = last["elapsed_seconds"] / (last["step"] * BATCH_SIZE / 1e6)  # before validation
    return {**job, "seconds": seconds, "own_bytes": own.num_bytes}


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
def limited(num_bytes: int) -> Iterator[list[str]]:
    """A command that runs another one within the limit."""
    root, limit = next(found for found in ROOTS if (found[0] / "cgroup.procs").exists())
    group = root / f"gradserve-bench-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(num_bytes))
    except OSError as error:
        raise SystemExit(f"this user may limit no memory: {error}") from error
    try:
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    finally:
        group.rmdir()
