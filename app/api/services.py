"""What handlers work with: built once by `app.main`, reached through `Depends`."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Request

from app.jobs.feed import EventFeed
from app.jobs.queue import JobQueue
from app.serving.predictor import Predictor
from app.settings import Settings
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
RoutingKey = Annotated[
    str | None,
    Header(
        alias="X-Routing-Key",
        description="where an alias has a canary: requests with the same key are answered by the same version",
    ),
]
