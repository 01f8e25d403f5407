"""`GET /metrics`: what all processes of the service have counted, in Prometheus' text format.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from fastapi import APIRouter, Depends, Response

from app.api.auth import require
from app.api.services import Counted, Deps, Services
from app.learning.devices import memory_of_cards
from app.serving.cache import MEMORY
from app.serving.statistics import facts_of
from app.storage.counters import BOUNDS, Key, Snapshot

router = APIRouter(tags=["operations"])
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Samples = Iterable[tuple[tuple[str, ...], float]]
"""Values of labels, and the number."""


class Family(NamedTuple):
    """`kind` as Prometheus has it."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()


VERSION = ("model", "version")
PAIR = ("model", "version", "shadow")
COUNTED = (
    Family("gradserve_http_requests_total", "counter", "Requests by route and status", ("method", "route", "status")),
    Family("gradserve_http_request_seconds", "histogram", "Time to the end of the answer", ("route",)),
    Family("gradserve_inference_request_seconds", "histogram", "Time of a prediction that succeeded", VERSION),
    Family("gradserve_load_failures_total", "counter", "Loads of a version whose files are broken", VERSION),
    Family(
        "gradserve_shadow_requests_total", "counter", "Requests that a shadow was to answer too", (*PAIR, "outcome")
    ),
    Family("gradserve_shadow_rows_total", "counter", "Rows of which two versions' predictions were compared", PAIR),
    Family("gradserve_shadow_agreed_rows_total", "counter", "Same label, or numbers within a hundredth", PAIR),
    Family("gradserve_shadow_difference_total", "counter", "Absolute differences of numbers, added up", PAIR),
    Family("gradserve_shadow_compute_seconds_total", "counter", "From rows to predictions", (*PAIR, "by")),
    Family("gradserve_training_epoch_seconds", "histogram", "Time of an epoch of a job", ("model",)),
    Family("gradserve_training_step_seconds", "summary", "Steps of jobs, and the time of their epochs", ("model",)),
)
"""What is counted under its own name."""
TRITON = {
    "success": ("request_success", "Requests that succeeded"),
    "fail": ("request_failure", "Requests that failed"),
    "count": ("count", "Rows of requests that succeeded"),
    "exec_count": ("exec_count", "Forward passes, which requests may share"),
    "success_ns": ("request_duration_us", "Time of requests that succeeded"),
    "queue_ns": ("queue_duration_us", "Time that requests waited for a forward pass"),
    "compute_input_ns": ("compute_input_duration_us", "Time from bodies to tensors"),
    "compute_infer_ns": ("compute_infer_duration_us", "Time of the forward passes that requests had a part in"),
    "compute_output_ns": ("compute_output_duration_us", "Time from tensors to answers"),
}
"""What Triton calls nv_inference_…, by the fact that is counted; durations add up, in microseconds."""
MODELS = Family(MEMORY, "gauge", "Weights in memory; on a cpu, processes share them", (*VERSION, "device", "process"))
CARD_USED = Family("gradserve_gpu_memory_used_bytes", "gauge", "Memory of a card that is taken, by whomever", ("gpu",))
CARD_TOTAL = Family("gradserve_gpu_memory_total_bytes", "gauge", "Memory of a card", ("gpu",))
JOBS = Family("gradserve_jobs", "gauge", "Jobs by state", ("state",))
PROCESSES = Family("gradserve_processes", "gauge", "Processes that answer requests")
RESIDENT = Family("gradserve_resident_memory_bytes", "gauge", "Memory of a process, shared parts too", ("process",))
PROPORTIONAL = Family(
    "gradserve_proportional_memory_bytes", "gauge", "Memory of a process, with its part of what it shares", ("process",)
)


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    dependencies=[Depends(require("read"))],
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(deps: Deps, counted: Counted) -> Response:
    """Of all processes together, whichever answers."""
    return Response("".join(exposed(deps, counted)), media_type=MEDIA_TYPE)


def exposed(deps: Services, counted: Snapshot) -> Iterator[str]:
    for family in COUNTED:
        yield from _text(family, _counted(family, counted.counts))
    yield from _inference(counted)
    yield from _text(JOBS, [((state,), count) for state, count in deps.jobs.counts().items()])
    yield from _text(MODELS, _held(counted.gauges))
    cards = [(str(index), *memory) for index, memory in enumerate(memory_of_cards())]
    if cards:
        yield from _text(CARD_USED, [((card,), total - free) for card, free, total in cards])
        yield from _text(CARD_TOTAL, [((card,), total) for card, _, total in cards])
    yield from _text(PROCESSES, [((), len(counted.gauges))])
    yield from _text(RESIDENT, _memory(counted.gauges, "VmRSS", "status"))
    yield from _text(PROPORTIONAL, _memory(counted.gauges, "Pss", "smaps_rollup"))


def _inference(counted: Snapshot) -> Iterator[str]:
    versions = facts_of(counted.counts)
    for fact, (name, what) in TRITON.items():
        per = 1000 if fact.endswith("_ns") else 1
        family = Family(f"gradserve_inference_{name}", "counter", what, VERSION)
        yield from _text(family, [(version, facts.get(fact, 0) / per) for version, facts in versions.items()])


def _counted(family: Family, counts: Mapping[Key, float]) -> Samples:
    return [(key[1:], value) for key, value in counts.items() if key[0] == family.name]


def _held(gauges: Mapping[int, Mapping[Key, float]]) -> Samples:
    """Versions that are in memory, in each process."""
    for pid, found in gauges.items():
        yield from (((*key[1:], str(pid)), value) for key, value in found.items() if key[0] == MEMORY and value)


def _memory(pids: Iterable[int], fact: str, file: str) -> Samples:
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
        except OSError:
            continue  # it has just ended, or this is no Linux
        yield from (((str(pid),), 1024 * int(line.split()[1])) for line in lines if line.startswith(f"{fact}:"))


# ---- the format


def _text(family: Family, samples: Samples) -> Iterator[str]:
    yield f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.kind}\n"
    if family.kind == "histogram":
        yield from _histograms(family, samples)
        return
    for values, number in samples:
        suffix = f"_{values[-1]}" if family.kind == "summary" else ""
        yield _line(family.name + suffix, zip(family.labels, values, strict=False), number)


def _histograms(family: Family, samples: Samples) -> Iterator[str]:
    buckets: defaultdict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    for key, number in samples:
        buckets[key[:-1]][key[-1]] = number
    for values, found in buckets.items():
        labels, total = list(zip(family.labels, values, strict=True)), 0.0
        for bound in (*map(str, BOUNDS), "+Inf"):
            total += found.get(bound, 0)
            yield _line(f"{family.name}_bucket", [*labels, ("le", bound)], total)
        yield _line(f"{family.name}_count", labels, total)
        yield _line(f"{family.name}_sum", labels, found.get("sum", 0))


def _line(name: str, labels: Iterable[tuple[str, str]], number: float) -> str:
    inside = ",".join(f'{label}="{_escaped(value)}"' for label, value in labels)
    return f"{name}{{{inside}}} {number!r}\n" if inside else f"{name} {number!r}\n"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
