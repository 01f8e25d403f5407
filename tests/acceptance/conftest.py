"""Real services in processes of their own, each with its folders in a temporary place."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.client import Client
from scripts.service import Service


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all tests that only talk to it."""
    with Service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Starts a service of the test's own, which may stop, kill and start it again: `start_service(GRADSERVE_…=…)`."""
    started: list[Service] = []

    def start(workers: int = 1, **settings: str) -> Service:
        service = Service(tmp_path / f"service{len(started)}", settings=settings, workers=workers)
        started.append(service)
        service.start()
        return service

    yield start
    for service in started:
        service.stop()
