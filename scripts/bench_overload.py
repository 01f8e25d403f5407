"""Two minutes at four times what the service can do: who is let in is answered soon, who is not hears so at once.

Requests are sent when they are due, whatever has become of those before; a client that waits for answers would slow
down with the service. What may wait for a model is bounded to what it can do in a moment, as whoever runs it chooses.
"""

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from scripts.load import KEY, SETTINGS, rows, train
from scripts.processes import memory_of
from scripts.service import Service

SECONDS = 120.0
TIMES_CAPACITY = 4
MODEL, HIDDEN = "heavy", [2048, 2048]  # a pass takes longer than everything around it
ROWS = 64
MAX_QUEUED = 3  # requests
HEADERS = f"Host: localhost\r\nAuthorization: Bearer {KEY}\r\n"


class Answer(NamedTuple):
    status: int
    seconds: float
    headers: str


class Client:
    """Connections that are kept; another one is made where all of them wait for an answer."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        body = json.dumps({"model": MODEL, "inputs": rows(ROWS)})
        about = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self._predict = f"POST /predict HTTP/1.1\r\n{HEADERS}{about}\r\n{body}".encode()
        self._healthz = f"GET /healthz HTTP/1.1\r\n{HEADERS}\r\n".encode()

    def predict(self) -> Awaitable[Answer]:
        return self._ask(self._predict)

    def healthz(self) -> Awaitable[Answer]:
        return self._ask(self._healthz)

    async def _ask(self, request: bytes) -> Answer:
        begun = time.perf_counter()
        while self._free and self._free[-1][0].at_eof():  # idle for so long that the service has closed it
            self._free.pop()[1].close()
        reader, writer = self._free.pop() if self._free else await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(request)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        except (asyncio.IncompleteReadError, ConnectionError):  # closed just now, before the request was there
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        await reader.readexactly(int(head.partition("content-length:")[2].split()[0]))
        self._free.append((reader, writer))
        return Answer(int(head.split()[1]), time.perf_counter() - begun, head)


class Seen(NamedTuple):
    unloaded_seconds: float
    capacity: float
    answers: list[Answer]
    health: list[Answer]
    memory: list[int]


def table() -> str:
    settings = SETTINGS | {"GRADSERVE_MAX_QUEUED_ROWS": str(MAX_QUEUED * ROWS)}
    with TemporaryDirectory() as folder, Service(Path(folder), settings=settings) as service:
        train(service.url, MODEL, HIDDEN)
        assert service.process
        seen = asyncio.run(watch(service.port, service.process.pid))
    accepted = [answer.seconds for answer in seen.answers if answer.status == 200]
    refused = [answer.seconds for answer in seen.answers if answer.status == 429]
    assert len(accepted) + len(refused) == len(seen.answers), "an answer was neither 200 nor 429"
    assert all("retry-after:" in answer.headers for answer in seen.answers if answer.status == 429)
    p99 = percentile(accepted, 99)
    lines = {
        "p50 with no load": ms(seen.unloaded_seconds),
        "capacity (requests/s)": f"{seen.capacity:.0f}",
        "sent (requests/s)": f"{len(seen.answers) / SECONDS:.0f}",
        "answered with predictions (requests/s)": f"{len(accepted) / SECONDS:.0f}",
        "p99 of these": f"{ms(p99)}, **{p99 / seen.unloaded_seconds:.1f}** × the p50 with no load (goal: ≤ 10)",
        "refused with 429 and `Retry-After`": f"{len(refused)}, p50 {ms(percentile(refused, 50))}",
        "`/healthz` meanwhile, p99": ms(percentile([answer.seconds for answer in seen.health], 99)),
        "memory after 10 s, at the end, at most": ", ".join(
            f"{value / 1e6:.0f} MB" for value in (seen.memory[10], seen.memory[-1], max(seen.memory[10:]))
        ),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in lines.items())])


async def watch(port: int, pid: int) -> Seen:
    client = Client(port)
    unloaded = [(await client.predict()).seconds for _ in range(60)][10:]
    capacity = max(await capacity_of(client), 1 / statistics.median(unloaded))
    sending, others, memory = asyncio.create_task(send(client, TIMES_CAPACITY * capacity)), Client(port), []
    health: list[Answer] = []
    while not sending.done():
        memory.append(memory_of(pid))
        for _ in range(10):
            health.append(await others.healthz())
            await asyncio.sleep(0.1)
    return Seen(statistics.median(unloaded), capacity, await sending, health, memory)


async def capacity_of(client: Client, seconds: float = 5) -> float:
    """Predictions a second with as many requests on their way as may be."""
    end, done = time.perf_counter() + seconds, 0

    async def go_on() -> None:
        nonlocal done
        while time.perf_counter() < end:
            done += (await client.predict()).status == 200

    await asyncio.gather(*[go_on() for _ in range(MAX_QUEUED)])
    return done / seconds


async def send(client: Client, per_second: float) -> list[Answer]:
    begun = time.perf_counter()
    tasks: list[asyncio.Task[Answer]] = []
    while (passed := time.perf_counter() - begun) < SECONDS:
        while len(tasks) < passed * per_second:
            tasks.append(asyncio.ensure_future(client.predict()))
        await asyncio.sleep(0.001)
    return await asyncio.gather(*tasks)


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"
