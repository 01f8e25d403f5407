"""Requests that were answered: counted, and told in the log, a moment later and together."""

import random
import re
from collections import defaultdict
from typing import Any, NamedTuple

from starlette.types import Scope

from app import logs
from app.api.http_counts import HttpCounts
from app.serving.later import Later

ID = re.compile(rb"[\x21-\x7e]{1,128}")
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

    @classmethod
    def of(cls, scope: Scope, status: int, seconds: float) -> "Answered":
        """A request of which its scope tells all by now."""
        route, caller = getattr(scope.get("route"), "path", "unmatched"), scope.get("caller")
        key = caller.id if caller else None
        return cls(scope["method"], scope["path"], route, status, seconds, scope["request_id"], key)


class Ledger:
    """One for each process; used on its event loop. `counts` is there once requests are answered."""

    def __init__(self) -> None:
        self.counts: HttpCounts | None = None
        later = Later(self._tell)
        self.add, self.flush = later.add, later.flush

    def _tell(self, answered: list[Answered]) -> None:
        assert self.counts
        alike: defaultdict[tuple[str, str, int], list[float]] = defaultdict(list)
        for one in answered:
            alike[one.method, one.route, one.status].append(one.seconds)
        for (method, route, status), seconds in alike.items():
            self.counts.add(method, route, status, seconds)
        logs.write("app.access", [_line(one) for one in answered if one.status >= 500 or one.path not in QUIET])


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
