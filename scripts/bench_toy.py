"""How long the README's first example takes from POST to `succeeded`, and how many a warm service does in a second."""

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
NUM_QUEUED = 100


def table(repetitions: int) -> str:
    with TemporaryDirectory() as folder, Service(Path(folder)) as service:
        train(service.url)  # the service is ready before its workers have imported torch
        seconds = [train(service.url) for _ in range(repetitions)]
        rates = [jobs_per_second(service.url) for _ in range(3)]
    return "\n".join(
        [
            f"| median (s) | fastest (s) | slowest (s) | runs | {NUM_QUEUED} in the queue (jobs/s) |",
            "|---|---|---|---|---|",
            f"| **{statistics.median(seconds):.3f}** | {min(seconds):.3f} | {max(seconds):.3f} | {repetitions} "
            f"| **{statistics.median(rates):.1f}** |",
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


def jobs_per_second(url: str) -> float:
    """Of a queue of toys, from the first request to the last one's end."""
    with httpx.Client(base_url=url) as client:
        begun = time.perf_counter()
        jobs = [client.post("/train", json=TOY).raise_for_status().json()["id"] for _ in range(NUM_QUEUED)]
        for job in reversed(jobs):  # the last ones are waited for; the others have ended by then
            while not (found := client.get(f"/jobs/{job}").json())["terminal"]:
                time.sleep(0.05)
            assert found["state"] == "succeeded", found
        return NUM_QUEUED / (time.perf_counter() - begun)
