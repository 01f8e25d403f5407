"""Before every route, whatever answers it: where a request was sent to, by which page, by whom, and how often.

A browser runs strangers' pages on the machine of whoever runs this service, and sends what they ask for to loopback
addresses. Two headers that no page can forge tell them apart: `Host`, which holds the stranger's name where its DNS
was bound anew to this address, and `Origin` or `Sec-Fetch-Site`, which say whose page asks. Programs send neither, and
are not affected. (Fetch Metadata: https://www.w3.org/TR/fetch-metadata/)
"""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import ip_address

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.auth import Caller, Keys, caller_of
from app.api.problems import answer_to
from app.api.rate_limit import RateLimit
from app.errors import Forbidden, GradserveError, Overloaded, Unauthenticated

HEALTH = {"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"}  # asked by machines, as often as they please

ON_ALL = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self' data:; connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
"""For pages: what they load and whom they call is this service. (swagger-ui and redoc style their elements inline.)"""
ON_PAGES = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
]
FOR_OTHERS = [
    (b"vary", b"Origin"),
    (b"access-control-expose-headers", b"Content-Disposition, ETag, Inference-Header-Content-Length, Location, "
     b"Retry-After, X-Model-Version, X-Request-ID"),
]  # fmt: skip
PREFLIGHT = [(b"access-control-allow-methods", b"GET, POST, PUT, DELETE"), (b"access-control-max-age", b"600")]


class Guard:
    """Refuses what no route should see, and gives every answer the headers that browsers heed."""

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        *,
        allowed_hosts: Iterable[str],
        allowed_origins: Iterable[str],
        limit: RateLimit,
    ) -> None:
        self.app = app
        self._keys = keys
        self._hosts = frozenset(host.lower() for host in allowed_hosts)
        self._origins = frozenset(origin.lower().encode() for origin in allowed_origins)
        self._limit = limit
        self._is_own = lru_cache(1000)(self._is_own_name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        origin = headers.get(b"origin")
        others = self._headers_for(origin)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = with_headers(message.get("headers", ()), others)
            await send(message)

        try:
            self.check(scope, headers)
        except GradserveError as error:
            await answer_to(Request(scope), error)(scope, receive, send_with_headers)
            return
        if others and scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            await _answer_preflight(headers, send_with_headers)
        else:
            await self.app(scope, receive, send_with_headers)

    @property
    def counts_requests(self) -> bool:
        """Whether one that passes makes it harder for the next."""
        return bool(self._limit.per_second)

    def check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Let a request pass that may be answered; whether its caller may do what it asks, its route knows.

        Raises:
            Forbidden: `host_not_allowed`, `cross_site`.
            Overloaded: `rate_limited`.
        """
        self.check_source(scope["method"], headers)
        if self.counts_requests and scope["path"] not in HEALTH:
            self._check_rate(scope)

    def check_source(self, method: str, headers: dict[bytes, bytes]) -> None:
        """Where a request was sent to, and by which page.

        Raises:
            Forbidden: `host_not_allowed`, `cross_site`.
        """
        host = headers.get(b"host", b"")
        if not self._is_own(host, bool(self._keys)):
            raise Forbidden(
                f"this service is not called {host.decode('latin-1')!r}; GRADSERVE_ALLOWED_HOSTS has the names by "
                "which it may be reached",
                code="host_not_allowed",
            )
        self._check_page(method, host, headers)

    def takes(self, caller: Caller) -> bool:
        """Count a request of this caller, if one more is within the rate."""
        return not (self.counts_requests and self._limit.take(caller.id))

    def _is_own_name(self, host: bytes, has_keys: bool) -> bool:
        """Addresses and localhost can't be bound anew; with keys, whoever binds a name gets in no further."""
        name = host.decode("latin-1").lower()
        name = name[: name.find("]") + 1].strip("[]") if name.startswith("[") else name.rpartition(":")[0] or name
        if not name or name == "localhost" or name.endswith(".localhost") or _is_address(name):
            return True
        if not self._hosts:
            return has_keys
        parent = name.partition(".")[2]
        return bool({"*", name, f"*.{parent}"} & self._hosts)

    def _check_page(self, method: str, host: bytes, headers: dict[bytes, bytes]) -> None:
        """Raise for what another site's page sends, unless it may, or only leads somebody here by a link."""
        site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
        if site in (b"same-origin", b"none") or (site is None and origin is None):
            return
        if site is None and origin is not None and origin.partition(b"://")[2] == host:
            return
        if self._may_call(origin):
            return
        link = headers.get(b"sec-fetch-mode") == b"navigate" and headers.get(b"sec-fetch-dest") == b"document"
        if link and method in ("GET", "HEAD"):
            return
        page = f"a page of {origin.decode('latin-1')}" if origin else "another site's page"
        raise Forbidden(
            f"{page} sent this; GRADSERVE_ALLOWED_ORIGINS has the origins whose pages may call this service",
            code="cross_site",
        )

    def _may_call(self, origin: bytes | None) -> bool:
        return origin is not None and (b"*" in self._origins or origin.lower() in self._origins)

    def _headers_for(self, origin: bytes | None) -> list[tuple[bytes, bytes]]:
        """What lets a page of an allowed origin read the answer."""
        if not self._origins or origin is None or not self._may_call(origin):
            return []
        return [(b"access-control-allow-origin", origin), *FOR_OTHERS]

    def _check_rate(self, scope: Scope) -> None:
        try:
            caller = caller_of(scope, self._keys)
        except Unauthenticated:
            return  # pages need no key, and the other routes say that they do
        if seconds := self._limit.take(caller.id):
            raise Overloaded(
                f"more than {self._limit.per_second:g} requests a second; GRADSERVE_MAX_REQUESTS_PER_SECOND is the "
                "most that one key may send",
                code="rate_limited",
                retry_after_seconds=seconds,
            )


def with_headers(given: Iterable[tuple[bytes, bytes]], others: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """An answer's headers, and those of security that it does not have yet."""
    is_page = any(name == b"content-type" and value.startswith(b"text/html") for name, value in given)
    return [*given, *ON_ALL, *(ON_PAGES if is_page else ()), *others]


async def _answer_preflight(headers: dict[bytes, bytes], send: Send) -> None:
    wanted = headers.get(b"access-control-request-headers")
    allowed = [(b"access-control-allow-headers", wanted)] if wanted else []
    await send({"type": "http.response.start", "status": 204, "headers": [*PREFLIGHT, *allowed]})
    await send({"type": "http.response.body", "body": b""})


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
