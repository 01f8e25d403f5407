from collections.abc import Iterator

import httpx
import pytest

from tests.api.service import service


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A service for all tests of a file."""
    with service(tmp_path_factory.mktemp("service")) as client:
        yield client
