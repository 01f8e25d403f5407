"""How long the README's first example takes from POST to `succeeded`, and how many a warm service does in a second;
beside the bare loop that learns the same, with nothing read, told, measured or stored.
"""

import multiprocessing
import statistics
import time
from multiprocessing.pool import Pool
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import torch

from app.learning.devices import usable_cores
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
    """Service and loop take turns, so that a machine that slows down slows both."""
    cores = usable_cores()
    loops = multiprocessing.get_context("spawn").Pool(cores)
    with (
        TemporaryDirectory() as folder,
        Service(Path(folder)) as service,
        httpx.Client(base_url=service.url, timeout=60) as client,
        loops,
    ):
        loops.map(tight_loop, range(cores), chunksize=1)  # each has imported torch
        train(client)  # the service is ready before its workers have imported torch
        jobs, alone, rates, at_once = list[float](), list[float](), list[float](), list[float]()
        for _ in range(repetitions):
            jobs.append(train(client))
            alone.append(loops.apply(tight_loop, (0,)))
        for _ in range(3):
            rates.append(jobs_per_second(client))
            at_once.append(loops_per_second(loops))
    job, loop, rate, loop_rate = map(statistics.median, (jobs, alone, rates, at_once))
    return "\n".join(
        [
            f"| median (s) | fastest (s) | slowest (s) | tight loop (s) | **job / loop** | {NUM_QUEUED} in the queue "
            f"(jobs/s) | loops on {cores} cores (loops/s) | **jobs / loops** |",
            "|---|---|---|---|---|---|---|---|",
            f"| {job:.3f} | {min(jobs):.3f} | {max(jobs):.3f} | {loop:.3f} | **{job / loop:.2f}** "
            f"| {rate:.1f} | {loop_rate:.1f} | **{rate / loop_rate:.2f}** |",
        ]
    )


def tight_loop(_: int) -> float:
    """Seconds of the job's steps on one thread."""
    torch.set_num_threads(1)
    inputs = torch.arange(1.0, 11.0)[:, None]
    targets = inputs.clone()
    network = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, fused=True)
    begun = time.perf_counter()
    for _ in range(TOY["stop"]["max_steps"]):
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.mse_loss(network(inputs), targets)
        loss.backward()
        optimizer.step()
    return time.perf_counter() - begun


def loops_per_second(loops: Pool) -> float:
    """As many loops as there are jobs in the queue, on all cores."""
    begun = time.perf_counter()
    loops.map(tight_loop, range(NUM_QUEUED), chunksize=1)
    return NUM_QUEUED / (time.perf_counter() - begun)


def train(client: httpx.Client) -> float:
    """Seconds from the request to the answer that says `succeeded`."""
    begun = time.perf_counter()
    answer = client.post("/train", json=TOY, headers={"Prefer": "wait=30"})
    seconds = time.perf_counter() - begun
    assert answer.status_code == 200, answer.text
    assert answer.json()["state"] == "succeeded", answer.text
    return seconds


def jobs_per_second(client: httpx.Client) -> float:
    """Of a queue of toys, from the first request to the last one's end."""
    begun = time.perf_counter()
    jobs = [client.post("/train", json=TOY).raise_for_status().json()["id"] for _ in range(NUM_QUEUED)]
    for job in reversed(jobs):  # the last ones are waited for; the others have ended by then
        while not (found := client.get(f"/jobs/{job}").json())["terminal"]:
            time.sleep(0.05)
        assert found["state"] == "succeeded", found
    return NUM_QUEUED / (time.perf_counter() - begun)
