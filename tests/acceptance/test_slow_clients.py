"""Clients that send or read slower than they may cost a connection for a while, and nothing else."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from app.client import Client
from scripts.processes import memory_of
from scripts.service import Service
from tests.published import numbers_model, publish
from tests.waiting import until

LIMITS = {
    "GRADSERVE_MAX_HEADER_SECONDS": "1",
    "GRADSERVE_MAX_STALL_SECONDS": "1",
    "GRADSERVE_MIN_BYTES_PER_SECOND": "2000",
    "GRADSERVE_MAX_CONNECTIONS": "150",
    "GRADSERVE_MAX_HELD_BYTES": "100000",
    "GRADSERVE_LOG_LEVEL": "info",
}
PREDICT = json.dumps({"model": "m", "inputs": [[1, 2]]}).encode()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("slow"), settings=LIMITS) as running:
        publish(running.root / "models", "m", numbers_model())
        yield running
        assert "Traceback" not in running.log.read_text()


def connect(service: Service) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=60)


def post(path: str, num_bytes: int, **headers: str) -> bytes:
    given = {"Host": "localhost", "Content-Length": str(num_bytes), **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode()


def predicts(service: Service) -> bool:
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{service.url}/predict", content=PREDICT, headers=headers, timeout=60)
    return answer.status_code == 200


def ask_health(connection: socket.socket) -> None:
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    found = b""
    while not found.endswith(b"}"):
        part = connection.recv(2**16)
        assert part
        found += part
    assert found.startswith(b"HTTP/1.1 200")


def read_all(connection: socket.socket) -> bytes:
    """All that comes until the service closes the connection, at which it may have no time for what we still send."""
    found = b""
    try:
        while part := connection.recv(2**16):
            found += part
    except ConnectionResetError:
        pass
    return found


def trickle(connection: socket.socket, part: bytes) -> bytes:
    """Send a part again and again, a bit later each time, until the service has had enough; its answer."""
    connection.settimeout(0.05)
    for _ in range(2000):
        try:
            connection.sendall(part)
            if (answer := connection.recv(2**16)) or not answer:
                connection.settimeout(60)
                return answer + (read_all(connection) if answer else b"")
        except TimeoutError:
            pass
        except (ConnectionResetError, BrokenPipeError):
            return b""
    raise AssertionError("the service has waited for ever")


def flood(connection: socket.socket, part: bytes) -> int:
    """How many bytes the service lets come, at most 128 MiB."""
    sent = 0
    try:
        while sent < 2**27:
            connection.sendall(part)
            sent += len(part)
    except (ConnectionResetError, BrokenPipeError):
        pass
    return sent


def assert_problem(answer: bytes, status: int, code: str) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()), answer
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head.lower()
    problem = json.loads(body)
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["title"]
    assert problem["detail"]


def test_headers_that_do_not_end(service: Service) -> None:
    with connect(service) as one, connect(service) as two, connect(service) as nothing:
        one.sendall(b"POST /predict HTTP/1.1\r\nHost: localh")
        two.sendall(b"GET /healthz HTTP/1.1\r\n")
        assert predicts(service)
        assert_problem(trickle(two, b"X-More: 1\r\n"), 408, "request_timeout")
        assert_problem(read_all(one), 408, "request_timeout")
        assert read_all(nothing) == b""  # who asked nothing is told nothing
    assert predicts(service)


def test_a_second_request_on_a_connection_may_be_no_slower(service: Service) -> None:
    with connect(service) as connection:
        ask_health(connection)
        connection.sendall(b"GET")
        assert_problem(read_all(connection), 408, "request_timeout")
    with connect(service) as connection:
        ask_health(connection)
        assert trickle(connection, b"\r\n") == b""


@pytest.mark.parametrize("pause", ["stops", "trickles"])
def test_bodies_that_do_not_end(service: Service, pause: str) -> None:
    """Of all kinds, side by side."""

    def answer_to(path: str, media_type: str) -> bytes:
        with connect(service) as connection:
            connection.sendall(post(path, 10**6, Content_Type=media_type) + b'{"model"')
            return read_all(connection) if pause == "stops" else trickle(connection, b" ")

    kinds = {
        "/predict": "application/json",
        "/train": "application/json",
        "/predict?model=m": "text/csv",
        "/v2/models/m/infer": "application/octet-stream",
        "/models/m/versions": "application/zip",
    }
    with ThreadPoolExecutor(len(kinds)) as clients:
        answers = list(clients.map(answer_to, kinds, kinds.values()))
    for answer in answers:
        assert_problem(answer, 408, "request_timeout")
    assert predicts(service)


def test_a_body_that_has_not_come_takes_no_room_from_others(service: Service) -> None:
    """The bodies of predictions under way are bounded together."""
    with connect(service) as connection:
        connection.sendall(post("/predict", 10**6, Content_Type="application/json") + b'{"model"' + b" " * 1000)
        assert predicts(service)
        assert_problem(read_all(connection), 408, "request_timeout")


def test_bodies_that_have_come_are_bounded_together(service: Service) -> None:
    """But for those of less than 64 KiB that come in one piece, which are answered in the turn that reads them."""

    def answered_beside_a_large_one() -> int:
        with connect(service) as connection:
            connection.sendall(post("/predict", 10**6, Content_Type="application/json") + b" " * 90_000)
            content, headers = PREDICT + b" " * 2**16, {"Content-Type": "application/json"}
            return httpx.post(f"{service.url}/predict", content=content, headers=headers, timeout=60).status_code

    until(lambda: answered_beside_a_large_one() == 429)
    assert predicts(service)


def test_a_chunked_body_that_does_not_end(service: Service) -> None:
    head = b"PUT /datasets/slow HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connect(service) as connection:
        connection.sendall(head + b"4\r\na,b\n\r\n")
        assert_problem(trickle(connection, b"1\r\n1\r\n"), 408, "request_timeout")
    assert httpx.get(f"{service.url}/datasets/slow", timeout=60).status_code == 404
    until(lambda: not list((service.root / "data" / "datasets" / ".uploads").iterdir()))


def test_a_body_that_is_slow_but_comes_is_taken(service: Service) -> None:
    """For three times as long as it may stand still."""
    row = b"1,2\n" * 250
    num_parts = 40
    with connect(service) as connection:
        connection.sendall(
            b"PUT /datasets/long HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n4\r\na,b\n\r\n"
        )
        connection.settimeout(0.08)
        for _ in range(num_parts):
            connection.sendall(b"%x\r\n%s\r\n" % (len(row), row))
            with pytest.raises(TimeoutError):
                connection.recv(1)
        connection.settimeout(60)
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(2**16).startswith(b"HTTP/1.1 201")
    with Client(service.url) as client:
        assert client.dataset("long")["num_rows"] == 250 * num_parts


def test_who_waits_for_leave_to_send_a_body_is_not_slow(service: Service) -> None:
    with connect(service) as connection:
        connection.sendall(post("/predict", len(PREDICT), Content_Type="application/json", Expect="100-continue"))
        assert connection.recv(2**16).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(PREDICT)
        assert connection.recv(2**16).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("header", [b"X: 1\r\n", b"a" * 100])
def test_headers_without_an_end_are_refused_before_they_fill_the_memory(service: Service, header: bytes) -> None:
    with connect(service) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        assert flood(connection, header * 1000) < 2**24
    assert predicts(service)


def test_trailers_without_an_end_are_refused(service: Service) -> None:
    with connect(service) as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n"
        )
        assert flood(connection, b"X: 1\r\n" * 1000) < 2**24


def test_pipelined_requests_are_all_answered(service: Service) -> None:
    """More of them at once than one request's headers may have."""
    count = 3000
    with connect(service) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * count)
        found = b""
        while found.count(b"HTTP/1.1 200") < count:
            part = connection.recv(2**20)
            assert part
            found += part


def test_a_client_that_never_reads_is_let_go(service: Service) -> None:
    """It asks for far more than the network's buffers hold."""
    rows = b"x0,x1\n" + b"1,2\n" * 1_500_000
    before = num_connections(service)
    with connect(service) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(post("/predict?model=m", len(rows), Content_Type="text/csv") + rows)
        until(lambda: num_connections(service) > before)
        assert predicts(service)
        until(lambda: num_connections(service) == before, 60)
    until(lambda: not list((service.root / "data" / "datasets" / ".uploads").iterdir()))


def test_more_connections_than_there_may_be_are_refused_and_the_others_served(service: Service) -> None:
    assert predicts(service)  # the first prediction takes memory of its own
    before = memory_of(main_pid(service))
    with Client(service.url) as client:
        assert client.ready()
        idle = [connect(service) for _ in range(400)]
        refused = next(answer for answer in map(read_all, idle[-3:]) if b"503" in answer)
        assert_problem(refused, 503, "overloaded")
        assert b"\r\nretry-after: 1\r\n" in refused
        until(lambda: predicts(service), 60)  # once the first ones were let go
        for connection in idle:
            connection.close()
    assert memory_of(main_pid(service)) - before < 2**26


def main_pid(service: Service) -> int:
    assert service.process
    return service.process.pid


def num_connections(service: Service) -> int:
    """Open sockets of the service on its port, from /proc/net/tcp."""
    ours = f":{service.port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(line[1].endswith(ours) and line[3] == "01" and line[9] != "0" for line in lines)
