"""What clients share: the errors they raise, and events of a job as they come over the wire.

ClientError
├── Unreachable           nobody answers at that address, or the connection broke
├── JobFailed             a run that ended without a model; `job` says why
└── ApiError              the service's problem+json: status, code, detail, faults, request_id
    ├── BadRequest        400, 413, 415, 422: what was sent is wrong; a fault per place
    ├── Unauthorized      401, 403: no key, or one without the scope
    ├── NotFound          404
    ├── Conflict          409: the state of the thing does not allow it
    └── Overloaded        429, 503: full for now; `retry_after_seconds`
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import httpx
import orjson

from app.errors import Fault

Json = dict[str, Any]
TERMINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})


class ClientError(Exception):
    """Base of all errors of this module."""


class Unreachable(ClientError):
    pass


class JobFailed(ClientError):
    def __init__(self, job: Json) -> None:
        error = job["error"] or {"code": job["state"], "detail": f"job {job['id']} is {job['state']}"}
        super().__init__(error["detail"])
        self.job = job
        self.code: str = error["code"]


class ApiError(ClientError):
    def __init__(self, response: httpx.Response) -> None:
        problem = _problem(response)
        super().__init__(problem["detail"])
        self.status = response.status_code
        self.code: str = problem["code"]
        self.detail: str = problem["detail"]
        self.faults = tuple(Fault(fault["pointer"], fault["detail"]) for fault in problem.get("errors") or ())
        self.request_id = response.headers.get("X-Request-ID")
        after: str = response.headers.get("Retry-After", "")
        self.retry_after_seconds = int(after) if after.isdigit() else 1


class BadRequest(ApiError):
    pass


class Unauthorized(ApiError):
    pass


class NotFound(ApiError):
    pass


class Conflict(ApiError):
    pass


class Overloaded(ApiError):
    pass


ERRORS: dict[int, type[ApiError]] = {
    400: BadRequest,
    413: BadRequest,
    415: BadRequest,
    422: BadRequest,
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    409: Conflict,
    429: Overloaded,
    503: Overloaded,
}


def _problem(response: httpx.Response) -> Json:
    """The body of a problem; what stands between us and the service (a proxy) may answer in its own words."""
    if response.headers.get("Content-Type", "").startswith("application/problem+json"):
        problem: Json = orjson.loads(response.content)
        return problem
    return {"code": "http_error", "detail": f"{response.status_code} {response.reason_phrase} from {response.url}"}


class Event(NamedTuple):
    """What happened to a job: `type` is state, progress, metrics or warning; `id` counts up."""

    id: str
    type: str
    data: Json

    @property
    def terminal(self) -> bool:
        return self.type == "state" and self.data["state"] in TERMINAL_STATES


def parse_events(chunks: Iterable[bytes]) -> Iterator[Event]:
    """Server-sent events of a byte stream (WHATWG HTML §9.2.6); an unfinished one at its end is dropped."""
    fields = {"id": "", "event": "message", "data": ""}
    for line in _lines(chunks):
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif fields["data"]:
            yield Event(fields["id"], fields["event"], orjson.loads(fields["data"]))
            fields |= {"event": "message", "data": ""}


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    # httpx's iter_lines also splits at U+2028 and its like, which may stand inside JSON.
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.decode().removesuffix("\r") for line in lines)


def raise_for_status(response: httpx.Response) -> None:
    if response.is_error:
        raise ERRORS.get(response.status_code, ApiError)(response)
