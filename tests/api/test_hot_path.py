"""Ahead of FastAPI `POST /predict` answers as the route does that OpenAPI tells of."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.api.hot_path import SMALL_BYTES
from tests.api.service import service, train

ROWS = [[i, i % 3] for i in range(30)]
RECORDS = [{"size": i / 3, "color": ["red", "blue"][i % 2], "price": i * 0.5} for i in range(30)]
QUICK: dict[str, Any] = {"network": {"hidden_features": [4]}, "stop": {"max_epochs": 2}}
USER, READER = {"Authorization": "Bearer user"}, {"Authorization": "Bearer reader"}
BOTH_WAYS = [{}, {"Origin": "http://127.0.0.1:1"}]  # with an Origin, whatever it is, a request goes to the route


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
    "many rows in no time": asked("rows", [[1, 2]] * LARGE, timeout_seconds=1e-9),
    "many rows, cut off": asked("rows", [[1, 2]] * LARGE)[:-3],
    "too many rows": asked("rows", [[1, 2]] * 9001),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_both_ways_answer_alike(keyed: httpx.Client, body: bytes) -> None:
    ahead, routed = (_answer(keyed, body, {**USER, **way}) for way in BOTH_WAYS)
    assert ahead == routed


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
def test_what_headers_say_counts_both_ways(keyed: httpx.Client, headers: dict[str, str]) -> None:
    ahead, routed = (_answer(keyed, BODIES["one row"], {**headers, **way}) for way in BOTH_WAYS)
    if "Sec-Fetch-Site" not in headers:  # there the Origin is one that may call
        assert ahead == routed
    else:
        assert ahead[0] == 403


def _answer(client: httpx.Client, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], Any]:
    """Status, headers and content, without what differs from request to request and what only pages are told."""
    answer = client.post("/predict", content=body, headers={"Content-Type": "application/json"} | headers)
    said = {name: value for name, value in answer.headers.items() if not name.startswith("access-control-")}
    said = {name: value for name, value in said.items() if name not in ("date", "vary", "content-length")}
    content = answer.json()
    if "X-Request-ID" not in headers:
        assert len(said.pop("x-request-id")) == 16
        content.pop("request_id", None)
    return answer.status_code, said, content
