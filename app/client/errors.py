"""What can go wrong between a client and the service.

ClientError
├── Unreachable           nobody answers at that address, or the connection broke
│   └── BrokenOff         after an answer had begun; `request_id` is that under which the service's log says why
├── JobFailed             a run that ended without a model; `job` says why
└── ApiError              the service's problem+json: status, code, detail, faults, request_id
    ├── BadRequest        400, 413, 415, 422: what was sent is wrong; a fault per place
    ├── Unauthorized      401, 403: no key, or one without the scope
    ├── NotFound          404
    ├── Conflict          409: the state of the thing does not allow it
    └── Overloaded        429, 503: full for now; `retry_after_seconds`
"""

from typing import Any

import httpx
import orjson

from app.errors import Fault

Json = dict[str, Any]


class ClientError(Exception):
    """Base of all errors of this module."""


class Unreachable(ClientError):
    pass


class BrokenOff(Unreachable):
    def __init__(self, detail: str, request_id: str | None) -> None:
        super().__init__(detail)
        self.request_id = request_id


class JobFailed(ClientError):
    def __init__(self, job: Json) -> None:
        error = job["error"] or {"code": job["state"], "detail": f"job {job['id']} is {job['state']}"}
        super().__init__(error["detail"])
        self.job = job
        self.code: str = error["code"]


class ApiError(ClientError):
    def __init__(self, response: httpx.Response) -> None:
        problem = _problem(response)
        place = next((fault["pointer"] for fault in problem.get("errors") or ()), "")
        super().__init__(problem["detail"] + (f" (at {place})" if place else ""))
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


def error_of(response: httpx.Response) -> ApiError:
    """The error that an answer, which has been read, stands for."""
    return ERRORS.get(response.status_code, ApiError)(response)


def _problem(response: httpx.Response) -> Json:
    """The body of a problem; what stands between us and the service (a proxy) may answer in its own words."""
    if response.headers.get("Content-Type", "").startswith("application/problem+json"):
        problem: Json = orjson.loads(response.content)
        return problem
    return {"code": "http_error", "detail": f"{response.status_code} {response.reason_phrase} from {response.url}"}
