"""How soon `/healthz` answers while the same process predicts a body of 100 MB."""

import json
import statistics
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from scripts.beside import Beside
from scripts.load import AUTHORIZED, MODEL, SETTINGS, rows, train
from scripts.service import Service

NUM_BYTES = 100 * 10**6
GOAL_MS = 50


def table(repetitions: int) -> str:
    with TemporaryDirectory() as folder, Service(Path(folder), settings=SETTINGS) as service:
        train(service.url, MODEL, [64, 64])
        body, num_rows = large_body()
        file, answer = Path(folder) / "body.json", Path(folder) / "answer.json"
        file.write_bytes(body)
        headers = ["-H", AUTHORIZED, "-H", "Content-Type: application/json", "-H", "Expect:"]
        command = ["curl", "-sSf", *headers, "--data-binary", f"@{file}", "-o", str(answer), f"{service.url}/predict"]
        seconds, waits = [], []
        for _ in range(repetitions):
            with Watch(service.url) as watch:
                begun = time.perf_counter()
                subprocess.run(command, check=True)
                seconds.append(time.perf_counter() - begun)
            assert len(json.loads(answer.read_bytes())["predictions"]) == num_rows
            waits += watch.waits_ms
    hundredths = statistics.quantiles(waits, n=100)
    return "\n".join(
        [
            "| body (MB) | rows | its answer (s) | `/healthz` asked | p50 (ms) | p99 (ms) | **longest (ms)** | goal |",
            "|---|---|---|---|---|---|---|---|",
            f"| {len(body) / 1e6:.0f} | {num_rows:,} | {statistics.median(seconds):.1f} | {len(waits)} "
            f"| {hundredths[49]:.1f} | {hundredths[98]:.1f} | **{max(waits):.1f}** | ≤ {GOAL_MS} ms |",
        ]
    )


def large_body() -> tuple[bytes, int]:
    """The body, and its number of rows."""
    part = str(rows(1000))[1:-1].encode()
    num_parts = NUM_BYTES // len(part)
    return b'{"model": "%s", "inputs": [%s]}' % (MODEL.encode(), b", ".join([part] * num_parts)), 1000 * num_parts


class Watch(Beside):
    """Asks for the health, over and over, on a connection of its own."""

    def __init__(self, url: str) -> None:
        super().__init__(0.005)
        self._client = httpx.Client(base_url=url)
        self.waits_ms: list[float] = []

    def run(self) -> None:
        with self._client:
            super().run()

    def look(self) -> None:
        begun = time.perf_counter()
        self._client.get("/healthz").raise_for_status()
        self.waits_ms.append(1000 * (time.perf_counter() - begun))
