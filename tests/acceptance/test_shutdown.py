"""A service that is asked to end: what is in flight is answered, event streams end, in one process and in two."""

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from scripts.service import Service
from tests.published import numbers_model, publish
from tests.waiting import until

STOP_SECONDS = 25.0


def half_sent(service: Service) -> socket.socket:
    """A prediction whose body is not whole yet."""
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=STOP_SECONDS)
    head = "POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n"
    connection.sendall(head.format(len(BODY)).encode() + BODY[:10])
    return connection


BODY = b'{"inputs": [{"name": "inputs", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}'


@pytest.mark.parametrize("workers", [1, 2])
def test_it_answers_what_is_in_flight_and_ends_streams(
    start_service: Callable[..., Service], tmp_path: Path, workers: int
) -> None:
    service = start_service(workers=workers)
    publish(service.root / "models", "m", numbers_model())
    body = {"model": "long", "data": {"inputs": [[1], [2]], "targets": [1, 2]}, "stop": {"max_epochs": 10_000_000}}
    job = httpx.post(f"{service.url}/train", json=body, timeout=60).raise_for_status().json()
    heard, ended = threading.Event(), threading.Event()

    def listen() -> None:
        headers = {"Accept": "text/event-stream"}
        with httpx.stream("GET", f"{service.url}{job['links']['events']}", headers=headers, timeout=60) as stream:
            for _ in stream.iter_lines():
                heard.set()
        ended.set()  # by the end of the answer: a connection that breaks off raises

    listener = threading.Thread(target=listen)
    listener.start()
    assert heard.wait(STOP_SECONDS)
    with half_sent(service) as connection:
        until(lambda: httpx.get(f"{service.url}/healthz").status_code == 200)
        assert service.process
        service.process.terminate()
        assert ended.wait(STOP_SECONDS), service.log_end()
        connection.sendall(BODY[10:])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200"), (answer, service.log_end())
        assert b'"predictions"' in answer
    service.process.wait(STOP_SECONDS)
    listener.join()
