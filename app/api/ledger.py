"""Requests that were answered: counted, and told in the log.

The lines of a turn of the event loop are written together, after the answers are on their way.
"""

import asyncio
import random
import re
from typing import Any, NamedTuple

from starlette.types import Scope

from app import logs
from app.api.http_counts import HttpCounts

ID = re.compile(rb"[\x21-\x7e]{1,128}")
QUIET = {"/healthz", "/readyz", "/metrics"}  # asked every few seconds; logged only when they fail


class Answered(NamedTuple):
    """`key`: the id of the caller's key, if it had one."""

    method: str
    path: str
    status: int
    seconds: float
    request_id: str
    key: str | None


class Ledger:
    """One for each process; used on its event loop."""

    def __init__(self) -> None:
        self._unwritten: list[Answered] = []

    def add(self, scope: Scope, status: int, seconds: float) -> None:
        """A request was answered, of which its scope tells by then."""
        counts: HttpCounts = scope["app"].state.http_counts
        counts.add(scope["method"], getattr(scope.get("route"), "path", "unmatched"), status, seconds)
        if scope["path"] in QUIET and status < 500:
            return
        if not self._unwritten:
            asyncio.get_running_loop().call_soon(self._write)
        caller = scope.get("caller")
        key = caller.id if caller else None
        self._unwritten.append(Answered(scope["method"], scope["path"], status, seconds, scope["request_id"], key))

    def _write(self) -> None:
        written, self._unwritten = self._unwritten, []
        logs.write("app.access", [_line(one) for one in written])


def _line(one: Answered) -> dict[str, Any]:
    ms = round(1000 * one.seconds, 2)
    said = {"method": one.method, "path": one.path, "status": one.status, "ms": ms, "request_id": one.request_id}
    return {"event": "request", **said, "key": one.key} if one.key else {"event": "request", **said}


def request_id_of(scope: Scope) -> str:
    """The `X-Request-ID` that a request came with, or a new one."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return given.decode("ascii") if ID.fullmatch(given) else f"{random.getrandbits(64):016x}"
