from collections.abc import Iterator

import httpx
import pytest

from tests.api.service import service


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """One service for all tests that only talk to it: starting another means to import torch again."""
    with service(tmp_path_factory.mktemp("service"), max_rows=1000) as client:
        yield client
