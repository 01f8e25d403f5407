"""How long the README's first example takes from POST to `succeeded`, on a service that is warm."""

import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from scripts.service import Service

TOY: dict[str, Any] = {
    "model": "line",
    "data": {"inputs": [[x] for x in range(1, 11)], "targets": list(range(1, 11))},
    "network": {"hidden_features": []},
    "init": {"weight": "normal", "bias": "zeros"},
    "loss": {"type": "mse"},
    "optimizer": {"type": "sgd", "learning_rate": 0.01},
    "descent": {"variant": "full_batch"},
    "stop": {"max_steps": 1000},
    "features": None,
    "validation": None,
}


def table(repetitions: int) -> str:
    with TemporaryDirectory() as folder, Service(Path(folder)) as service:
        train(service.url)  # the service is ready before its workers have imported torch
        seconds = [train(service.url) for _ in range(repetitions)]
    return "\n".join(
        [
            "| median (s) | fastest (s) | slowest (s) | runs |",
            "|---|---|---|---|",
            f"| **{statistics.median(seconds):.3f}** | {min(seconds):.3f} | {max(seconds):.3f} | {repetitions} |",
        ]
    )


def train(url: str) -> float:
    """Seconds from the request to the answer that says `succeeded`."""
    begun = time.perf_counter()
    answer = httpx.post(f"{url}/train", json=TOY, headers={"Prefer": "wait=30"}, timeout=60)
    seconds = time.perf_counter() - begun
    assert answer.status_code == 200, answer.text
    assert answer.json()["state"] == "succeeded", answer.text
    return seconds
