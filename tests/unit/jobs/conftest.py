from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.jobs.queue import JobQueue
from app.jobs.reconciler import Rules
from app.jobs.supervisor import Supervisor
from app.storage.counters import Counters
from app.storage.database import Database
from app.storage.models import ModelStore
from tests.databases import new_database

STANDIN = "tests.unit.jobs.standin"


class Gate:
    """Lets the stand-in's runs go as far as a test wants."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open(0)

    def open(self, epoch: int) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(str(epoch))
        new.replace(self.path)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = new_database(tmp_path / "data" / "gradserve.db")
    yield database
    database.close()


@pytest.fixture
def queue(database: Database) -> JobQueue:
    return JobQueue(database, max_queued_jobs=1000)


@pytest.fixture
def models(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


@pytest.fixture
def start(queue: JobQueue, models: ModelStore, tmp_path: Path) -> Iterator[Callable[..., Supervisor]]:
    """Starts supervisors, and stops them at the end."""
    started: list[Supervisor] = []

    def start(**changes: float) -> Supervisor:
        supervisor = Supervisor(queue, models, rules(tmp_path, **changes), Counters(tmp_path / "counters"))
        supervisor.start()
        started.append(supervisor)
        return supervisor

    yield start
    for supervisor in started:
        supervisor.stop(grace_seconds=0)


def rules(root: Path, **changes: float) -> Rules:
    return Rules(
        data_dir=root / "data",
        models_dir=root / "models",
        max_running_jobs=int(changes.get("max_running_jobs", 2)),
        checkpoint_interval_seconds=1.0,
        worker_timeout_seconds=changes.get("worker_timeout_seconds", 60.0),
        training=STANDIN,
    )
