"""What a module logs, whoever set logs up before."""

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture


@contextmanager
def logged_by(*modules: str) -> Iterator[list[MutableMapping[str, Any]]]:
    """The lines of the loggers named `log` of these modules, as dicts; they go nowhere else."""
    capture = LogCapture()
    logger = structlog.wrap_logger(
        structlog.PrintLogger(), processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(f"{module}.log", logger)
        yield capture.entries
