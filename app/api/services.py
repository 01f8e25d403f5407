"""What handlers work with: built once by `app.main`, reached through `Depends`."""

from dataclasses import dataclass
from typing import Annotated

from anyio import to_thread
from fastapi import Depends, Header, Request

from app.jobs.feed import EventFeed
from app.jobs.queue import JobQueue
from app.serving.predictor import Predictor
from app.settings import Settings
from app.storage.counters import Snapshot
from app.storage.datasets import DatasetStore
from app.storage.models import ModelStore


@dataclass(frozen=True)
class Services:
    settings: Settings
    jobs: JobQueue
    feed: EventFeed
    datasets: DatasetStore
    models: ModelStore
    predictor: Predictor


def services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


Deps = Annotated[Services, Depends(services)]


async def counted(request: Request, deps: Deps) -> Snapshot:
    """What all processes have counted up to now; the others may hold back what is younger than `later.SECONDS`."""
    request.app.state.ledger.flush()
    statistics = deps.predictor.statistics
    statistics.settle()
    return await to_thread.run_sync(statistics.counters.read)


Counted = Annotated[Snapshot, Depends(counted)]
RoutingKey = Annotated[
    str | None,
    Header(
        alias="X-Routing-Key",
        description="where an alias has a canary: requests with the same key are answered by the same version",
    ),
]
