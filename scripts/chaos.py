"""Kills processes of a service at random moments while jobs train and clients predict. Run it through scripts/chaos.

Each round kills -9 one of: a worker, the fork server, the supervisor's process, an API process, the whole service.
At the end no job that was acknowledged may be lost, and each must have ended as the undisturbed run of its spec did:
the same weights, bit for bit. The exit status is 0 only if all of that holds.
"""

import argparse
import hashlib
import os
import random
import secrets
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np

from scripts.chaos_clients import Clients, Specs
from scripts.figures import machine, write_figures
from scripts.processes import has_open, is_alive, processes_of, supervisor_of, with_role
from scripts.service import Service, is_free

SETTINGS = {
    "GRADSERVE_CHECKPOINT_INTERVAL_SECONDS": "0.2",
    "GRADSERVE_MAX_RUNNING_JOBS": "2",
    "GRADSERVE_LOG_LEVEL": "warning",
}
RECOVERY_SECONDS = 180.0  # a machine that has other work to do takes its time
DRAIN_SECONDS = 600.0
LONGEST_PAUSE_SECONDS = 2.0
VICTIMS = ("worker", "fork server", "supervisor", "API process", "service")
ROWS = np.random.default_rng(7).standard_normal((400, 6))
DATA = {"inputs": ROWS.tolist(), "targets": np.tanh(ROWS @ np.arange(6)).tolist()}
SPECS: Specs = {
    "eager": {
        "engine": "eager",
        "network": {"hidden_features": [32, 32], "dropout": 0.1, "normalization": "batch_norm"},
        "optimizer": {"type": "adamw", "learning_rate": 0.002},
        "schedule": {"type": "cosine", "warmup_steps": 20},
        "descent": {"batch_size": 8},
        "stop": {"max_epochs": 40},
    },
    "compiled": {"engine": "compiled", "descent": {"batch_size": 8}, "stop": {"max_epochs": 600}},
    "folds": {"engine": "eager", "validation": {"folds": 3}, "stop": {"max_epochs": 40}},
    "toy": {"engine": "eager", "descent": {"variant": "full_batch"}, "stop": {"max_steps": 20}},
}


@dataclass
class Report:
    """`faults` are sentences; a run without any has held what it promises."""

    rounds: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VICTIMS, 0))
    recovery_seconds: dict[str, list[float]] = field(default_factory=lambda: {victim: [] for victim in VICTIMS})
    num_jobs: int = 0
    num_predictions: int = 0
    num_interrupted: int = 0
    faults: list[str] = field(default_factory=list)

    def table(self) -> str:
        lines = ["| killed | rounds | whole again after, median | longest |", "|---|---|---|---|"]
        for victim, times in self.recovery_seconds.items():
            found = [f"{median(times):.1f} s", f"{max(times):.1f} s"] if times else ["", ""]
            lines.append(f"| {victim} | {self.rounds[victim]} | {found[0]} | {found[1]} |")
        faults = "\n".join(f"- {fault}" for fault in self.faults) or "No fault was found."
        return "\n".join(lines) + (
            f"\n\n{self.num_jobs} jobs were acknowledged; {self.num_predictions} predictions were answered, "
            f"{self.num_interrupted} requests met a connection that broke. {faults}"
        )


class Chaos:
    """`shorter`: by how much the jobs, and the pauses between rounds, are shorter than usual."""

    def __init__(self, root: Path, rounds: int, seed: int, workers: int, minutes: float, shorter: int = 1) -> None:
        self.specs = {name: _shortened(spec, shorter) for name, spec in SPECS.items()}
        self.longest_pause_seconds = LONGEST_PAUSE_SECONDS / shorter
        self.service = Service(root, settings=SETTINGS, workers=workers)
        self.rounds, self.random = rounds, random.Random(seed)
        self.deadline = time.monotonic() + 60 * minutes
        self.report = Report()
        self._victims: list[str] = []

    def run(self) -> Report:
        with self.service, httpx.Client(base_url=self.service.url, timeout=30) as http:
            reference = self._reference(http)
            with Clients(self.service.url, self.specs, DATA, self.report.faults.append) as clients:
                for number in range(1, self.rounds + 1):
                    if time.monotonic() > self.deadline:
                        self.report.faults.append(f"time was up after {number - 1} rounds")
                        break
                    self._round(number)
                clients.stop_training()
                self._drain(http, clients)
            self.report.num_jobs = len(clients.jobs)
            self.report.num_predictions, self.report.num_interrupted = clients.num_predictions, clients.num_interrupted
            self._check_jobs(http, clients.jobs, reference)
        self._check_disk()
        return self.report

    # ---- before

    def _reference(self, http: httpx.Client) -> dict[str, str]:
        """The digest of each spec's weights when nobody disturbs its run."""
        found = {}
        for name, spec in self.specs.items():
            body = {"model": f"reference-{name}", "data": DATA, **spec}
            submitted = http.post("/train", json=body).raise_for_status().json()
            job = _until(partial(_ended, http, submitted["id"]), DRAIN_SECONDS)
            if job is None or job["state"] != "succeeded":
                raise SystemExit(f"the undisturbed run of {name} did not succeed: {job or submitted}")
            found[name] = self._weights(job)
        return found

    # ---- a round

    def _round(self, number: int) -> None:
        time.sleep(self.random.uniform(0.05, self.longest_pause_seconds))
        victim = self._next_victim()
        pid = self._find(victim)
        if pid is None:
            self.report.faults.append(f"round {number}: there was no {victim} to kill after {RECOVERY_SECONDS:.0f} s")
            return
        before = {process.pid for process in processes_of(self._main)}
        killed_at = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        self.report.rounds[victim] += 1
        if pid == self._main:
            self._restart(number, before)
        if not _until(lambda: self._is_whole(pid), RECOVERY_SECONDS):
            self.report.faults.append(f"round {number}: not whole long after the {victim} was killed")
        seconds = time.monotonic() - killed_at
        self.report.recovery_seconds[victim].append(seconds)
        print(f"round {number}: killed the {victim}; whole again after {seconds:.1f} s", flush=True)
        self._check_now(number)

    def _next_victim(self) -> str:
        """Each kind as often, in a new order each time."""
        if not self._victims:
            self._victims = [name for name in VICTIMS if self.service.workers > 1 or name != "API process"]
            self.random.shuffle(self._victims)
        return self._victims.pop()

    @property
    def _main(self) -> int:
        assert self.service.process
        return self.service.process.pid

    def _find(self, victim: str) -> int | None:
        """Any of that kind; the role of supervisor may be between two processes for a moment."""
        found: int | None = _until(lambda: self._candidate(victim), RECOVERY_SECONDS)
        return found

    def _candidate(self, victim: str) -> int | None:
        if victim == "service":
            return self._main
        if victim == "supervisor":
            return supervisor_of(self._main)
        role = {"worker": "worker", "fork server": "forkserver", "API process": "api"}[victim]
        found = with_role(self._main, role)  # type: ignore[arg-type]
        return self.random.choice(found) if found else None

    def _restart(self, number: int, before: set[int]) -> None:
        """As a service manager would, once nothing of the old one is left."""
        assert self.service.process
        self.service.process.wait()
        if not _until(lambda: not any(map(is_alive, before)), RECOVERY_SECONDS):
            self.report.faults.append(f"round {number}: processes outlived the service: {_alive(before)}")
            for left in _alive(before):
                os.kill(left, signal.SIGKILL)
        _until(lambda: is_free(self.service.port), RECOVERY_SECONDS)
        self.service.start()

    def _is_whole(self, killed: int) -> bool:
        """All API processes have started, one of them has a worker run a job (there are always some), all is ready."""
        servers = with_role(self._main, "api") if self.service.workers > 1 else [self._main]
        started = [pid for pid in servers if has_open(pid, "supervisor.lock")]
        works = supervisor_of(self._main) not in (None, killed) and bool(with_role(self._main, "worker"))
        return len(started) == self.service.workers and works and not is_alive(killed) and self.service.is_ready()

    def _check_now(self, number: int) -> None:
        with closing(sqlite3.connect(self._database, timeout=30)) as connection:
            found = connection.execute("PRAGMA quick_check").fetchone()[0]
        if found != "ok":
            self.report.faults.append(f"round {number}: the database is broken: {found}")
        self.report.faults += [f"round {number}: {fault}" for fault in self._half_versions()]

    @property
    def _database(self) -> Path:
        return self.service.root / "data" / "gradserve.db"

    # ---- after

    def _drain(self, http: httpx.Client, clients: Clients) -> None:
        """Every job that was acknowledged ends."""
        if not _until(lambda: not _unfinished(http), DRAIN_SECONDS):
            stuck = [(job["id"], job["state"]) for job in _unfinished(http)]
            self.report.faults.append(f"{DRAIN_SECONDS:.0f} s after the last round these jobs have not ended: {stuck}")
        clients.stop()

    def _check_jobs(self, http: httpx.Client, jobs: dict[str, str], reference: dict[str, str]) -> None:
        for job_id, spec in jobs.items():
            answer = http.get(f"/jobs/{job_id}")
            lost = [f"it was acknowledged and is lost: {answer.text}"]
            found = lost if answer.status_code != 200 else self._job_faults(http, answer.json(), reference[spec])
            self.report.faults += [f"job {job_id} ({spec}): {fault}" for fault in found]
        with closing(sqlite3.connect(self._database)) as connection:
            known = {row[0] for row in connection.execute("SELECT id FROM jobs WHERE model NOT LIKE 'reference-%'")}
        if extra := known - jobs.keys():
            self.report.faults.append(f"jobs that nobody was told of: {sorted(extra)}")

    def _job_faults(self, http: httpx.Client, job: dict[str, Any], weights: str) -> Iterator[str]:
        if job["state"] != "succeeded":
            yield f"ended as {job['state']}: {job['error']}"
            return
        if self._weights(job) != weights:
            yield "has other weights than the run that nobody disturbed"
        epochs = [row["epoch"] for row in http.get(job["links"]["history"]).json()["data"]]
        if epochs != list(range(1, job["progress"]["epoch"] + 1)):
            yield f"its history has the epochs {epochs}"
        states = [event["data"]["state"] for event in _events(http, job) if event["type"] == "state"]
        if states.count("succeeded") != 1 or states[-1] != "succeeded":
            yield f"its events tell {states}"

    def _weights(self, job: dict[str, Any]) -> str:
        path = self.service.root / "models" / job["model"] / job["version"] / "model.safetensors"
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def _half_versions(self) -> Iterator[str]:
        """Whatever is in a model's folder under a number is whole."""
        from app.errors import CorruptVersion
        from app.storage.models import ModelStore

        store = ModelStore(self.service.root / "models")
        for name in store.names():
            for version in store.versions(name):
                try:
                    store.get(name, version).load_tensors()
                except CorruptVersion as error:
                    yield error.detail

    def _check_disk(self) -> None:
        with closing(sqlite3.connect(self._database)) as connection:
            found = connection.execute("PRAGMA integrity_check").fetchone()[0]
        if found != "ok":
            self.report.faults.append(f"the database is broken: {found}")
        for folder in ("data/jobs", "models/.staging", "models/.trash"):
            left = [entry.name for entry in (self.service.root / folder).glob("*")]
            if left:
                self.report.faults.append(f"{folder} still holds {left}")


def _shortened(spec: dict[str, Any], factor: int) -> dict[str, Any]:
    return spec | {"stop": {limit: -(-number // factor) for limit, number in spec["stop"].items()}}


def _ended(http: httpx.Client, job_id: str) -> dict[str, Any] | None:
    """The job, if it has."""
    job: dict[str, Any] = http.get(f"/jobs/{job_id}").json()
    return job if job["terminal"] else None


def _unfinished(http: httpx.Client) -> list[dict[str, Any]]:
    try:
        states = ("queued", "running", "pausing", "paused", "cancelling")
        return [job for state in states for job in http.get("/jobs", params={"state": state}).json()["data"]]
    except httpx.TransportError:
        return [{"id": "unknown", "state": "unreachable"}]


def _events(http: httpx.Client, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    page: dict[str, Any] = {"next": "0"}
    while page["next"]:
        page = http.get(job["links"]["events"], params={"limit": 200, "after": page["next"]}).json()
        yield from page["data"]


def _alive(pids: set[int]) -> list[int]:
    return [pid for pid in pids if is_alive(pid)]


def _until(condition: Callable[[], Any], seconds: float) -> Any:
    """The condition's first truthy value, or its last where it has none in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return value


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    seed = secrets.randbelow(10**6)
    parser.add_argument("--rounds", type=int, default=50, metavar="N", help="[50]")
    parser.add_argument("--seed", type=int, default=seed, metavar="N", help="of what is killed, and when")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="API processes [2]")
    parser.add_argument("--minutes", type=float, default=60, metavar="N", help="the longest that rounds may take [60]")
    parser.add_argument("--shorter", type=int, default=1, metavar="N", help="jobs and pauses by this factor [1]")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/reliability.md")
    given = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="gradserve-chaos-"))
    print(f"seed {given.seed}, in {root}", flush=True)
    report = Chaos(root, given.rounds, given.seed, given.workers, given.minutes, given.shorter).run()
    print(report.table())
    if not report.faults:
        shutil.rmtree(root)  # otherwise there is something to look at
    if given.write:
        command = f"scripts/chaos --rounds {given.rounds} --seed {given.seed} --workers {given.workers}"
        command += f" --shorter {given.shorter}" if given.shorter > 1 else ""
        write_figures("reliability.md", "chaos", f"`{command}` on {machine()}:\n\n{report.table()}")
    sys.exit(bool(report.faults))


if __name__ == "__main__":
    main()
