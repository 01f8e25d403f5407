"""Small predictions, answered beneath ASGI: what a turn of the event loop reads goes through the network together.

A `POST /predict` comes this way that is whole once its connection has read it: a few rows as JSON, for a version that
is in memory. Only predictions are told here. Whatever else there is to say is said the general way
(`app.api.ahead`, or the route that OpenAPI tells of), by which the request goes as if nobody had looked at it.
"""

import random
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import httptools
import orjson

from app.api.ahead import SMALL_BYTES, is_usual
from app.api.auth import Caller, Keys, authorize
from app.api.guard import ON_ALL, Guard
from app.api.ledger import Answered, Ledger, request_id_of
from app.api.predict import PredictRequest
from app.api.predict_json import is_json
from app.api.services import Services
from app.errors import GradserveError
from app.serving.served_model import Answer

MAX_HEAD_BYTES = 4096
MAX_HEADS = 500  # that are known at once
_START = b"POST /predict HTTP/1.1\r\n"
_END = b"\r\n\r\n"

Server = tuple[str, int | None] | None
Then = Callable[[bytes | None], None]


class Head(NamedTuple):
    """Request line and headers of a request that may be answered here; sizes in bytes."""

    size: int
    body_size: int
    caller: Caller
    request_id: str | None
    """Of the client, if it gave one."""


class HotPath:
    """One for each process; used on its event loop."""

    def __init__(self, keys: Keys, guard: Guard, ledger: Ledger, services: Services) -> None:
        self._keys, self._guard, self._ledger = keys, guard, ledger
        self._predictor, self._max_rows = services.predictor, services.settings.max_rows
        self._max_body_size = min(SMALL_BYTES, services.settings.max_body_bytes)
        self._heads: dict[tuple[bytes, Server], Head | None] = {}
        self._generation = keys.generation()
        self._common: list[tuple[bytes, bytes]] = []
        self._opening = b""

    def head(self, data: bytes, server: Server) -> Head | None:
        """The head of what a client has sent to `server`, if it may be answered here. Clients send the same again."""
        if not data.startswith(_START):
            return None
        size = data.find(_END, 0, MAX_HEAD_BYTES) + len(_END)
        if size < len(_START):
            return None
        if self._generation != (generation := self._keys.generation()) or len(self._heads) >= MAX_HEADS:
            self._heads.clear()
            self._generation = generation
        raw = data[:size]
        try:
            return self._heads[raw, server]
        except KeyError:
            head = self._read(raw, server)
            if head is None or head.request_id is None:
                self._heads[raw, server] = head
            return head

    def _read(self, raw: bytes, server: Server) -> Head | None:
        headers = _headers(raw)
        if headers is None or not 0 < (size := int(headers.get(b"content-length", b"0"))) <= self._max_body_size:
            return None
        if not (is_json(headers) and is_usual(headers)):
            return None
        try:
            self._guard.check_source("POST", headers)
            caller = authorize({"headers": list(headers.items()), "server": server}, self._keys, "predict")
        except GradserveError:
            return None
        return Head(len(raw), size, caller, request_id_of(headers) if b"x-request-id" in headers else None)

    def begin(self, head: Head, body: bytes, common: list[tuple[bytes, bytes]], then: Then) -> bool:
        """Answer a request: `then` is called, now or soon, with all bytes of the answer, or None where there is none.

        Args:
            common: headers that all answers have.

        Returns:
            False where the request is not for here, and `then` won't be called.
        """
        started = time.perf_counter()
        try:
            asked = PredictRequest.model_validate(orjson.loads(body))
            model = self._predictor.at_hand(asked.model, asked.version)
        except Exception:  # noqa: BLE001 (the general way meets it again, and tells of it)
            return False
        if model is None or len(asked.inputs) > self._max_rows or asked.timeout_seconds is not None:
            return False
        small = self._predictor.small
        packed = small.pack(model, asked.inputs)
        if packed is None or not self._guard.takes(head.caller):
            return False
        small.begin(model, packed, partial(self._end, head, started, common, then))
        return True

    def _end(
        self, head: Head, started: float, common: list[tuple[bytes, bytes]], then: Then, answer: Answer | Exception
    ) -> None:
        if isinstance(answer, Exception):
            then(None)
            return
        content = orjson.dumps(answer)
        request_id = head.request_id or f"{random.getrandbits(64):016x}"
        if common is not self._common:
            self._common, self._opening = common, _opening(common)
        then(b"%b%d\r\nx-request-id: %b\r\n\r\n%b" % (self._opening, len(content), request_id.encode(), content))
        seconds = time.perf_counter() - started
        self._ledger.add(Answered("POST", "/predict", "/predict", 200, seconds, request_id, head.caller.id))


def _opening(common: list[tuple[bytes, bytes]]) -> bytes:
    """An answer up to its length."""
    headers = [*common, *ON_ALL, (b"content-type", b"application/json")]
    return b"HTTP/1.1 200 OK\r\n%bcontent-length: " % b"".join(b"%b: %b\r\n" % each for each in headers)


class _Headers(list[tuple[bytes, bytes]]):
    is_complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.is_complete = True


def _headers(raw: bytes) -> dict[bytes, bytes] | None:
    """By name, where each comes once and the connection stays open; by the parser that is used for all requests."""
    found = _Headers()
    parser = httptools.HttpRequestParser(found)
    try:
        parser.feed_data(raw)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    headers = dict(found)
    plain = found.is_complete and parser.should_keep_alive()
    return headers if plain and len(headers) == len(found) else None
