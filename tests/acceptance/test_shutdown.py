"""A service that is asked to end: what is in flight is answered, event streams end, in one process and in two."""

import signal
import socket
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from scripts.service import Service
from tests.published import numbers_model, publish
from tests.waiting import until

STOP_SECONDS = 25.0


@pytest.fixture(scope="module", params=[1, 2])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """It is asked to end twice: by the first test, which starts it again, and by the second."""
    with Service(tmp_path_factory.mktemp("shutdown"), workers=request.param) as service:
        publish(service.root / "models", "m", numbers_model())
        yield service


class Crowd:
    """Clients that train and predict until they are refused; half of them take a new connection each time.

    `jobs`: those that were acknowledged. `interrupted`: what ended requests that were neither answered nor refused.
    """

    def __init__(self, service: Service, num_clients: int) -> None:
        self.service = service
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.jobs: list[str] = []
        self.interrupted: list[httpx.HTTPError] = []
        self.threads = [threading.Thread(target=self._ask_on, args=(number,)) for number in range(num_clients)]
        for thread in self.threads:
            thread.start()

    def _ask_on(self, number: int) -> None:
        trains, stays = number % 4 < 2, number % 2
        http = self._client()
        with suppress(httpx.ConnectError):  # the port is closed
            while True:
                key = {"Idempotency-Key": uuid.uuid4().hex}
                request = {"url": "/train", "json": TRAIN, "headers": key} if trains else PREDICT
                try:
                    self.hear(http.post(**request))
                except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as error:
                    self.interrupted.append(error)
                if not stays:
                    http.close()
                    http = self._client()
        http.close()

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self.service.url, timeout=60, verify=False)  # there is no TLS to get ready for

    def hear(self, answer: httpx.Response) -> None:
        self.statuses[answer.request.url.path, answer.status_code] += 1
        if answer.status_code == 202:
            self.jobs.append(answer.json()["id"])


TRAIN = {"model": "n", "data": {"inputs": [[1], [2]], "targets": [1, 2]}, "stop": {"max_epochs": 2}, "engine": "eager"}
PREDICT: dict[str, Any] = {"url": "/predict", "json": {"model": "m", "inputs": [[1, 2]]}}


def test_under_load_it_loses_no_request(service: Service) -> None:
    """Each is answered or refused, and what was acknowledged is done by the next service, once."""
    crowd = Crowd(service, 16)
    until(lambda: crowd.statuses["/train", 202] >= 16 and crowd.statuses["/predict", 200] >= 32, 120)
    assert service.process
    service.process.terminate()
    for thread in crowd.threads:
        thread.join(60)
    assert service.process.wait(STOP_SECONDS) in (0, -signal.SIGTERM)
    assert not crowd.interrupted
    service.start()
    with httpx.Client(base_url=service.url, timeout=60) as http:
        assert crowd.statuses.keys() == {("/train", 202), ("/predict", 200)}
        until(lambda: num_jobs(http)["succeeded"] == len(set(crowd.jobs)), 120)
        assert sum(num_jobs(http).values()) == len(set(crowd.jobs))


def num_jobs(http: httpx.Client) -> dict[str, int]:
    """By state."""
    lines = http.get("/metrics").text.splitlines()
    found = [line.split() for line in lines if line.startswith("gradserve_jobs{")]
    return {name.partition('"')[2].rstrip('"}'): int(float(count)) for name, count in found}


def half_sent(service: Service) -> socket.socket:
    """A prediction whose body is not whole yet."""
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=STOP_SECONDS)
    head = "POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n"
    connection.sendall(head.format(len(BODY)).encode() + BODY[:10])
    return connection


BODY = b'{"inputs": [{"name": "inputs", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}'


def test_it_answers_what_is_in_flight_and_ends_streams(service: Service) -> None:
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
