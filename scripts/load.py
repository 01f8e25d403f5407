"""Load for a service and for others like it: what is sent, by wrk, and what came of it."""

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np

from scripts.service import free_port

HERE = Path(__file__).parent
KEY = "benchmark"
SETTINGS = {"GRADSERVE_API_KEYS": f"{KEY}:admin"}
AUTHORIZED = f"Authorization: Bearer {KEY}"
WIDTH, NUM_ROWS = 32, 10_000
MODEL = "mlp"


class Measured(NamedTuple):
    """`refused`: answers that were no success; `broken`: connections and answers that failed."""

    per_second: float
    p50_ms: float
    p99_ms: float
    refused: int
    broken: int


class Load(NamedTuple):
    """What is sent, by how many connections, and which figure of `Measured` is looked at."""

    title: str
    body: str
    connections: int
    field: str
    unit: str
    goal: str


Figures = dict[Load, float]


def figure(load: Load, value: float) -> str:
    return f"{value:.{0 if value >= 1000 else 1 if value >= 10 else 2}f}{load.unit}"


def require_wrk() -> None:
    if not shutil.which("wrk"):
        raise SystemExit("wrk is not installed; on Debian and Ubuntu: apt-get install wrk")


def wrk(url: str, body: Path, connections: int, *headers: str, seconds: int = 4) -> Measured:
    """What came of posting a file over and over."""
    kind = "octet-stream" if body.suffix == ".bin" else "json"
    options = ["-t1", f"-c{connections}", f"-d{seconds}", "--timeout", "30", "-s", str(HERE / "wrk.lua")]
    arguments = [str(body), f"Content-Type: application/{kind}", *headers]
    done = subprocess.run(["wrk", *options, url, "--", *arguments], capture_output=True, text=True, check=True)
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def rows(number: int, seed: int = 1) -> list[list[float]]:
    drawn = random.Random(seed)
    return [[round(drawn.gauss(0, 1), 6) for _ in range(WIDTH)] for _ in range(number)]


def write_bodies(folder: Path) -> list[str]:
    """`one.json` and `many.json` for `/predict`, `many.bin` for v2; returns the headers that the last one needs."""
    for name, number in (("one", 1), ("many", NUM_ROWS)):
        (folder / f"{name}.json").write_text(json.dumps({"model": MODEL, "inputs": rows(number)}))
    numbers = np.array(rows(NUM_ROWS), np.float32).tobytes()
    parameters = {"binary_data_size": len(numbers)}
    tensor = {"name": "inputs", "shape": [NUM_ROWS, WIDTH], "datatype": "FP32", "parameters": parameters}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    (folder / "many.bin").write_bytes(head + numbers)
    return [f"Inference-Header-Content-Length: {len(head)}"]


def train(url: str, model: str, hidden_features: list[int], max_steps: int = 1) -> None:
    """A network over rows of `WIDTH` numbers, which after a single step predicts about the same for all."""
    table = rows(64, seed=2)
    body = {
        "model": model,
        "data": {"inputs": table, "targets": [sum(row) for row in table]},
        "network": {"hidden_features": hidden_features},
        "stop": {"max_steps": max_steps},
    }
    headers = {"Authorization": f"Bearer {KEY}", "Prefer": "wait=60"}
    job = httpx.post(f"{url}/train", json=body, headers=headers, timeout=90).json()
    assert job.get("state") == "succeeded", job


@contextmanager
def floor() -> Iterator[str]:
    """The URL of an app that knows no model, served as the service is."""
    port = free_port()
    options = ["--port", str(port), "--log-level", "warning", "--no-access-log", "--lifespan", "off"]
    command = [sys.executable, "-m", "uvicorn", "scripts.floor:app", *options]
    # in a session of its own, as the service is: where Linux shares a busy machine out among sessions, both get as much
    process = subprocess.Popen(command, cwd=HERE.parent, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: httpx.post(f"{url}/predict", json={"inputs": []}).is_success)
        yield url
    finally:
        process.terminate()
        process.wait()


def wait_until(says_yes: Callable[[], bool], seconds: float = 120) -> None:
    """A server that has not begun yet refuses to be asked, which is a no.

    Raises:
        TimeoutError
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if says_yes():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise TimeoutError(f"no answer within {seconds:.0f} s")
