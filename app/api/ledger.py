"""Requests that were answered: counted, and told in the log.

Those of a turn of the event loop are counted together, after the answers are on their way, and their lines are written
together a moment later.
"""

import asyncio
import random
import re
from collections import defaultdict
from typing import Any, NamedTuple

from starlette.types import Scope

from app import logs
from app.api.http_counts import HttpCounts

ID = re.compile(rb"[\x21-\x7e]{1,128}")
WRITE_SECONDS = 0.02
QUIET = {"/healthz", "/readyz", "/metrics"}  # asked every few seconds; logged only when they fail


class Answered(NamedTuple):
    """`key`: the id of the caller's key, if it had one."""

    method: str
    path: str
    route: str
    status: int
    seconds: float
    request_id: str
    key: str | None


class Ledger:
    """One for each process; used on its event loop."""

    def __init__(self) -> None:
        self._uncounted: list[Answered] = []
        self._unwritten: list[Answered] = []

    def add(self, scope: Scope, status: int, seconds: float) -> None:
        """A request was answered, of which its scope tells by then."""
        if not self._uncounted:
            asyncio.get_running_loop().call_soon(self._count, scope["app"].state.http_counts)
        route = getattr(scope.get("route"), "path", "unmatched")
        caller = scope.get("caller")
        key = caller.id if caller else None
        self._uncounted.append(
            Answered(scope["method"], scope["path"], route, status, seconds, scope["request_id"], key)
        )

    def _count(self, counts: HttpCounts) -> None:
        counted, self._uncounted = self._uncounted, []
        alike: defaultdict[tuple[str, str, int], list[float]] = defaultdict(list)
        for one in counted:
            alike[one.method, one.route, one.status].append(one.seconds)
        for (method, route, status), seconds in alike.items():
            counts.add(method, route, status, seconds)
        if not self._unwritten:
            asyncio.get_running_loop().call_later(WRITE_SECONDS, self.write)
        self._unwritten += counted

    def write(self) -> None:
        """What the log has not yet, which at the end of the service must be told."""
        written, self._unwritten = self._unwritten, []
        logs.write("app.access", [_line(one) for one in written if one.status >= 500 or one.path not in QUIET])


def _line(one: Answered) -> dict[str, Any]:
    ms = round(1000 * one.seconds, 2)
    said = {"event": "request", "method": one.method, "path": one.path, "status": one.status, "ms": ms}
    said["request_id"] = one.request_id
    if one.key:
        said["key"] = one.key
    return said


def request_id_of(headers: dict[bytes, bytes]) -> str:
    """The `X-Request-ID` that a request came with, or a new one."""
    given = headers.get(b"x-request-id")
    return given.decode("ascii") if given and ID.fullmatch(given) else f"{random.getrandbits(64):016x}"
