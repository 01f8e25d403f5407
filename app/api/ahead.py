"""Predictions ahead of FastAPI, whose routing takes longer than a small one.

They are answered as the routes do that OpenAPI tells of, and which take what does not come in the usual way: a body of
unknown length or in some encoding, from a browser, without a key.
"""

import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import structlog
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api import problems
from app.api.auth import Keys, authorize
from app.api.guard import ON_ALL, Guard
from app.api.ledger import Answered, Ledger, request_id_of
from app.api.services import Services
from app.errors import ClientGone, GradserveError, Overloaded
from app.settings import Settings

Body = bytes | bytearray
SMALL_BYTES = 2**16  # larger bodies are read in a thread, so that the event loop stays free
_UNUSUAL = {b"content-encoding", b"expect", b"origin", b"sec-fetch-site", b"transfer-encoding"}


class Post(NamedTuple):
    """A request that may be answered, with all of its body. `parts`: what its path names."""

    services: Services
    parts: dict[str, str]
    headers: Headers
    body: Body
    receive: Receive


class Shortcut(NamedTuple):
    """To what a route does; `takes` says, of what a path names and of the headers, whether it is for this one."""

    route: APIRoute
    takes: Callable[[dict[str, str], dict[bytes, bytes]], bool]
    answer: Callable[[Post], Awaitable[Response]]


class Ahead:
    """`app` is everything else, where what `guard` refuses is refused again, with its reasons."""

    def __init__(
        self, app: ASGIApp, shortcuts: list[Shortcut], guard: Guard, ledger: Ledger, keys: Keys, settings: Settings
    ) -> None:
        self.app, self._shortcuts, self._guard, self._ledger, self._keys = app, shortcuts, guard, ledger, keys
        self._max_body_bytes, self._max_held_bytes = settings.max_body_bytes, settings.max_held_bytes
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        started, headers = time.perf_counter(), dict(scope["headers"])
        found = self._find(scope, headers)
        if found is None or not self._passes(scope, headers):
            await self.app(scope, receive, send)
            return
        shortcut, parts = found
        scope["request_id"], scope["route"] = request_id_of(headers), shortcut.route
        with structlog.contextvars.bound_contextvars(request_id=scope["request_id"]):
            try:
                body = await self._read(scope, receive)
                post = Post(scope["app"].state.services, parts, Headers(scope=scope), body, receive)
                answer = await shortcut.answer(post)
            except Exception as error:  # noqa: BLE001 (each has its answer)
                answer = await problems.answer(Request(scope), error)
            finally:
                self._held_bytes -= scope.get("held_bytes", 0)
        said = [*answer.raw_headers, *ON_ALL, (b"x-request-id", scope["request_id"].encode())]
        await send({"type": "http.response.start", "status": answer.status_code, "headers": said})
        await send({"type": "http.response.body", "body": answer.body})
        self._ledger.add(Answered.of(scope, answer.status_code, time.perf_counter() - started))

    def _find(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[Shortcut, dict[str, str]] | None:
        if not 0 < int(headers.get(b"content-length", b"0")) <= self._max_body_bytes or not is_usual(headers):
            return None
        for shortcut in self._shortcuts:
            if found := shortcut.route.path_regex.match(scope["path"]):
                parts = found.groupdict()
                return (shortcut, parts) if shortcut.takes(parts, headers) else None
        return None

    def _passes(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        try:
            authorize(scope, self._keys, "predict")
            self._guard.check(scope, headers)  # last, because it counts the request, and once is enough
        except GradserveError:
            return False
        return True

    async def _read(self, scope: Scope, receive: Receive) -> Body:
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
    """Whether they are those of a program that sends a body as it is."""
    return _UNUSUAL.isdisjoint(headers)
