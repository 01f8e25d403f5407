"""What goes into a worker and what comes out: light enough to be imported by whoever starts one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Emit = Callable[[str, dict[str, Any]], None]
"""Called with `metrics`, `progress` or `warning` and the event's data."""


@dataclass(frozen=True)
class WorkOrder:
    """All that a worker is told. `spec` is a resolved TrainingSpec as JSON.

    Encoded rows of more than `max_rows_bytes` are not held in memory, but gathered from a file.
    """

    job_id: str
    spec: dict[str, Any]
    data_dir: str
    models_dir: str
    checkpoint_interval_seconds: float
    max_rows_bytes: int = 2**33

    @property
    def job_dir(self) -> Path:
        return Path(self.data_dir) / "jobs" / self.job_id


class Control(Protocol):
    """`request` may change at any time; it is read a few times a second."""

    request: Literal["cancel", "pause"] | None


@dataclass(frozen=True)
class Outcome:
    """How a run ended that did not fail. A `succeeded` one has left a whole version in the staging folder."""

    state: Literal["succeeded", "paused", "cancelled"]
    metrics: dict[str, Any] = field(default_factory=dict)
    stop_reason: str | None = None
