"""Options and laws for all tests."""

import pytest
from hypothesis import settings

settings.register_profile("gradserve", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("gradserve")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate-golden", action="store_true", help="write tests/golden from what the code does now, and fail"
    )
