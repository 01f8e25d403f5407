"""How often a version was asked and how long that took, as Triton's statistics extension and its metrics say it.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md
https://github.com/triton-inference-server/server/blob/main/docs/user_guide/metrics.md
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, get_args

from app.serving.later import Later
from app.serving.served_model import ServedModel
from app.storage.counters import Counters, Histogram, Key

Part = Literal["queue", "compute_input", "compute_infer", "compute_output"]
PARTS: tuple[Part, ...] = get_args(Part)
FAMILY, LAST = "gradserve_inference", "gradserve_last_inference"
Facts = dict[tuple[str, str], dict[str, int]]
"""Of each model and version: what `VersionCells` counts."""


class VersionCells:
    """Where a version's numbers are counted: times of requests that succeeded or failed, in nanoseconds.

    `count` counts rows, `exec_count` forward passes, which requests may share.
    """

    def __init__(self, counters: Counters, name: str, version: str) -> None:
        def cell(fact: str) -> int:
            return counters.cell(FAMILY, name, version, fact)

        self.success, self.success_ns = cell("success"), cell("success_ns")
        self.fail, self.fail_ns = cell("fail"), cell("fail_ns")
        self.count, self.exec_count = cell("count"), cell("exec_count")
        self.parts = {part: (cell(part), cell(f"{part}_ns")) for part in PARTS}
        self.seconds = Histogram(counters, "gradserve_inference_request_seconds", name, version)
        self.last_inference = counters.cell(LAST, name, version, gauge=True)


class Request:
    """One request under way to the version that answers it: what is measured counts once all of it has succeeded.

    `timeline`, where somebody wants one: each part with its end (as `perf_counter_ns`) and its nanoseconds.
    """

    def __init__(self, model: ServedModel, shadow: str | None = None) -> None:
        self.model, self.shadow = model, shadow
        self.num_rows = 0
        self.ns: dict[Part, int] = {}
        self._compute_ns = 0
        self.timeline: list[tuple[Part, int, int]] | None = None

    @contextmanager
    def part(self, part: Part) -> Iterator[None]:
        started = time.perf_counter_ns()
        yield
        self.took(part, time.perf_counter_ns() - started)

    def took(self, part: Part, ns: int) -> None:
        self.ns[part] = self.ns.get(part, 0) + ns
        if self.timeline is not None:
            self.timeline.append((part, time.perf_counter_ns(), ns))

    def compute_seconds(self) -> float:
        """From rows to predictions, waiting apart, since this was last asked."""
        before, self._compute_ns = self._compute_ns, self.ns.get("compute_input", 0) + self.ns.get("compute_infer", 0)
        return (self._compute_ns - before) / 1e9


class Pass(NamedTuple):
    """A forward pass that requests shared which have all succeeded: when each was begun and was packed, and so on.

    Times are nanoseconds of `perf_counter`; `ended_at_ms` counts from 1970.
    """

    model: ServedModel
    num_rows: int
    begun_ns: list[int]
    packed_ns: list[int]
    started_ns: int
    computed_ns: int
    ended_ns: int
    ended_at_ms: int

    def parts(self) -> dict[Part, int]:
        """The sums over the requests."""
        num_requests, packed_ns = len(self.begun_ns), sum(self.packed_ns)
        return {
            "queue": num_requests * self.started_ns - packed_ns,
            "compute_input": packed_ns - sum(self.begun_ns),
            "compute_infer": num_requests * (self.computed_ns - self.started_ns),
            "compute_output": num_requests * (self.ended_ns - self.computed_ns),
        }


class Statistics:
    """Used on the event loop alone. `trace` is given each request, with its timeline, once it has ended."""

    def __init__(self, counters: Counters, trace: Callable[[Request], None] | None = None) -> None:
        self.counters = counters
        self._trace = trace
        self._cells: dict[tuple[str, str], VersionCells] = {}
        passes = Later(self._count_passes)
        self.passed, self.settle = passes.add, passes.flush

    def _of(self, model: ServedModel) -> VersionCells:
        key = (model.name, model.version)
        return self._cells.get(key) or self._cells.setdefault(key, VersionCells(self.counters, *key))

    @contextmanager
    def measured(self, request: Request) -> Iterator[Request]:
        """Around a request's work; one that raises counts as failed."""
        started = time.perf_counter_ns()
        if self._trace is not None:
            request.timeline = []
        try:
            yield request
        except BaseException:
            self.failed(request, time.perf_counter_ns() - started)
            raise
        else:
            self.succeeded(request, time.perf_counter_ns() - started)
        finally:
            if self._trace is not None:
                self._trace(request)

    def failed(self, request: Request, ns: int) -> None:
        cells, values = self._of(request.model), self.counters.values
        values[cells.fail] += 1
        values[cells.fail_ns] += ns

    def succeeded(self, request: Request, ns: int) -> None:
        """A request, whose parts were measured, has been answered."""
        cells, values = self._of(request.model), self.counters.values
        values[cells.success] += 1
        values[cells.success_ns] += ns
        cells.seconds.observe(ns / 1e9)
        values[cells.count] += request.num_rows
        values[cells.last_inference] = time.time_ns() // 1_000_000
        for part, part_ns in request.ns.items():
            count, sum_ns = cells.parts[part]
            values[count] += 1
            values[sum_ns] += part_ns

    @property
    def traces_requests(self) -> bool:
        """Whether each request is told of by itself."""
        return self._trace is not None

    def _count_passes(self, passes: list[Pass]) -> None:
        for one in passes:
            cells, values, num_requests = self._of(one.model), self.counters.values, len(one.begun_ns)
            took_ns = [one.ended_ns - begun_ns for begun_ns in one.begun_ns]
            values[cells.success] += num_requests
            values[cells.success_ns] += sum(took_ns)
            values[cells.count] += one.num_rows
            values[cells.exec_count] += 1
            values[cells.last_inference] = one.ended_at_ms
            cells.seconds.observe(*[ns / 1e9 for ns in took_ns])
            for part, ns in one.parts().items():
                count, sum_ns = cells.parts[part]
                values[count] += num_requests
                values[sum_ns] += ns

    def executed(self, model: ServedModel) -> None:
        """A forward pass has been done."""
        self.counters.values[self._of(model).exec_count] += 1


def facts_of(counts: dict[Key, float]) -> Facts:
    """What was counted of each version."""
    facts: Facts = defaultdict(dict)
    for (family, *labels), value in counts.items():
        if family == FAMILY:
            name, version, fact = labels
            facts[name, version][fact] = int(value)
    return facts


def last_inference_of(gauges: dict[int, dict[Key, float]]) -> dict[tuple[str, str], float]:
    """When each version was asked last, in milliseconds since 1970."""
    latest: dict[tuple[str, str], float] = {}
    for of_process in gauges.values():
        for (family, *labels), value in of_process.items():
            if family == LAST:
                key = (labels[0], labels[1])
                latest[key] = max(latest.get(key, 0), value)
    return latest


def triton_statistics(name: str, version: str, facts: dict[str, int], last_inference: float) -> dict[str, Any]:
    """As `/v2/models/{name}/stats` has it; `last_inference` in milliseconds since 1970."""

    def duration(fact: str) -> dict[str, int]:
        return {"count": facts.get(fact, 0), "ns": facts.get(f"{fact}_ns", 0)}

    return {
        "name": name,
        "version": version,
        "last_inference": int(last_inference),
        "inference_count": facts.get("count", 0),
        "execution_count": facts.get("exec_count", 0),
        "inference_stats": {fact: duration(fact) for fact in ("success", "fail", *PARTS, "cache_hit", "cache_miss")},
        "batch_stats": [],
        "memory_usage": [],
    }
