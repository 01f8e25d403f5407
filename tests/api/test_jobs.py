"""`/jobs` over real HTTP. The tests play the supervisor's part themselves; app.jobs.supervisor has its own."""

import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import event

from app.api import jobs, problems
from app.api.auth import Keys
from app.jobs import feed as feed_module
from app.jobs.feed import EventFeed
from app.jobs.queue import Batch, JobQueue
from app.storage import jobs as rows
from app.storage.database import Database
from app.storage.jobs import NewEvent
from tests.databases import new_database
from tests.waiting import until


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = new_database(tmp_path / "gradserve.db")
    yield database
    database.close()


@pytest.fixture
def queue(database: Database) -> JobQueue:
    return JobQueue(database, max_queued_jobs=1000)


def make_app(queue: JobQueue, keys: str = "") -> FastAPI:
    app = FastAPI()
    problems.install(app)
    app.include_router(jobs.router)
    app.state.keys = Keys(keys)
    app.state.services = SimpleNamespace(jobs=queue, feed=EventFeed(queue))
    return app


class Server:
    """The service in a thread of this process."""

    def __init__(self, app: FastAPI) -> None:
        self.feed: EventFeed = app.state.services.feed
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))

    def __enter__(self) -> "Server":
        self._thread.start()
        until(lambda: self._server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self.feed.close()
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


@pytest.fixture
def server(queue: JobQueue) -> Iterator[Server]:
    with Server(make_app(queue)) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


def metrics(job_id: str, epoch: int, **more: Any) -> NewEvent:
    return NewEvent(job_id, "metrics", {"epoch": epoch, "train_loss": 1 / epoch, "val_loss": None} | more, 0.0)


def run(queue: JobQueue, num_epochs: int = 3) -> str:
    """A job that has run and succeeded."""
    job = queue.submit({"model": "m", "seed": 7}, "m")
    queue.claim(1)
    for epoch in range(1, num_epochs + 1):
        queue.record({job.id: Batch([metrics(job.id, epoch)], {"epoch": epoch, "step": epoch, "fraction": 1.0})})
    queue.reserve(job.id, "3", {"val_loss": 0.25}, "patience")
    queue.finish(job.id, "succeeded")
    return job.id


def parse(text: str) -> list[tuple[int, str, Any]]:
    """Server-sent events as (id, event, data)."""
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.split("\n\n") if block]
    return [(int(block["id"]), block["event"], json.loads(block["data"])) for block in blocks if "id" in block]


STREAM = {"Accept": "text/event-stream"}


# ---- jobs


def test_a_queued_job_on_the_wire(client: httpx.Client, queue: JobQueue) -> None:
    queue.submit({}, "other")
    job = queue.submit({"model": "penguins", "seed": 7}, "penguins", warnings=["careful"])
    answer = client.get(f"/jobs/{job.id}").json()
    assert answer.pop("created_at").endswith("Z")
    assert answer == {
        "id": job.id,
        "state": "queued",
        "terminal": False,
        "model": "penguins",
        "version": None,
        "request_id": None,
        "submitted_by": None,
        "spec": {"model": "penguins", "seed": 7},
        "progress": {"epoch": 0, "num_epochs": None, "step": 0, "fraction": 0.0, "eta_seconds": None},
        "metrics": {},
        "stop_reason": None,
        "warnings": ["careful"],
        "error": None,
        "queue_position": 2,
        "wait_reason": None,
        "started_at": None,
        "finished_at": None,
        "links": {
            "self": f"/jobs/{job.id}",
            "events": f"/jobs/{job.id}/events",
            "history": f"/jobs/{job.id}/history",
            "model": None,
        },
    }


def test_a_finished_job_leads_to_its_version(client: httpx.Client, queue: JobQueue) -> None:
    answer = client.get(f"/jobs/{run(queue)}").json()
    assert (answer["state"], answer["terminal"], answer["version"]) == ("succeeded", True, "3")
    assert answer["links"]["model"] == "/models/m/versions/3"
    assert (answer["metrics"], answer["stop_reason"]) == ({"val_loss": 0.25}, "patience")
    assert answer["progress"]["epoch"] == 3
    assert answer["created_at"] <= answer["started_at"] <= answer["finished_at"]


def test_a_reserved_version_is_not_shown_before_it_is_published(client: httpx.Client, queue: JobQueue) -> None:
    job = queue.submit({}, "m")
    queue.claim(1)
    queue.reserve(job.id, "3", {}, None)
    answer = client.get(f"/jobs/{job.id}").json()
    assert (answer["version"], answer["links"]["model"]) == (None, None)


def test_a_failed_job_says_why(client: httpx.Client, queue: JobQueue) -> None:
    job = queue.submit({}, "m")
    queue.claim(1)
    queue.finish(job.id, "failed", error={"code": "diverged", "detail": "the loss is not finite"})
    answer = client.get(f"/jobs/{job.id}").json()
    assert answer["error"] == {"code": "diverged", "detail": "the loss is not finite"}


def test_lists_are_newest_first_and_page(client: httpx.Client, queue: JobQueue) -> None:
    ids = [queue.submit({}, "ab"[number % 2]).id for number in range(5)]
    queue.cancel(ids[0])
    first = client.get("/jobs", params={"limit": 3}).json()
    rest = client.get("/jobs", params={"limit": 3, "after": first["next"]}).json()
    assert [job["id"] for job in first["data"] + rest["data"]] == ids[::-1]
    assert rest["next"] is None
    found = client.get("/jobs", params={"state": "queued", "model": "a"}).json()["data"]
    assert [job["id"] for job in found] == [ids[4], ids[2]]


@pytest.mark.parametrize("params", [{"limit": 0}, {"limit": 201}, {"state": "lost"}, {"after": "x"}])
def test_a_list_that_makes_no_sense_is_422(client: httpx.Client, params: dict[str, Any]) -> None:
    answer = client.get("/jobs", params=params)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")


def test_requests_answer_202_and_the_job(client: httpx.Client, queue: JobQueue) -> None:
    job = queue.submit({}, "m")
    for verb, state in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
        answer = client.post(f"/jobs/{job.id}/{verb}")
        assert (answer.status_code, answer.json()["state"]) == (202, state)


def test_what_the_state_does_not_allow_is_409(client: httpx.Client, queue: JobQueue) -> None:
    job_id = run(queue)
    for verb in ("pause", "resume", "cancel"):
        answer = client.post(f"/jobs/{job_id}/{verb}")
        assert answer.status_code == 409
        assert answer.json()["code"] == "job_state_conflict"
        assert "is succeeded and can't" in answer.json()["detail"]


def test_delete(client: httpx.Client, queue: JobQueue) -> None:
    done, waiting = run(queue), queue.submit({}, "m").id
    queue.cancel(waiting)
    held = queue.submit({}, "m").id
    assert client.delete(f"/jobs/{held}").status_code == 409
    assert [client.delete(f"/jobs/{job_id}").status_code for job_id in (waiting, done)] == [204, 204]
    assert [client.get(f"/jobs/{job_id}").status_code for job_id in (waiting, done, held)] == [404, 404, 200]


@pytest.mark.parametrize("call", ["", "/events", "/history"])
def test_an_unknown_job_is_404(client: httpx.Client, call: str) -> None:
    for headers in ({}, STREAM, STREAM | {"Last-Event-ID": "4"}):
        answer = client.get(f"/jobs/nowhere{call}", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")


def test_a_key_to_read_may_not_cancel(queue: JobQueue) -> None:
    job = queue.submit({}, "m")
    with Server(make_app(queue, "r:read,t:train+read")) as server:
        read, train = ({"Authorization": f"Bearer {key}"} for key in "rt")
        assert httpx.get(f"{server.url}/jobs/{job.id}").status_code == 401
        assert httpx.get(f"{server.url}/jobs/{job.id}/events", headers=read).status_code == 200
        assert httpx.post(f"{server.url}/jobs/{job.id}/cancel", headers=read).status_code == 403
        assert httpx.post(f"{server.url}/jobs/{job.id}/cancel", headers=train).status_code == 202


# ---- history


def test_history_as_json_and_csv(client: httpx.Client, queue: JobQueue) -> None:
    job = queue.submit({}, "m")
    told = [metrics(job.id, 1, train_loss=float("inf")), metrics(job.id, 2, grad_norm=0.5)]
    queue.record({job.id: Batch(told)})
    rows = [{"epoch": 1, "train_loss": None, "val_loss": None}]
    rows.append({"epoch": 2, "train_loss": 0.5, "val_loss": None, "grad_norm": 0.5})
    assert client.get(f"/jobs/{job.id}/history").json() == {"data": rows}
    answer = client.get(f"/jobs/{job.id}/history", headers={"Accept": "text/csv"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert list(csv.reader(io.StringIO(answer.text))) == [
        ["epoch", "train_loss", "val_loss", "grad_norm"],
        ["1", "", "", ""],
        ["2", "0.5", "", "0.5"],
    ]


# ---- events


def test_events_page(client: httpx.Client, queue: JobQueue) -> None:
    job_id = run(queue)
    first = client.get(f"/jobs/{job_id}/events", params={"limit": 4}).json()
    rest = client.get(f"/jobs/{job_id}/events", params={"limit": 4, "after": first["next"]}).json()
    told = first["data"] + rest["data"]
    assert [each["type"] for each in told] == ["state", "state", "metrics", "metrics", "metrics", "state"]
    assert [each["id"] for each in told] == sorted(each["id"] for each in told)
    assert told[-1]["data"]["version"] == "3"
    assert rest["next"] is None
    assert client.get(f"/jobs/{job_id}/events", params={"after": "x"}).status_code == 422


def test_a_stream_tells_all_and_ends(client: httpx.Client, queue: JobQueue) -> None:
    job_id = run(queue)
    answer = client.get(f"/jobs/{job_id}/events", headers=STREAM)
    assert answer.headers["content-type"].startswith("text/event-stream")
    stored = [(each.id, each.type, each.data) for each in queue.events(job_id)]
    assert parse(answer.text) == stored
    assert stored[-1][2]["state"] == "succeeded"


def test_last_event_id_goes_on_from_any_event(client: httpx.Client, queue: JobQueue) -> None:
    job_id = run(queue)
    stored = [each.id for each in queue.events(job_id)]
    for cut in range(1, len(stored)):
        answer = client.get(f"/jobs/{job_id}/events", headers=STREAM | {"Last-Event-ID": str(stored[cut - 1])})
        assert [number for number, _, _ in parse(answer.text)] == stored[cut:]
    last = STREAM | {"Last-Event-ID": str(stored[-1])}
    assert client.get(f"/jobs/{job_id}/events", headers=last).status_code == 204
    assert client.get(f"/jobs/{job_id}/events", headers=STREAM | {"Last-Event-ID": "x"}).status_code == 422


def test_a_stream_goes_on_with_what_is_left_of_the_events(
    client: httpx.Client, queue: JobQueue, database: Database
) -> None:
    job_id = run(queue)
    stored = [each.id for each in queue.events(job_id)]
    with database.write() as connection:
        rows.delete_events(connection, stored[1:-1])
    answer = client.get(f"/jobs/{job_id}/events", headers=STREAM | {"Last-Event-ID": str(stored[0])})
    assert [number for number, _, _ in parse(answer.text)] == stored[-1:]


def test_an_id_that_is_yet_to_come_does_not_hide_what_comes(client: httpx.Client, queue: JobQueue) -> None:
    """As after a restore from a backup: the client has seen events that the database knows nothing of."""
    job = queue.submit({}, "m")
    queue.claim(1)
    headers = STREAM | {"Last-Event-ID": str(10**6)}
    with client.stream("GET", f"/jobs/{job.id}/events", headers=headers) as answer:
        chunks = answer.iter_text()
        assert parse(next(chunks)) == []
        queue.finish(job.id, "failed")
        assert [data["state"] for _, _, data in parse("".join(chunks))] == ["failed"]


@pytest.mark.parametrize("local", [True, False], ids=["same process", "another process"])
def test_events_come_as_they_happen_each_once(
    client: httpx.Client, queue: JobQueue, database: Database, local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if local:  # what this process writes is not waited for
        monkeypatch.setattr(feed_module, "POLL_SECONDS", 60.0)
    other = Database(database.engine.url.render_as_string())
    writer = queue if local else JobQueue(other, max_queued_jobs=1)
    job = queue.submit({}, "m")
    writer.claim(1)
    with client.stream("GET", f"/jobs/{job.id}/events", headers=STREAM) as answer:
        chunks = answer.iter_text()
        text = next(chunks)
        for epoch in range(1, 11):
            writer.record({job.id: Batch([metrics(job.id, epoch), metrics(job.id, epoch + 100)])})
            while f'"epoch":{epoch + 100}' not in text:
                text += next(chunks)
        writer.finish(job.id, "failed", error={"code": "c", "detail": "d"})
        text += "".join(chunks)
    stored = [(each.id, each.type, each.data) for each in queue.events(job.id)]
    assert parse(text) == stored
    assert len(stored) == 23
    other.close()


def test_a_stream_that_falls_behind_loses_nothing(
    client: httpx.Client, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "BUFFER", 3)
    monkeypatch.setattr(feed_module, "PAGE", 7)
    monkeypatch.setattr(feed_module, "PAGE_OF_ONE", 7)
    job = queue.submit({}, "m")
    queue.claim(1)
    with client.stream("GET", f"/jobs/{job.id}/events", headers=STREAM) as answer:
        chunks = answer.iter_text()
        text = next(chunks)
        for start in range(1, 400, 40):
            queue.record({job.id: Batch([metrics(job.id, epoch) for epoch in range(start, start + 40)])})
        queue.finish(job.id, "failed", error={"code": "c", "detail": "d"})
        text += "".join(chunks)
    assert [number for number, _, _ in parse(text)] == [each.id for each in queue.events(job.id, limit=1000)]


def test_many_streams_share_one_reader(server: Server, queue: JobQueue, database: Database) -> None:
    num_streams, num_events = 50, 20
    job = queue.submit({}, "m")
    queue.claim(1)
    queries: list[str] = []
    listening = threading.Semaphore(0)

    def follow(_: int) -> list[int]:
        with httpx.stream("GET", f"{server.url}/jobs/{job.id}/events", headers=STREAM, timeout=30) as answer:
            chunks = answer.iter_text()
            text = next(chunks)
            listening.release()
            return [number for number, _, _ in parse(text + "".join(chunks))]

    with ThreadPoolExecutor(num_streams) as threads:
        streams = [threads.submit(follow, number) for number in range(num_streams)]
        for _ in streams:
            assert listening.acquire(timeout=30)
        event.listen(database.engine, "before_cursor_execute", lambda *args: queries.append(args[2]))
        for epoch in range(1, num_events + 1):
            queue.record({job.id: Batch([metrics(job.id, epoch)])})
        queue.finish(job.id, "failed", error={"code": "c", "detail": "d"})
        found = [stream.result(30) for stream in streams]
    reads = [query for query in queries if query.startswith("SELECT") and "FROM events" in query]
    stored = [each.id for each in queue.events(job.id)]
    assert all(ids == stored for ids in found)
    assert len(reads) <= 2 * (num_events + 1)


def test_a_quiet_stream_is_kept_alive(client: httpx.Client, queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "KEEP_ALIVE_SECONDS", 0.02)
    job = queue.submit({}, "m")
    with client.stream("GET", f"/jobs/{job.id}/events", headers=STREAM) as answer:
        lines = answer.iter_lines()
        until(lambda: next(lines).startswith(": "))


def test_a_stream_ends_where_the_job_is_deleted_with_its_last_events(
    client: httpx.Client, queue: JobQueue, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "KEEP_ALIVE_SECONDS", 0.1)
    job = queue.submit({}, "m")
    with client.stream("GET", f"/jobs/{job.id}/events", headers=STREAM) as answer:
        chunks = answer.iter_text()
        next(chunks)
        with database.write() as connection:  # ended and deleted before any reader has looked again
            rows.delete_job(connection, job.id)
        assert len(list(islice(chunks, 20))) < 20


def test_a_client_that_leaves_is_forgotten(
    client: httpx.Client, server: Server, queue: JobQueue, database: Database
) -> None:
    job = queue.submit({}, "m")
    with client.stream("GET", f"/jobs/{job.id}/events", headers=STREAM) as answer:
        chunks = answer.iter_text()
        next(chunks)
        assert server.feed.num_listeners == 1
    until(lambda: server.feed.num_listeners == 0)


# ---- the end of the server

SERVICE = """
import sys
from contextlib import asynccontextmanager
from pathlib import Path
import uvicorn
from app.jobs.feed import ended_by_signals
from app.jobs.queue import JobQueue
from app.storage.database import Database
from tests.api.test_jobs import make_app

@asynccontextmanager
async def lifespan(app):
    with ended_by_signals(app.state.services.feed):
        print("ready", flush=True)
        yield

app = make_app(JobQueue(Database(sys.argv[1]), max_queued_jobs=9))
app.router.lifespan_context = lifespan
uvicorn.run(app, fd=int(sys.argv[2]), log_level="error")
"""


def test_open_streams_do_not_hold_up_a_shutdown(queue: JobQueue, database: Database) -> None:
    job = queue.submit({}, "m")
    url = database.engine.url.render_as_string()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        number = listening.fileno()
        service = subprocess.Popen(
            [sys.executable, "-c", SERVICE, url, str(number)],
            pass_fds=[number],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    assert service.stdout is not None
    assert service.stdout.readline() == b"ready\n"
    with service.stdout, httpx.stream("GET", f"{address}/jobs/{job.id}/events", headers=STREAM, timeout=20) as answer:
        chunks = answer.iter_text()
        assert "queued" in next(chunks)
        asked = time.monotonic()
        service.send_signal(signal.SIGTERM)
        assert "".join(chunks) == ""
        service.wait(10)
    assert time.monotonic() - asked < 5
