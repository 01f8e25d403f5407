"""Many at once: 512 requests to train, a thousand open streams."""

import asyncio
import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing

import httpx
import pytest

from app.client import Client
from scripts.processes import memory_of, num_descriptors
from scripts.service import Service

NUM_JOBS, NUM_STREAMS = 512, 1000
MAX_BYTES_PER_STREAM = 2**16


def toy(number: int) -> dict[str, object]:
    data = {"inputs": [[number], [number + 1], [number + 2]], "targets": [1, 2, 3]}
    return {"model": f"m{number}", "data": data, "stop": {"max_steps": 1}, "validation": None}


async def submit_all(url: str) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=NUM_JOBS)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=300) as client:
        return await asyncio.gather(*(client.post("/train", json=toy(number)) for number in range(NUM_JOBS)))


@pytest.mark.parametrize("workers", [1, 2])
def test_512_requests_to_train_at_once_are_512_jobs(start_service: Callable[..., Service], workers: int) -> None:
    service = start_service(workers, GRADSERVE_MAX_RUNNING_JOBS="1")
    answers = asyncio.run(submit_all(service.url))
    assert {answer.status_code for answer in answers} == {202}
    accepted = {answer.json()["id"]: answer.json()["model"] for answer in answers}
    assert len(accepted) == len(set(accepted.values())) == NUM_JOBS
    assert {job["id"]: job["model"] for job in all_jobs(service)} == accepted
    service.kill()  # most of them wait; they are there when it starts again
    with closing(sqlite3.connect(service.root / "data" / "gradserve.db")) as connection:
        assert dict(connection.execute("SELECT id, model FROM jobs")) == accepted
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert "locked" not in service.log.read_text()


def all_jobs(service: Service) -> Iterator[dict[str, str]]:
    page = {"next": ""}
    while page["next"] is not None:
        after = {"after": page["next"]} if page["next"] else {}
        page = httpx.get(f"{service.url}/jobs", params={"limit": "200", **after}, timeout=60).json()
        yield from page["data"]


@pytest.fixture
def enough_files() -> Iterator[None]:
    usual, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < NUM_STREAMS + 500:
        pytest.skip("the system allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(usual, NUM_STREAMS + 500), most))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (usual, most))


@pytest.mark.usefixtures("enough_files")
def test_a_thousand_streams_all_get_the_end(start_service: Callable[..., Service]) -> None:
    service = start_service(GRADSERVE_MAX_RUNNING_JOBS="1")
    assert service.process
    with Client(service.url) as client:
        client.submit(model="busy", data={"inputs": [[1], [2], [3]], "targets": [1, 2, 3]}, stop={"max_seconds": 3600})
        job = client.submit(toy(0))
        before = memory_of(service.process.pid), num_descriptors(service.process.pid)
        endings = asyncio.run(follow_many(service, job["id"], before))
        assert [ending.count(b'"state":"cancelled"') for ending in endings] == [1] * NUM_STREAMS
        assert client.ready()


async def follow_many(service: Service, job_id: str, before: tuple[int, int]) -> list[bytes]:
    """What comes on each stream, once the job is cancelled while all of them are open."""
    assert service.process
    request = f"GET /jobs/{job_id}/events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".encode()
    streams = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(NUM_STREAMS)]
    for _, writer in streams:
        writer.write(request)
    await asyncio.gather(*(reader.readuntil(b'"queued"}') for reader, _ in streams))
    memory, descriptors = memory_of(service.process.pid), num_descriptors(service.process.pid)
    assert descriptors - before[1] >= NUM_STREAMS
    assert memory - before[0] < NUM_STREAMS * MAX_BYTES_PER_STREAM
    async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.post(f"/jobs/{job_id}/cancel")).status_code == 202
    endings = await asyncio.gather(*(reader.readuntil(b"\r\n0\r\n\r\n") for reader, _ in streams))
    for _, writer in streams:
        writer.close()
    return list(endings)
