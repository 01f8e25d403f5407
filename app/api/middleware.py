"""Around every request: an id, a log line, a count; and a problem where a body is over the limit."""

import re
import secrets
import time
from collections.abc import Callable

import structlog
from fastapi import FastAPI, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.http_counts import HttpCounts
from app.api.problems import MEDIA_TYPE, problem_response

ID = re.compile(rb"[\x21-\x7e]{1,128}")
QUIET = {"/healthz", "/readyz", "/metrics"}  # asked every few seconds; logged only when they fail

log = structlog.get_logger("app.access")


def install(app: FastAPI, guard: Callable[[ASGIApp], ASGIApp]) -> None:
    """Put these around FastAPI's own middlewares, so that their answers (413, 500) are as all others are."""
    build = app.build_middleware_stack
    app.build_middleware_stack = lambda: Observe(guard(ExplainLimit(build())))  # type: ignore[method-assign]


class Observe:
    """Echoes or makes `X-Request-ID`, binds it to all log lines of the request, and measures."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["request_id"] = request_id = _request_id(scope)
        started, status = time.perf_counter(), 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode("ascii"))]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self.app(scope, receive, send_with_id)
            finally:
                self._observe(scope, status, time.perf_counter() - started)

    def _observe(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        counts: HttpCounts = scope["app"].state.http_counts
        counts.add(scope["method"], route, status, seconds)
        if scope["path"] not in QUIET or status >= 500:
            caller = scope.get("caller")
            who = {"key": caller.id} if caller and caller.id else {}
            ms = round(1000 * seconds, 2)
            log.info("request", method=scope["method"], path=scope["path"], status=status, ms=ms, **who)


class ExplainLimit:
    """FastAPI says in plain text that a body is too large; here that becomes a problem."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        replaced = False

        async def send_problem(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start" and message["status"] == 413:
                replaced = (b"content-type", MEDIA_TYPE.encode()) not in message["headers"]
                if replaced:
                    detail = "the body is larger than this service allows"
                    await problem_response(Request(scope), 413, "too_large", detail)(scope, receive, send)
            if not replaced:
                await send(message)

        await self.app(scope, receive, send_problem)


def _request_id(scope: Scope) -> str:
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return given.decode("ascii") if ID.fullmatch(given) else secrets.token_hex(8)
