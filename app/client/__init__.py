"""Clients of the service: `Client("http://localhost:8000").train(model="line", data={"inputs": …, "targets": …})`.

`Client` blocks; `AsyncClient` has the same calls as coroutines, and as async iterators. What each does is told in
`app.client.calls`, what they raise in `app.client.errors`.
"""

from app.client.clients import AsyncClient, Client
from app.client.errors import (
    ApiError,
    BadRequest,
    BrokenOff,
    ClientError,
    Conflict,
    JobFailed,
    NotFound,
    Overloaded,
    Unauthorized,
    Unreachable,
)
from app.client.events import Event

__all__ = [
    "ApiError",
    "AsyncClient",
    "BadRequest",
    "BrokenOff",
    "Client",
    "ClientError",
    "Conflict",
    "Event",
    "JobFailed",
    "NotFound",
    "Overloaded",
    "Unauthorized",
    "Unreachable",
]
