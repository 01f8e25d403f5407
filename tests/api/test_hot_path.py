"""Ahead of FastAPI, and beneath ASGI, predictions are answered as the routes do that OpenAPI tells of."""

import errno
import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.api.ahead import SMALL_BYTES, Ahead
from app.api.middleware import Observe
from app.serving.dense import Dense
from app.serving.recent import Recent
from app.storage.keys import KeyFile
from tests.api.service import service, train
from tests.published import numbers_model, publish
from tests.waiting import until

ROWS = [[i, i % 3] for i in range(30)]
RECORDS = [{"size": i / 3, "color": ["red", "blue"][i % 2], "price": i * 0.5} for i in range(30)]
QUICK: dict[str, Any] = {"network": {"hidden_features": [4]}, "stop": {"max_epochs": 2}}
JSON = {"Authorization": "Bearer user", "Content-Type": "application/json"}
USER, READER = {"Authorization": "Bearer user"}, {"Authorization": "Bearer reader"}
WAYS = [{}, {"Connection": "close"}, {"Origin": "http://127.0.0.1:1"}]
"""Beneath ASGI; ahead of FastAPI, where a connection is not kept; by the route, where a page asks, whichever it is."""


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    keys = "user:predict+train,reader:read"
    with service(
        tmp_path_factory.mktemp("service"), max_rows=9000, api_keys=keys, allowed_origins="http://127.0.0.1:1"
    ) as client:
        data: dict[str, Any] = {
            "rows": {"inputs": ROWS, "targets": [i * 0.5 for i in range(30)]},
            "letters": {"inputs": ROWS, "targets": ["abc"[i % 3] for i in range(30)]},
            "two": {"inputs": ROWS, "targets": [[i * 0.5, -i / 3] for i in range(30)]},
            "prices": {"records": RECORDS, "target": "price"},
        }
        for name, table in data.items():
            train(client, {"model": name, "data": table, **QUICK}, **USER)
        yield client


def asked(model: Any, inputs: Any, **more: Any) -> bytes:
    return json.dumps({"model": model, "inputs": inputs, **more}).encode()


LARGE = SMALL_BYTES // 8
BODIES: dict[str, bytes] = {
    "one row": asked("rows", [[1, 2]]),
    "labels": asked("letters", [[1, 2], [3, 4]]),
    "two targets": asked("two", [[1, 2], [3, 4]]),
    "a number beyond all bounds": asked("rows", [[1e300, 0]]),
    "no number": asked("rows", [[1, "x"]]),
    "numbers as text": asked("rows", [["1", "2"]]),
    "a gap": asked("rows", [[1, None]]),
    "a short row": asked("rows", [[1]]),
    "rows of several lengths": asked("rows", [[1, 2], [1, 2, 3]]),
    "no rows": asked("rows", []),
    "a record": asked("prices", [{"size": 1.5, "color": "red"}]),
    "an unknown column": asked("prices", [{"colour": "red"}]),
    "by version": asked("rows", [[1, 2]], version="1"),
    "no such version": asked("rows", [[1, 2]], version="9"),
    "no such alias": asked("rows", [[1, 2]], version="best"),
    "no such model": asked("nowhere", [[1, 2]]),
    "no name": asked("../rows", [[1, 2]]),
    "a version that is a number": asked("rows", [[1, 2]], version=1),
    "a field too many": asked("rows", [[1, 2]], batch=1),
    "a time of zero": asked("rows", [[1, 2]], timeout_seconds=0),
    "a time": asked("rows", [[1, 2]], timeout_seconds=60),
    "no time": asked("letters", [[1, 2]] * 100, timeout_seconds=1e-9),
    "no model": b'{"inputs": [[1, 2]]}',
    "no inputs": b'{"model": "rows"}',
    "inputs that are no list": asked("rows", {"x0": 1}),
    "a list": b"[]",
    "no JSON": b'{"model": "rows", "inputs": [[1, 2]',
    "NaN": b'{"model": "rows", "inputs": [[1, NaN]]}',
    "not UTF-8": b'{"model": "\xff", "inputs": [[1, 2]]}',
    "many rows": asked("rows", [[i / 7, i % 5] for i in range(LARGE)]),
    "many records": asked("prices", [{"size": i, "color": "blue"} for i in range(LARGE // 3)]),
    "many rows, one short": asked("rows", [[1, 2]] * LARGE + [[1]]),
    "many rows, one of text": asked("rows", [[1, 2]] * LARGE + [["x", 1]]),
    "many rows for no model": asked("nowhere", [[1, 2]] * LARGE),
    "many rows and a field too many": asked("rows", [[1, 2]] * LARGE, batch=1),
    "many rows and a field too many, of lists": asked("rows", [[1, 2]] * LARGE, columns=["x0", "x1"]),
    "many rows in no time": asked("rows", [[1, 2]] * LARGE, timeout_seconds=1e-9),
    "many rows, cut off": asked("rows", [[1, 2]] * LARGE)[:-3],
    "too many rows": asked("rows", [[1, 2]] * 9001),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_all_ways_answer_alike(keyed: httpx.Client, body: bytes) -> None:
    beneath, ahead, routed = (_answer(keyed, body, {**USER, **way}) for way in WAYS)
    assert beneath == ahead == routed


@pytest.mark.parametrize(
    "headers",
    [
        {},
        READER,
        {"Authorization": "Bearer nobody"},
        {**USER, "Content-Type": "text/plain"},
        {**USER, "Content-Encoding": "gzip"},
        {**USER, "Content-Type": "application/json; charset=utf-8"},
        {**USER, "Host": "elsewhere.example"},
        {**USER, "Sec-Fetch-Site": "cross-site"},
        {**USER, "X-Request-ID": "mine"},
        {**USER, "X-Routing-Key": "someone"},
    ],
)
def test_what_headers_say_counts_all_ways(keyed: httpx.Client, headers: dict[str, str]) -> None:
    beneath, ahead, routed = (_answer(keyed, BODIES["one row"], {**headers, **way}) for way in WAYS)
    assert beneath == ahead
    if "Sec-Fetch-Site" not in headers:  # there the Origin is one that may call
        assert ahead == routed
    else:
        assert ahead[0] == 403


INFER = "/v2/models/rows/infer"
ROW = {"name": "inputs", "shape": [1, 2], "datatype": "FP32"}
NUMBERS = np.arange(2 * LARGE, dtype="<f4")


def tensors(*tensors: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": tensors, **more}).encode()


def binary(numbers: Any, **more: Any) -> tuple[bytes, dict[str, str]]:
    data = numbers.tobytes()
    tensor = ROW | {"shape": [len(numbers) // 2, 2], "parameters": {"binary_data_size": len(data)}}
    head = tensors(tensor, **more)
    return head + data, {"Inference-Header-Content-Length": str(len(head))}


OF_TENSORS: dict[str, tuple[str, bytes, dict[str, str]]] = {
    "a row": (INFER, tensors(ROW | {"data": [1, 2]}, id="mine"), {}),
    "no Content-Type": (INFER, tensors(ROW | {"data": [1, 2]}), {"Content-Type": ""}),
    "a row of another type": (INFER, tensors(ROW | {"data": [1, 2], "datatype": "INT8"}), {}),
    "a row of text": (INFER, tensors(ROW | {"data": ["1", "2"], "datatype": "BYTES"}), {}),
    "a short row": (INFER, tensors(ROW | {"data": [1]}), {}),
    "columns": ("/v2/models/prices/infer", tensors(ROW | {"data": [1, 2]}), {}),
    "labels": ("/v2/models/letters/versions/1/infer", tensors(ROW | {"data": [1, 2]}), {}),
    "a routing key": (INFER, tensors(ROW | {"data": [1, 2]}), {"X-Routing-Key": "someone"}),
    "a request id": (INFER, tensors(ROW | {"data": [1, 2]}), {"X-Request-ID": "mine"}),
    "no such model": ("/v2/models/nowhere/infer", tensors(ROW | {"data": [1, 2]}), {}),
    "no such version": ("/v2/models/rows/versions/9/infer", tensors(ROW | {"data": [1, 2]}), {}),
    "no name": ("/v2/models/Rows/infer", tensors(ROW | {"data": [1, 2]}), {}),
    "no selector": (f"/v2/models/rows/versions/{'9' * 65}/infer", tensors(ROW | {"data": [1, 2]}), {}),
    "no tensors": (INFER, tensors(), {}),
    "a list": (INFER, b"[]", {}),
    "nothing": (INFER, b"", {}),
    "no JSON": (INFER, tensors(ROW)[:-3], {}),
    "a time": (INFER, tensors(ROW | {"data": [1, 2]}, parameters={"timeout": 60_000_000}), {}),
    "no time": (INFER, *binary(NUMBERS, parameters={"timeout": 1})),
    "binary": (INFER, *binary(NUMBERS[:8], parameters={"binary_data_output": True})),
    "many rows": (INFER, *binary(NUMBERS, parameters={"binary_data_output": True})),
    "many rows of JSON": (INFER, tensors(ROW | {"shape": [LARGE, 2], "data": NUMBERS.tolist()}), {}),
    "many rows, cut off": (INFER, (large := binary(NUMBERS))[0][:-3], large[1]),
    "too many rows": (INFER, *binary(np.zeros(2 * 9001, "<f4"))),
    "a length beyond the body": (INFER, b"{}", {"Inference-Header-Content-Length": "3"}),
    "an answer in gzip": (INFER, tensors(ROW | {"data": [1, 2]}), {"Accept-Encoding": "gzip"}),
    "a reader": (INFER, tensors(ROW | {"data": [1, 2]}), READER),
    "a stranger": (INFER, tensors(ROW | {"data": [1, 2]}), {"Authorization": "Bearer nobody"}),
}


@pytest.mark.parametrize(("path", "body", "headers"), OF_TENSORS.values(), ids=OF_TENSORS)
def test_tensors_are_answered_alike(keyed: httpx.Client, path: str, body: bytes, headers: dict[str, str]) -> None:
    ahead, routed = (_answer(keyed, body, {**USER, **headers, **way}, path) for way in (WAYS[0], WAYS[2]))
    assert ahead == routed


def test_tensors_of_programs_do_not_come_to_the_routes(keyed: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[str] = []
    call = Observe.__call__

    async def noted(self: Observe, scope: Any, receive: Any, send: Any) -> None:
        paths.append(scope["path"])
        await call(self, scope, receive, send)

    monkeypatch.setattr(Observe, "__call__", noted)
    bodies = {
        path: (body, headers) for path, body, headers in OF_TENSORS.values() if body and "Bearer" not in str(headers)
    }
    for path, (body, headers) in bodies.items():
        _answer(keyed, body, {**USER, **headers}, path)
    assert paths == [path for path in bodies if "Rows" in path or "999" in path]


def _answer(
    client: httpx.Client, body: bytes, headers: dict[str, str], path: str = "/predict"
) -> tuple[int, dict[str, str], Any]:
    """Status, headers and content, without what differs from request to request and what only pages are told."""
    answer = client.post(path, content=body, headers={"Content-Type": "application/json"} | headers)
    said = {name: value for name, value in answer.headers.items() if not name.startswith("access-control-")}
    said = {name: value for name, value in said.items() if name not in ("date", "vary", "content-length", "connection")}
    content = answer.json() if "json" in said["content-type"] else answer.content
    if "X-Request-ID" not in headers:
        request_id = said.pop("x-request-id")
        assert len(request_id) == 16
        if isinstance(content, dict):
            assert content.pop("request_id", request_id) == request_id
    return answer.status_code, said, content


# ---- beneath ASGI


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of requests that are not answered by the hot path, from now on."""
    paths: list[str] = []
    call = Ahead.__call__

    async def noted(self: Ahead, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            paths.append(scope["path"])
        await call(self, scope, receive, send)

    monkeypatch.setattr(Ahead, "__call__", noted)
    return paths


def request(body: bytes, *headers: str, start: str = "POST /predict HTTP/1.1") -> bytes:
    lines = [start, "Host: localhost", "Authorization: Bearer user", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


@contextmanager
def connected(client: httpx.Client) -> Iterator[socket.socket]:
    address = (client.base_url.host, client.base_url.port)
    with socket.create_connection(address, timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection


def heard(connection: socket.socket, number: int = 1) -> list[tuple[int, Any]]:
    """So many answers: the status and the content of each."""
    text, answers = b"", list[tuple[int, Any]]()
    while len(answers) < number:
        head, ended, rest = text.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        if ended and length and len(rest) >= int(length[1]):
            answers.append((int(head[9:12]), json.loads(rest[: int(length[1])])))
            text = rest[int(length[1]) :]
            continue
        more = connection.recv(65536)
        assert more, text
        text += more
    assert not text
    return answers


ONE = BODIES["one row"]


def test_what_is_answered_here_is_counted_and_told_as_everything_is(keyed: httpx.Client, others: list[str]) -> None:
    def counted() -> float:
        text = keyed.get("/metrics", headers=READER).text
        found = re.search(r'gradserve_http_requests_total\{method="POST",route="/predict",status="200"\} (\S+)', text)
        return float(found[1]) if found else 0.0

    before = counted()
    answers = [keyed.post("/predict", content=ONE, headers={**USER, "Content-Type": "application/json"}) for _ in "123"]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.headers["x-request-id"] for answer in answers}) == 3
    assert counted() == before + 3
    assert set(others) == {"/metrics"}


def test_a_request_that_comes_in_parts_is_put_together(keyed: httpx.Client, others: list[str]) -> None:
    text = request(ONE)
    with connected(keyed) as connection, connected(keyed) as other:
        for start in range(0, len(text), 50):
            connection.sendall(text[start : start + 50])
            other.sendall(text)
            heard(other)  # by now the part has been read
        assert heard(connection) == [(200, keyed.post("/predict", content=ONE, headers=JSON).json())]
    assert len(others) == 1  # it began with less than a request line


def test_head_and_body_apart_are_still_for_the_hot_path(keyed: httpx.Client, others: list[str]) -> None:
    text = request(ONE)
    with connected(keyed) as connection, connected(keyed) as other:
        for part in (text[: -len(ONE)], ONE[:5], ONE[5:]) * 2:
            connection.sendall(part)
            other.sendall(text)
            heard(other)
        assert [status for status, _ in heard(connection, 2)] == [200, 200]
    assert not others


def test_requests_that_do_not_wait_are_answered_in_their_order(keyed: httpx.Client) -> None:
    bodies = [asked("rows", [[number, 1]]) for number in range(20)]
    with connected(keyed) as connection:
        connection.sendall(b"".join(map(request, bodies)))
        together = heard(connection, 20)
        for body in bodies:
            connection.sendall(request(body))
        one_by_one = heard(connection, 20)
    expected = [(200, keyed.post("/predict", content=body, headers=JSON).json()) for body in bodies]
    assert together == one_by_one == expected


def test_a_request_after_one_of_another_kind_is_for_the_hot_path_too(keyed: httpx.Client, others: list[str]) -> None:
    with connected(keyed) as connection:
        for text in (request(b"", start="GET /models HTTP/1.1"), request(ONE), request(b"[]"), request(ONE)):
            connection.sendall(text)
            heard(connection)
    assert others == ["/models", "/predict"]


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (request(ONE, "Transfer-Encoding: chunked"), 400),
        (request(ONE, "Content-Length: 7"), 400),
    ],
)
def test_what_is_no_request_is_refused(keyed: httpx.Client, others: list[str], text: bytes, status: int) -> None:
    with connected(keyed) as connection:
        connection.sendall(text)
        assert connection.recv(12) == b"HTTP/1.1 %d" % status
    assert not others


@pytest.mark.parametrize("before", [b"", request(ONE, "X-Request-ID: before"), request(b"[]", "X-Request-ID: before")])
@pytest.mark.parametrize("text", [b"NONSENSE\r\n\r\n", b"\x16\x03\x01\x02", request(ONE, "Content-Length: -1")])
def test_what_is_no_request_gets_a_problem_too(keyed: httpx.Client, before: bytes, text: bytes) -> None:
    with connected(keyed) as connection:
        if before:
            connection.sendall(before)
            heard(connection)
        connection.sendall(text)
        head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    problem = json.loads(body)
    assert (problem["status"], problem["code"]) == (400, "unparseable")
    assert f"\r\nx-request-id: {problem['request_id']}\r\n".encode() in head
    assert problem["request_id"] != "before"
    assert b"\r\ncontent-type: application/problem+json\r\n" in head
    assert b"\r\nconnection: close" in head


@pytest.fixture(scope="module")
def hurried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with service(tmp_path_factory.mktemp("hurried"), max_header_seconds=1, max_stall_seconds=1) as client:
        yield client


def test_who_is_let_go_is_told_by_which_id(hurried: httpx.Client) -> None:
    with connected(hurried) as connection:
        connection.sendall(request(ONE, "X-Request-ID: mine")[:-1])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert b" 408 " in answer
        assert b"\r\nx-request-id: mine\r\n" in answer


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (request(ONE, start="POST /predict HTTP/1.0"), 200),
        (request(ONE, start="POST /predict?model=rows HTTP/1.1"), 200),
        (request(ONE, start="PUT /predict HTTP/1.1"), 405),
        (request(ONE, "Authorization: Bearer nobody"), 200),
        (request(ONE, "Upgrade: h2c", "Connection: Upgrade"), 400),
        (request(ONE, f"X-Filler: {'x' * 5000}"), 200),
    ],
)
def test_what_is_unusual_goes_the_general_way(keyed: httpx.Client, others: list[str], text: bytes, status: int) -> None:
    with connected(keyed) as connection:
        connection.sendall(text)
        assert connection.recv(12) == b"HTTP/1.1 %d" % status
    assert len(others) == 1


def test_a_pass_that_fails_is_told_the_general_way(keyed: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Dense, packed: bytes) -> np.ndarray:
        raise ZeroDivisionError

    monkeypatch.setattr(Dense, "predict", fail)
    with connected(keyed) as connection:
        for _ in range(2):
            connection.sendall(request(ONE))
            [(status, problem)] = heard(connection)
            assert (status, problem["code"]) == (500, "internal_error")


@pytest.mark.parametrize(
    ("error", "status", "code", "words"),
    [
        (OSError(errno.EMFILE, "Too many open files"), 429, "overloaded", "open as it may"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 503, "out_of_memory", "Cannot allocate memory); fewer rows"),
        (MemoryError(), 503, "out_of_memory", "memory ran out (of the host); fewer rows"),
        (RuntimeError("CUDA out of memory. Tried 2 GiB.\nMore"), 503, "out_of_memory", "Tried 2 GiB.); fewer rows"),
        (RuntimeError("out of paper"), 500, "internal_error", "a fault of the service"),
    ],
)
def test_a_lack_of_files_or_memory_is_no_fault_of_the_program(
    keyed: httpx.Client, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, code: str, words: str
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Recent, "get", fail)
    for headers in WAYS:
        answered, said, problem = _answer(keyed, ONE, USER | headers)
        assert (answered, problem["code"], said.get("retry-after")) == (status, code, "1" if status == 429 else None)
        assert words in problem["detail"]


def test_a_key_that_is_revoked_is_known_no_more(tmp_path: Path, others: list[str]) -> None:
    keys = KeyFile(tmp_path / "data" / "keys.json")
    (tmp_path / "data").mkdir()
    made, key = keys.create("somebody", ["predict"])
    publish(tmp_path / "models", "rows", numbers_model())
    with service(tmp_path) as client:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        for _ in range(2):
            assert client.post("/predict", content=ONE, headers=headers).status_code == 200
        assert others.count("/predict") == 1  # to load it
        keys.revoke(made.id)
        until(lambda: client.post("/predict", content=ONE, headers=headers).status_code == 401)


def test_each_request_counts_once_for_the_rate(tmp_path: Path, others: list[str]) -> None:
    with service(tmp_path, max_requests_per_second=0.01) as client:
        assert client.get("/models").status_code == 200  # that is the burst
        assert client.get("/models").status_code == 429
    publish(tmp_path / "models", "rows", numbers_model())
    with service(tmp_path, max_requests_per_second=100) as client:
        statuses = [client.post("/predict", content=ONE, headers=JSON).status_code for _ in range(150)]
        assert statuses == [200] * 150  # 200 at once are allowed
        assert others.count("/predict") == 1  # to load it


def test_a_body_that_does_not_come_is_not_waited_for(hurried: httpx.Client) -> None:
    with connected(hurried) as connection:
        connection.sendall(request(ONE)[:-1])
        [(status, problem)] = heard(connection)
        assert (status, problem["code"]) == (408, "request_timeout")
