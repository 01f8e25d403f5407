"""The whole service, in a thread of this process: real jobs, real files, real HTTP."""

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from app.api.connections import Connection
from app.main import create_app
from app.settings import Settings
from tests.waiting import until

Answer = dict[str, Any]


@contextmanager
def service(root: Path, **settings: Any) -> Iterator[httpx.Client]:
    """A client of a service with its folders under `root`."""
    given = {"models_dir": root / "models", "data_dir": root / "data", "log_level": "error", **settings}
    app = create_app(Settings(_env_file=None, **given))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(
            uvicorn.Config(app, http=Connection, log_config=None, server_header=False, timeout_graceful_shutdown=5)
        )
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            until(lambda: server.started, 60)
            with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=90) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()
            _log_no_more()


def _log_no_more() -> None:
    """What a service logs to is a test's standard error, which is closed before the next test says something."""
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    for handler in [handler for handler in root.handlers if type(handler) is logging.StreamHandler]:
        root.removeHandler(handler)


def train(client: httpx.Client, body: Any, **headers: str) -> Answer:
    """Train to the end; returns the job, which has succeeded."""
    answer = client.post("/train", json=body, headers={"Prefer": "wait=60", **headers})
    job: Answer = answer.json()
    assert answer.status_code == 200, job
    assert job["state"] == "succeeded", job
    return job


def finished(client: httpx.Client, job_id: str) -> Answer:
    """The job, once it has ended."""
    job: Answer = until(lambda: (found := client.get(f"/jobs/{job_id}").json())["terminal"] and found, 60)
    return job


def problem(answer: httpx.Response, status: int, code: str) -> Answer:
    """The problem that an answer must be."""
    body: Answer = answer.json()
    assert answer.status_code == status, body
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["code"] == code, body
    assert body["status"] == status
    assert body["type"]
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == answer.headers["x-request-id"]
    for fault in body.get("errors", ()):
        assert set(fault) == {"pointer", "detail"}
    return body


def pointers(answer: httpx.Response, status: int = 422, code: str = "invalid_input") -> list[str]:
    """Where a request was wrong."""
    return [fault["pointer"] for fault in problem(answer, status, code)["errors"]]
