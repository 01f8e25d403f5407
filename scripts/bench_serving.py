"""Predictions a second against the floor, a bare ASGI app that parses the rows and knows no model.

The service has keys, metrics, its log and all checks of what it is asked, as anybody's has. Floor and service run on
the same machine as wrk and are loaded in turns.
"""

import statistics
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from scripts import bench_peers
from scripts.load import AUTHORIZED, MODEL, NUM_ROWS, SETTINGS, floor, require_wrk, train, write_bodies, wrk
from scripts.service import Service


class Load(NamedTuple):
    """A row of the table: what is sent, by how many connections, and which figure is looked at."""

    title: str
    body: str
    connections: int
    field: str
    unit: str
    goal: str


LOADS = [
    Load("1 row, 32 connections", "one.json", 32, "per_second", "/s", "≥ 0.8 × the floor"),
    Load("1 row, 1 connection: p50", "one.json", 1, "p50_ms", " ms", "≤ 1.3 × the floor"),
    Load(f"{NUM_ROWS} rows of JSON, 4 connections", "many.json", 4, "per_second", "/s", "≥ 42/s"),
    Load(f"{NUM_ROWS} rows of v2 binary, 4 connections", "many.bin", 4, "per_second", "/s", "≥ 150/s"),
]
Figures = dict[tuple[str, Load], list[float]]


def table(repetitions: int, peers: bool) -> str:
    require_wrk()
    figures: Figures = defaultdict(list)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        binary_headers = write_bodies(root)
        with floor() as floor_url, Service(root, settings=SETTINGS) as service:
            train(service.url, MODEL, [64, 64])
            for load in LOADS * repetitions:
                if load.body.endswith(".json"):
                    figures["floor", load].append(measure(f"{floor_url}/predict", root, load))
                    figures["ours", load].append(measure(f"{service.url}/predict", root, load, AUTHORIZED))
                else:
                    url = f"{service.url}/v2/models/{MODEL}/infer"
                    figures["ours", load].append(measure(url, root, load, AUTHORIZED, *binary_headers))
        lines = [row(load, figures) for load in LOADS]
        text = "\n".join(["| load | floor | Gradserve | ratio | goal |", "|---|---|---|---|---|", *lines])
    return f"{text}\n\n{bench_peers.table()}" if peers else text


def measure(url: str, folder: Path, load: Load, *headers: str) -> float:
    found = wrk(url, folder / load.body, load.connections, *headers)
    assert not found.refused + found.broken, f"{url}: {found}"
    return float(getattr(found, load.field))


def row(load: Load, figures: Figures) -> str:
    """The medians; the ratio is of them, too."""

    def said(value: float) -> str:
        return f"{value:.{0 if value >= 1000 else 1 if value >= 10 else 2}f}{load.unit}"

    ours = statistics.median(figures["ours", load])
    if not figures["floor", load]:
        return f"| {load.title} | – | {said(ours)} | – | {load.goal} |"
    base = statistics.median(figures["floor", load])
    return f"| {load.title} | {said(base)} | {said(ours)} | **{ours / base:.2f}** | {load.goal} |"
