"""The same jobs in two services by turns, whose workers ask for huge pages or don't: their seconds and their memory."""

import statistics
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from app.learning.allocator import HUGE_PAGES
from scripts.bench_run_memory import IMAGES, MIB, SENTENCES, WAIT_SECONDS, WORKS, Work, rows_of, train
from scripts.service import Service

ACCUMULATED = next(work for work in WORKS if work.accumulate_steps > 1)
JOBS = [
    Work("MLP, 3 × 64, batch 32768", 65_536, 32, {"hidden_features": [64] * 3}, 32_768, 100),
    Work("MLP, 3 × 512, batch 4096", 8_192, 64, {"hidden_features": [512] * 3}, 4096, 40),
    replace(ACCUMULATED, name="MLP, 4 × 2048, a step of 4 gradients of 2048", max_steps=3),
    Work(
        "convolutions on 3×32×32 images, batch 64", 1_024, 3072, {"layers": IMAGES, "input_shape": [3, 32, 32]}, 64, 20
    ),
    Work("transformer, 128 places, batch 32", 1_000, 128, {"layers": SENTENCES, "input_shape": [128]}, 32, 20, 5_000),
]


def table(repetitions: int) -> str:
    lines = [
        "| work | without (s) | with (s) | **with / without** | peak without (MiB) | peak with (MiB) |",
        "|---|---|---|---|---|---|",
    ]
    with ExitStack() as stack:
        services = [
            stack.enter_context(
                Service(Path(stack.enter_context(TemporaryDirectory())), settings=dict.fromkeys(HUGE_PAGES, asked))
            )
            for asked in ("0", "1")
        ]
        for work in JOBS:
            lines.append(measure(work, services, repetitions))
            print(lines[-1], flush=True)
    return "\n".join(lines)


def measure(work: Work, services: list[Service], repetitions: int) -> str:
    """A row of the table: medians of the seconds, and the most memory."""
    rows = rows_of(work)
    for service in services:
        httpx.put(f"{service.url}/datasets/rows", content=rows, timeout=WAIT_SECONDS).raise_for_status()
    runs = [[train(service, work.body) for service in services] for _ in range(repetitions)]
    (without, before), (with_them, after) = (
        (statistics.median(run.seconds for run in of_one), max(run.peak_bytes for run in of_one))
        for of_one in zip(*runs, strict=True)
    )
    return (
        f"| {work.name} | {without:.2f} | {with_them:.2f} | **{with_them / without:.2f}** "
        f"| {before / MIB:.0f} | {after / MIB:.0f} |"
    )
