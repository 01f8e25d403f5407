"""Who may do what: bearer keys with scopes, kept as hashes."""

import hashlib
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Literal, get_args

from fastapi import Depends, Request, params
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.errors import Forbidden, Unauthenticated

Scope = Literal["read", "predict", "train", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

bearer = HTTPBearer(
    auto_error=False, description="A key from GRADSERVE_API_KEYS; on loopback with no keys set, none is needed."
)


class Keys:
    """The keys of the settings. `admin` includes every other scope."""

    def __init__(self, text: str) -> None:
        self._scopes: dict[bytes, frozenset[str]] = {}
        for entry in filter(None, (part.strip() for part in text.split(","))):
            key, _, scopes = entry.rpartition(":")
            granted = frozenset(scopes.split("+"))
            if not key or not granted <= set(SCOPES):
                raise ValueError(
                    f"GRADSERVE_API_KEYS: an entry must be key:scope+scope with scopes of {', '.join(SCOPES)}"
                )
            self._scopes[_digest(key)] = granted

    def __bool__(self) -> bool:
        return bool(self._scopes)

    def scopes_of(self, key: str) -> frozenset[str] | None:
        """The scopes of a key, or None where there is no such key; takes the same time for every wrong key."""
        digest, found = _digest(key), None
        for known, scopes in self._scopes.items():
            if hmac.compare_digest(known, digest):
                found = scopes
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def require(scope: Scope) -> Callable[..., Awaitable[None]]:
    """A dependency that lets a request with this scope pass.

    Raises:
        Unauthenticated, Forbidden
    """

    async def check(request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        authorize(request.app.state.keys, scope, given.credentials if given else None, request.scope.get("server"))

    check.scope = scope  # type: ignore[attr-defined]
    return check


async def authorize_early(request: Request, dependencies: Sequence[params.Depends]) -> None:
    """What a route's `require` asks for, before the body is read; FastAPI calls dependencies after that.

    Raises:
        Unauthenticated, Forbidden
    """
    for dependency in dependencies:
        check = dependency.dependency
        if check is not None and hasattr(check, "scope"):
            await check(request, await bearer(request))


def authorize(keys: Keys, scope: Scope, key: str | None, server: tuple[str, int | None] | None) -> None:
    """Let a key with this scope pass, or anyone where no keys are set and the connection is to the loopback address."""
    if not keys:
        if not is_loopback(server[0] if server else None):
            raise Unauthenticated(
                "this service is reached from other machines and has no keys; set GRADSERVE_API_KEYS and start it again"
            )
        return
    if key is None:
        raise Unauthenticated("a key is needed: Authorization: Bearer <key>")
    scopes = keys.scopes_of(key)
    if scopes is None:
        raise Unauthenticated("this key is not known here")
    if scope not in scopes and "admin" not in scopes:
        raise Forbidden(f"this key has the scopes {', '.join(sorted(scopes))}; {scope} is needed")


def is_loopback(host: str | None) -> bool:
    """Whether an address that a connection came in on is this machine's own; a Unix socket (no address) is too."""
    if host is None or host in ("localhost", "testserver"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
