"""Who asks, and what they may do: bearer keys with scopes, kept as hashes."""

import hashlib
import hmac
import ipaddress
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple, get_args

import structlog
from fastapi import Depends, Request, params
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.errors import Forbidden, InvalidInput, Unauthenticated
from app.storage.keys import PREFIX, KeyFile, StoredKey

Scope = Literal["read", "predict", "train", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
REFRESH_SECONDS = 0.5  # so long a key may be used after it was revoked, or be unknown after it was made

log = structlog.get_logger()
bearer = HTTPBearer(
    auto_error=False,
    description="A key of `gradserve keys` or GRADSERVE_API_KEYS; on loopback with no keys, none is needed.",
)


class Caller(NamedTuple):
    """Whoever sent a request: the id of the key, which is no secret, and what it may do."""

    id: str | None
    scopes: frozenset[str]


ANYONE = Caller(None, frozenset(SCOPES))
"""On this machine, where there are no keys."""


class Keys:
    """The keys of the settings, and those of a file, which is looked at again while the service runs.

    `admin` includes every other scope. Keys of the settings are named by their place: `setting-1`, `setting-2`, …
    """

    def __init__(self, text: str) -> None:
        self._given: list[tuple[bytes, Caller]] = []
        for entry in filter(None, (part.strip() for part in text.split(","))):
            key, _, scopes = entry.rpartition(":")
            granted = frozenset(scopes.split("+"))
            if not key or not granted <= set(SCOPES):
                raise ValueError(
                    f"GRADSERVE_API_KEYS: an entry must be key:scope+scope with scopes of {', '.join(SCOPES)}"
                )
            self._given.append((_digest(key.encode()), Caller(f"setting-{len(self._given) + 1}", granted)))
        self._file: KeyFile | None = None
        self._stored: dict[bytes, tuple[bytes, Caller]] = {}
        self._stamp: object = None
        self._is_unread = False
        self._generation = 0
        self._fresh_until = 0.0

    def watch(self, file: KeyFile) -> None:
        """Know the keys of a file, and from now on what becomes of them.

        Raises:
            InvalidInput, OSError: the file is there and can't be read.
        """
        self._file, self._stamp = file, file.stamp()
        self._stored = _by_id(file.read())

    def __bool__(self) -> bool:
        self._refresh()
        return bool(self._given) or self._stamp is not None

    def generation(self) -> int:
        """Another number once the keys have become others."""
        self._refresh()
        return self._generation

    def find(self, key: bytes) -> Caller | None:
        """Whose key this is, if anyone's. Nothing of a hash can be told from the time that it takes."""
        self._refresh()
        digest, found = _digest(key), None
        prefix, _, rest = key.partition(b"_")
        stored = self._stored.get(rest[: rest.find(b"_")]) if prefix == PREFIX.encode() else None
        for known, caller in [*self._given, stored] if stored else self._given:
            if hmac.compare_digest(known, digest):
                found = caller
        return found

    def _refresh(self) -> None:
        now = time.monotonic()
        if self._file is None or now < self._fresh_until:
            return
        self._fresh_until = now + REFRESH_SECONDS
        try:
            stamp = self._file.stamp()
            if stamp != self._stamp or self._is_unread:
                self._stamp, self._is_unread = stamp, True
                self._generation += 1
                self._stored = _by_id(self._file.read())
                self._is_unread = False
        except (OSError, InvalidInput) as error:
            self._is_unread = isinstance(error, OSError)  # that may pass; what is no file of keys must become another
            log.exception("the file of keys can't be read; those of before hold on")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _by_id(keys: Sequence[StoredKey]) -> dict[bytes, tuple[bytes, Caller]]:
    return {key.id.encode(): (bytes.fromhex(key.sha256), Caller(key.id, frozenset(key.scopes))) for key in keys}


# ---- a request


def caller_of(scope: Any, keys: Keys) -> Caller:
    """Who sent an ASGI request; found once, and kept in it as `caller`.

    Raises:
        Unauthenticated
    """
    found: Caller | None = scope.get("caller")
    if found is None:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        found = scope["caller"] = _authenticate(keys, given, scope.get("server"))
    return found


def _authenticate(keys: Keys, header: bytes, server: tuple[str, int | None] | None) -> Caller:
    """Whose key it is, or anyone where there are no keys and the connection is to the loopback address."""
    if not keys:
        if not is_loopback(server[0] if server else None):
            raise Unauthenticated(
                "this service is reached from other machines and has no keys; make one with `gradserve keys create`"
            )
        return ANYONE
    scheme, _, key = header.partition(b" ")
    if scheme.lower() != b"bearer" or not key:
        raise Unauthenticated("a key is needed: Authorization: Bearer <key>")
    found = keys.find(key)
    if found is None:
        raise Unauthenticated("this key is not known here")
    return found


def authorize(scope: Any, keys: Keys, needed: Scope) -> Caller:
    """Let an ASGI request of someone who may do this pass.

    Raises:
        Unauthenticated, Forbidden
    """
    caller = caller_of(scope, keys)
    if needed not in caller.scopes and "admin" not in caller.scopes:
        raise Forbidden(f"this key has the scopes {', '.join(sorted(caller.scopes))}; {needed} is needed")
    return caller


def require(needed: Scope) -> Callable[..., Awaitable[None]]:
    """A dependency that lets a request with this scope pass.

    Raises:
        Unauthenticated, Forbidden
    """

    async def check(request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        authorize(request.scope, request.app.state.keys, needed)

    check.scope = needed  # type: ignore[attr-defined]
    return check


async def authorize_early(request: Request, dependencies: Sequence[params.Depends]) -> None:
    """What a route's `require` asks for, before the body is read; FastAPI calls dependencies after that.

    Raises:
        Unauthenticated, Forbidden
    """
    for dependency in dependencies:
        needed = getattr(dependency.dependency, "scope", None)
        if needed is not None:
            authorize(request.scope, request.app.state.keys, needed)


def is_loopback(host: str | None) -> bool:
    """Whether an address that a connection came in on is this machine's own; a Unix socket (no address) is too."""
    if host is None or host in ("localhost", "testserver"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
