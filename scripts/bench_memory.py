"""What a model takes of memory: the proportional set size of one process and of several, with it and without it."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from app.client import Client
from scripts.service import Service

WIDTH = 17_320  # squared: the parameters of the layer that counts
DATA: dict[str, Any] = {"data": {"inputs": [[1, 2], [3, 4]], "targets": [3, 7]}, "validation": None}
PROCESSES = (1, 3)
MEGABYTE = 1e6


def table(_repetitions: int) -> str:
    lines = [
        "| processes | parameters | weights (MB) | before (MB) | with it (MB) | more, by its weights | unloaded (MB) |",
        "|---|---|---|---|---|---|---|",
        *(row(workers) for workers in PROCESSES),
    ]
    return "\n".join(lines)


def row(workers: int) -> str:
    """Sums over all processes that answer requests."""
    with TemporaryDirectory() as folder, Service(Path(folder), workers=workers) as service:
        with Client(service.url) as client:
            for name, width in (("small", 8), ("large", WIDTH)):
                client.train(
                    DATA,
                    model=name,
                    network={"hidden_features": [width, width]},
                    optimizer={"type": "sgd"},
                    stop={"max_steps": 1},
                )
            num_parameters = client.model("large", "1")["num_parameters"]
        ask_all(service.url, "small", workers)
        before = total(service.url, "gradserve_proportional_memory_bytes")
        ask_all(service.url, "large", workers)
        weights = total(service.url, "gradserve_model_memory_bytes", model="large") / workers
        after = total(service.url, "gradserve_proportional_memory_bytes")
        httpx.post(f"{service.url}/v2/repository/models/large/unload").raise_for_status()
        while held(service.url, "large"):
            pass  # each look is a request
        unloaded = total(service.url, "gradserve_proportional_memory_bytes")
    figures = [weights, before, after]
    return (
        f"| {workers} | {num_parameters:,} | {' | '.join(f'{figure / MEGABYTE:.0f}' for figure in figures)} "
        f"| **{(after - before) / weights:.2f}** | {unloaded / MEGABYTE:.0f} |"
    )


def ask_all(url: str, model: str, workers: int) -> None:
    """Until every process has the model in memory, each request on a connection that any of them may take."""
    while len(held(url, model)) < workers:
        httpx.post(f"{url}/predict", json={"model": model, "inputs": [[1, 2]]}, timeout=120).raise_for_status()


def held(url: str, model: str) -> list[float]:
    return samples(url, "gradserve_model_memory_bytes", model=model)


def total(url: str, name: str, **labels: str) -> float:
    return sum(samples(url, name, **labels))


def samples(url: str, name: str, **labels: str) -> list[float]:
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=60).text)
    found = next(family for family in families if family.name == name)
    return [sample.value for sample in found.samples if labels.items() <= sample.labels.items()]
