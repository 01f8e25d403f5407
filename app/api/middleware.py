"""Around every request: an id, a log line, a count; and a problem where a body is over the limit."""

import time
from collections.abc import Callable

import structlog
from fastapi import FastAPI, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import predict_json, v2_infer
from app.api.ahead import Ahead
from app.api.guard import Guard
from app.api.ledger import Answered, Ledger, request_id_of
from app.api.problems import MEDIA_TYPE, problem_response

SHORTCUTS = [*predict_json.SHORTCUTS, *v2_infer.SHORTCUTS]


def install(app: FastAPI, guard: Callable[[ASGIApp], Guard]) -> None:
    """Put these around FastAPI's own middlewares, so that their answers (413, 500) are as all others are."""
    build = app.build_middleware_stack
    ledger = app.state.ledger = Ledger()

    def build_all() -> ASGIApp:
        app.state.guard = guarded = guard(ExplainLimit(build()))
        return Ahead(Observe(guarded, ledger), SHORTCUTS, guarded, ledger, app.state.keys, app.state.settings)

    app.build_middleware_stack = build_all  # type: ignore[method-assign]


class Observe:
    """Echoes or makes `X-Request-ID`, binds it to all log lines of the request, and measures."""

    def __init__(self, app: ASGIApp, ledger: Ledger) -> None:
        self.app, self._ledger = app, ledger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["request_id"] = request_id = request_id_of(dict(scope["headers"]))
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
                self._ledger.add(Answered.of(scope, status, time.perf_counter() - started))


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
