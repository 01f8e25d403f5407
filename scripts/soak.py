"""A day of mixed load in a few minutes: uploads, training, predictions, streams, deletes. Run it through scripts/soak.

After a warm-up the clients rest and the service is measured; at the end they rest again and it is measured again. The
exit status is 0 only if its memory has grown by no more than 5 %, it has no more files and connections open, what
should have been removed has been, and no request has failed.
"""

import argparse
import os
import secrets
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from scripts.figures import machine, write_figures
from scripts.processes import memory_of, open_files, processes_of, with_role
from scripts.service import Service
from scripts.soak_clients import STEADY, Load

MAX_JOBS, MAX_EVENTS = 100, 60
DAY_SECONDS = 86400
SETTINGS = {
    "GRADSERVE_MAX_FINISHED_JOBS": str(MAX_JOBS),
    "GRADSERVE_MAX_EVENTS_PER_JOB": str(MAX_EVENTS),
    "GRADSERVE_KEEP_EVENTS_DAYS": str(5 / DAY_SECONDS),
    "GRADSERVE_KEEP_ORPHANS_SECONDS": "60",
    "GRADSERVE_HOUSEKEEPING_INTERVAL_SECONDS": "1",
    "GRADSERVE_MAX_RUNNING_JOBS": "2",
    "GRADSERVE_LOG_LEVEL": "warning",
}
WARM_UP = 0.25  # of the time
MAX_GROWTH = 0.05
SPARE_DESCRIPTORS = 3
MAX_POOLED = 2 * 16 + 1  # files of a process: SQLAlchemy's pool has 15 connections at most, the supervisor one more
SETTLE_SECONDS = 120.0
MIB = 2**20
SPARE_BYTES = 24 * MIB  # of disk: SQLite's journal, and pages that are kept for what comes


@dataclass(frozen=True)
class Sample:
    """A look at the service. `memory_bytes` are its own, `mapped_bytes` those of files, of which it has a share.

    Workers, which come and go, count apart, and so do files of the database: `num_pooled` is the most of a process.
    """

    seconds: float
    memory_bytes: int
    mapped_bytes: int
    worker_bytes: int
    num_descriptors: int
    num_pooled: int
    database_bytes: int
    data_bytes: int


@dataclass
class Report:
    """`faults` are sentences; `rest` are the samples while nobody asked anything: after the warm-up and at the end."""

    samples: list[Sample] = field(default_factory=list)
    rest: list[Sample] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def judge(self, max_growth: float = MAX_GROWTH) -> list[str]:
        """What has grown between the two rests, in sentences."""
        before, after = self.rest
        found = []
        for name, was, grown in (
            ("database", before.database_bytes, after.database_bytes),
            ("data/", before.data_bytes, after.data_bytes),
        ):
            if grown > was + SPARE_BYTES:
                found.append(f"{name} grew from {was / MIB:.0f} to {grown / MIB:.0f} MiB")
        if after.memory_bytes > before.memory_bytes * (1 + max_growth):
            found.append(f"memory grew from {before.memory_bytes / MIB:.0f} to {after.memory_bytes / MIB:.0f} MiB")
        if after.num_descriptors > before.num_descriptors + SPARE_DESCRIPTORS:
            found.append(f"descriptors grew from {before.num_descriptors} to {after.num_descriptors}")
        if after.num_pooled > MAX_POOLED:
            found.append(f"{after.num_pooled} files of the database are open")
        return found

    def table(self) -> str:
        lines = [
            "| minute | memory, MiB | mapped files, MiB | workers, MiB | descriptors | database, MiB | data/, MiB |",
            "|---|---|---|---|---|---|---|",
        ]
        shown = self.samples[:: max(1, len(self.samples) // 10)]
        named = [(f"{each.seconds / 60:.1f}", each) for each in shown]
        named += [(f"at rest, {each.seconds / 60:.1f}", each) for each in self.rest]
        for name, each in named:
            sizes = [each.memory_bytes, each.mapped_bytes, each.worker_bytes, each.database_bytes, each.data_bytes]
            memory, mapped, workers, database, data = (f"{size / MIB:.1f}" for size in sizes)
            lines.append(f"| {name} | {memory} | {mapped} | {workers} | {each.num_descriptors} | {database} | {data} |")
        asked = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.counts.items()))
        faults = "\n".join(f"- {fault}" for fault in self.faults) or "No fault was found."
        return "\n".join(lines) + f"\n\n{sum(self.counts.values()):,} requests: {asked}. {faults}"


class Soak:
    def __init__(self, root: Path, seed: int, workers: int, minutes: float, max_growth: float = MAX_GROWTH) -> None:
        self.service = Service(root, settings=SETTINGS, workers=workers)
        self.seed, self.seconds, self.max_growth = seed, 60 * minutes, max_growth
        self.report = Report()
        self._started = time.monotonic()

    def run(self) -> Report:
        report = self.report
        with self.service, httpx.Client(base_url=self.service.url, timeout=120) as http:
            job = http.post("/train", json=STEADY, headers={"Prefer": "wait=60"}).json()
            if job.get("state") != "succeeded":
                raise SystemExit(f"there is no model to predict with: {job}")
            for number, part in enumerate((WARM_UP, 1 - WARM_UP)):
                with Load(self.service.url, self.seed + number, report.faults.append, report.counts):
                    self._watch(part * self.seconds)
                self._settle(http)
                report.rest.append(self._sample())
            report.faults += report.judge(self.max_growth)
        report.faults += [
            f"the log says {line[:500]}"
            for line in self.service.log.read_text().splitlines()
            if '"level":"error"' in line.replace(" ", "") or "Traceback" in line
        ]
        return report

    def _watch(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        every = max(0.5, min(5.0, seconds / 10))
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(every, left))
            self.report.samples.append(self._sample())
            if len(self.report.faults) > 20:
                raise SystemExit("\n".join(self.report.faults))

    @property
    def _main(self) -> int:
        assert self.service.process
        return self.service.process.pid

    def _sample(self) -> Sample:
        memory = mapped = workers = descriptors = pooled = 0
        for process in processes_of(self._main):
            if process.role in ("main", "api", "forkserver"):
                memory += memory_of(process.pid)
                mapped += memory_of(process.pid, "Pss_File")
                files = open_files(process.pid)
                of_database = sum("gradserve.db" in path for path in files)
                descriptors, pooled = descriptors + len(files) - of_database, max(pooled, of_database)
            else:
                workers += memory_of(process.pid, "Pss")
        data = self.service.root / "data"
        return Sample(
            seconds=time.monotonic() - self._started,
            memory_bytes=memory,
            mapped_bytes=mapped,
            worker_bytes=workers,
            num_descriptors=descriptors,
            num_pooled=pooled,
            database_bytes=sum(_size(path) for path in data.glob("gradserve.db*")),
            data_bytes=sum(_size(Path(folder, name)) for folder, _, names in os.walk(data) for name in names),
        )

    # ---- at rest

    def _settle(self, http: httpx.Client) -> None:
        """Wait until no job is under way and what is not kept has been removed."""
        checks: dict[str, Callable[[], bool]] = {
            "jobs have not ended": lambda: self._count("SELECT count(*) FROM jobs WHERE finished_at IS NULL") == 0,
            f"more than {MAX_JOBS} jobs are left": lambda: self._count("SELECT count(*) FROM jobs") <= MAX_JOBS,
            "old events are left": lambda: self._count("SELECT count(*) FROM events") <= MAX_JOBS,
            "tables are left that nobody names": lambda: self._num_tables() <= MAX_JOBS + 2,
            "folders of jobs are left": lambda: not list((self.service.root / "data" / "jobs").iterdir()),
            "uploads are left": lambda: not list((self.service.root / "data/datasets/.uploads").iterdir()),
            "workers are left": lambda: not with_role(self._main, "worker"),
        }
        deadline = time.monotonic() + SETTLE_SECONDS
        for fault, check in checks.items():
            while not check():
                if time.monotonic() > deadline:
                    self.report.faults.append(f"{SETTLE_SECONDS:.0f} s after the load ended {fault}")
                    break
                time.sleep(0.2)
        http.get("/healthz").raise_for_status()

    def _count(self, query: str) -> int:
        with closing(sqlite3.connect(self.service.root / "data" / "gradserve.db", timeout=30)) as connection:
            return int(connection.execute(query).fetchone()[0])

    def _num_tables(self) -> int:
        folder = self.service.root / "data" / "datasets"
        return sum(1 for entry in folder.iterdir() if not entry.name.startswith("."))


def _size(path: Path) -> int:
    """Bytes on disk; 0 where the file has gone meanwhile."""
    try:
        return 512 * path.stat().st_blocks
    except FileNotFoundError:
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, metavar="N", help="of load [10]")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), metavar="N", help="of what is asked")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="API processes [1]")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/reliability.md")
    given = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="gradserve-soak-"))
    print(f"seed {given.seed}, in {root}", flush=True)
    report = Soak(root, given.seed, given.workers, given.minutes).run()
    print(report.table())
    if not report.faults:
        shutil.rmtree(root)  # otherwise there is something to look at
    if given.write:
        command = f"scripts/soak --minutes {given.minutes:g} --seed {given.seed} --workers {given.workers}"
        write_figures("reliability.md", "soak", f"`{command}` on {machine()}:\n\n{report.table()}")
    sys.exit(bool(report.faults))


if __name__ == "__main__":
    main()
