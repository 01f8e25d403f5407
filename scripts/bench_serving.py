"""Predictions a second against the floor, a bare ASGI app that parses the rows and knows no model.

The service has keys, metrics, its log and all checks of what it is asked, as anybody's has. Floor and service run on
the same machine as wrk and are loaded in turns.
"""

import statistics
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts import bench_peers
from scripts.load import (
    AUTHORIZED,
    MODEL,
    NUM_ROWS,
    SETTINGS,
    Figures,
    Load,
    figure,
    floor,
    require_wrk,
    train,
    write_bodies,
    wrk,
)
from scripts.service import Service

NUM_STEPS = 200  # until rows differ in what is predicted for them, by which peers are known to say the same
LOADS = [
    Load("1 row, 32 connections", "one.json", 32, "per_second", "/s", "≥ 0.8 × the floor"),
    Load("1 row, 1 connection: p50", "one.json", 1, "p50_ms", " ms", "≤ 1.3 × the floor"),
    Load(f"{NUM_ROWS} rows of JSON, 4 connections", "many.json", 4, "per_second", "/s", "≥ 42/s"),
    Load(f"{NUM_ROWS} rows of v2 binary, 4 connections", "many.bin", 4, "per_second", "/s", "≥ 150/s"),
]


def table(repetitions: int, seconds: int, peers: bool) -> str:
    require_wrk()
    floors: dict[Load, list[float]] = defaultdict(list)
    ours: dict[Load, list[float]] = defaultdict(list)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        binary_headers = write_bodies(root)
        with floor() as floor_url, Service(root, settings=SETTINGS) as service:
            train(service.url, MODEL, [64, 64], NUM_STEPS)
            for load in LOADS * repetitions:
                body = root / load.body
                if body.suffix == ".json":
                    floors[load].append(measure(f"{floor_url}/predict", body, load, seconds))
                    ours[load].append(measure(f"{service.url}/predict", body, load, seconds, AUTHORIZED))
                else:
                    url = f"{service.url}/v2/models/{MODEL}/infer"
                    ours[load].append(measure(url, body, load, seconds, AUTHORIZED, *binary_headers))
            network = bench_peers.trained(service.url) if peers else None
    base, own = medians(floors), medians(ours)
    lines = [row(load, base.get(load), own[load]) for load in LOADS]
    text = "\n".join(["| load | floor | Gradserve | ratio | goal |", "|---|---|---|---|---|", *lines])
    return f"{text}\n\n{bench_peers.table(network, base, own, repetitions, seconds)}" if network else text


def measure(url: str, body: Path, load: Load, seconds: int, *headers: str) -> float:
    found = wrk(url, body, load.connections, *headers, seconds=seconds)
    assert not found.refused + found.broken, f"{url}: {found}"
    return float(getattr(found, load.field))


def medians(figures: dict[Load, list[float]]) -> Figures:
    return {load: statistics.median(values) for load, values in figures.items()}


def row(load: Load, base: float | None, ours: float) -> str:
    """The medians; the ratio is of them, too."""
    if base is None:
        return f"| {load.title} | – | {figure(load, ours)} | – | {load.goal} |"
    return f"| {load.title} | {figure(load, base)} | {figure(load, ours)} | **{ours / base:.2f}** | {load.goal} |"
