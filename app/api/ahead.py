"""`POST /predict` with a JSON body, ahead of FastAPI, whose routing takes longer than a small prediction.

It answers as the route in `app.api.predict` does, which OpenAPI tells of, and which takes what does not come in the
usual way: a body of unknown length or of another media type, from a browser, without a key.
"""

import time
from functools import partial

import structlog
from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api import predict, problems
from app.api.auth import Keys, authorize
from app.api.guard import ON_ALL, Guard
from app.api.json_route import parse_json, validated
from app.api.ledger import Answered, Ledger, request_id_of
from app.api.patience import unless_gone
from app.api.services import Services
from app.errors import ClientGone, GradserveError, Overloaded, Unparseable
from app.serving import json_rows
from app.serving.predictor import in_time
from app.settings import Settings

SMALL_BYTES = 2**16  # larger bodies are read in a thread, so that the event loop stays free
_ROUTE = next(route for route in predict.router.routes if getattr(route, "path", None) == "/predict")
_JSON = b"application/json"
_UNUSUAL = {b"content-encoding", b"expect", b"origin", b"sec-fetch-site", b"transfer-encoding"}


class PredictJson:
    """`app` is everything else, where what `guard` refuses is refused again, with its reasons."""

    def __init__(self, app: ASGIApp, guard: Guard, ledger: Ledger, keys: Keys, settings: Settings) -> None:
        self.app, self._guard, self._ledger, self._keys = app, guard, ledger, keys
        self._max_body_bytes, self._max_held_bytes = settings.max_body_bytes, settings.max_held_bytes
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/predict" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        started, headers = time.perf_counter(), dict(scope["headers"])
        size = int(headers.get(b"content-length", b"0"))
        if not (0 < size <= self._max_body_bytes and is_usual(headers) and self._passes(scope, headers)):
            await self.app(scope, receive, send)
            return
        scope["request_id"], scope["route"] = request_id_of(headers), _ROUTE
        status, said = 200, [(b"content-type", _JSON)]
        try:
            content = await _answer(scope, await self._read(scope, receive), headers, receive)
            said.append((b"content-length", b"%d" % len(content)))
        except Exception as error:  # noqa: BLE001 (each has its answer)
            with structlog.contextvars.bound_contextvars(request_id=scope["request_id"]):
                problem = await problems.answer(Request(scope), error)
            status, said, content = problem.status_code, problem.raw_headers, bytes(problem.body)
        finally:
            self._held_bytes -= scope.get("held_bytes", 0)
        said += [*ON_ALL, (b"x-request-id", scope["request_id"].encode())]
        await send({"type": "http.response.start", "status": status, "headers": said})
        await send({"type": "http.response.body", "body": content})
        self._ledger.add(Answered.of(scope, status, time.perf_counter() - started))

    def _passes(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        try:
            authorize(scope, self._keys, "predict")
            self._guard.check(scope, headers)  # last, because it counts the request, and once is enough
        except GradserveError:
            return False
        return True

    async def _read(self, scope: Scope, receive: Receive) -> bytes | bytearray:
        """The body.

        Raises:
            ClientGone
            Overloaded: see `_hold`.
        """
        message = await receive()
        if not message.get("more_body", False) and "body" in message:
            body: bytes = message["body"]
            self._hold(scope, len(body))
            return body
        parts = bytearray()
        while True:
            if message["type"] == "http.disconnect":
                raise ClientGone("the client has closed the connection")
            parts += message.get("body", b"")
            self._hold(scope, len(parts))
            if not message.get("more_body", False):
                return parts
            message = await receive()

    def _hold(self, scope: Scope, size: int) -> None:
        """Count what has come of a body, not what is to come: who sends slowly takes no room from others.

        Raises Overloaded where more bytes of bodies are held than may be, with these; one alone may always be.
        """
        others = self._held_bytes - scope.get("held_bytes", 0)
        scope["held_bytes"], self._held_bytes = size, others + size
        if others and self._held_bytes > self._max_held_bytes:
            raise Overloaded(f"{others} bytes of requests are being answered already; try again later")


def is_usual(headers: dict[bytes, bytes]) -> bool:
    """Whether they are those of a program that posts JSON as it is."""
    return headers.get(b"content-type", b"").partition(b";")[0] == _JSON and _UNUSUAL.isdisjoint(headers)


async def _answer(scope: Scope, body: bytes | bytearray, headers: dict[bytes, bytes], receive: Receive) -> bytes:
    services: Services = scope["app"].state.services
    given = headers.get(b"x-routing-key")
    key = None if given is None else given.decode("latin-1")
    if len(body) > SMALL_BYTES:
        return await _answer_large(services, body, key, receive)
    return await predict.answer(services, validated(predict.PredictRequest, parse_json(body)), key, receive)


async def _answer_large(services: Services, body: bytes | bytearray, key: str | None, receive: Receive) -> bytes:
    """By way of threads, and, where the rows are found without a parse of it all, a part of the body at a time."""
    predictor = services.predictor
    found = await predictor.in_thread(json_rows.cut, body)
    if found is None:
        asked = validated(predict.PredictRequest, await predictor.in_thread(parse_json, body))
        return await predict.answer(services, asked, key, receive)
    asked = validated(predict.PredictRequest, found.head | {"inputs": []})
    request = await predictor.request(asked.model, asked.version, key)
    model = request.model
    encode = partial(json_rows.encode_parts, rows=found.rows, max_rows=services.settings.max_rows)
    with predictor.statistics.measured(request):
        async with in_time(asked.timeout_seconds):
            with request.part("compute_input"):
                try:
                    encoded = await predictor.in_thread(encode, model)
                except Unparseable:  # or other brackets follow those of the rows: what is wrong, a full parse says
                    validated(predict.PredictRequest, await predictor.in_thread(parse_json, body))
                    raise
            values = await unless_gone(receive, predictor.predict_encoded(request, encoded, encode))
        with request.part("compute_output"):
            return await predictor.in_thread(lambda: json_rows.dump(model.answer(values)))
