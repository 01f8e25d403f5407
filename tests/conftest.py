"""Options and laws for all tests."""

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("gradserve", deadline=None, derandomize=True, max_examples=50)
settings.register_profile("long", deadline=None, max_examples=5000, suppress_health_check=list(HealthCheck))
settings.load_profile("gradserve")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate-golden", action="store_true", help="write tests/golden from what the code does now, and fail"
    )


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named by their argument: a gzip has the clock in it, and processes that share the tests must agree."""
    return argname if isinstance(val, bytes) else None
