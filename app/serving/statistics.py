"""How often a version was asked and how long that took, as Triton's statistics extension says it.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from app.serving.served_model import ServedModel

Part = Literal[
    "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"
]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass
class Duration:
    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns


@dataclass
class VersionStatistics:
    """`num_rows` of requests that succeeded; `last_inference` in milliseconds since 1970."""

    last_inference: int = 0
    num_rows: int = 0
    parts: dict[Part, Duration] = field(default_factory=lambda: {part: Duration() for part in PARTS})

    def as_dict(self, name: str, version: str) -> dict[str, Any]:
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_inference,
            "inference_count": self.num_rows,
            "execution_count": self.parts["compute_infer"].count,
            "inference_stats": {part: vars(duration) for part, duration in self.parts.items()},
            "batch_stats": [],
            "memory_usage": [],
        }


class Request:
    """One request under way: `part` measures a part of it, which counts once all of it has succeeded."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.ns: dict[Part, int] = {}

    @contextmanager
    def part(self, part: Part) -> Iterator[None]:
        started = time.perf_counter_ns()
        yield
        self.ns[part] = time.perf_counter_ns() - started


class Statistics:
    """Of this process since it started. Used on its event loop."""

    def __init__(self) -> None:
        self._versions: dict[tuple[str, str], VersionStatistics] = {}

    @contextmanager
    def request(self, model: ServedModel) -> Iterator[Request]:
        """Around a request; one that raises counts as failed."""
        found = self._versions.setdefault((model.name, model.version), VersionStatistics())
        request, started = Request(), time.perf_counter_ns()
        try:
            yield request
        except BaseException:
            found.parts["fail"].add(time.perf_counter_ns() - started)
            raise
        found.parts["success"].add(time.perf_counter_ns() - started)
        for part, ns in request.ns.items():
            found.parts[part].add(ns)
        found.num_rows += request.num_rows
        found.last_inference = time.time_ns() // 1_000_000

    def of(self, name: str, version: str) -> VersionStatistics:
        return self._versions.get((name, version)) or VersionStatistics()
