"""Which version answers a request, and which is asked beside it only to be compared."""

import os
from hashlib import blake2b
from typing import NamedTuple

from app.storage.models import VERSION, ModelStore


class Route(NamedTuple):
    """`version`: None for the newest that can be loaded. `shadow` is not the version that answers; `instead` answers
    where that can't be loaded. `drawn`: another request for the same may go another way.
    """

    version: str | None
    shadow: str | None = None
    instead: str | None = None
    drawn: bool = False


def route(store: ModelStore, name: str, selector: str | None, key: str | None = None) -> Route:
    """Where a request goes that names a version by number, by alias, or (None) the newest.

    Requests with the same `key` go the same way while an alias's versions stay as they are; of an alias's share that
    grows, those that it had stay in it. Without a key, each request is drawn for itself.

    Raises:
        ModelNotFound, VersionNotFound
        CorruptVersion: by alias only, where the file of aliases is broken.
    """
    if selector is None:
        return Route(None)
    alias = None if VERSION.fullmatch(selector) else store.aliases(name).get(selector)
    if alias is None or not (alias.canary or alias.shadow):
        return Route(store.resolve(name, selector))
    lot = os.urandom(8) if key is None else key.encode()
    version, shadow, instead = alias.version, None, None
    if (canary := alias.canary) and _falls_in(canary.percent, f"{name} canary {canary.version} ", lot):
        version, instead = canary.version, alias.version
    if (asked := alias.shadow) and _falls_in(asked.percent, f"{name} shadow {asked.version} ", lot):
        shadow = asked.version if asked.version != version else None
    return Route(store.resolve(name, version), shadow, instead, drawn=True)


def _falls_in(percent: float, salt: str, key: bytes) -> bool:
    """Whether a key is in the share. The salt draws anew for each experiment, so that not the same keys try them all.

    The two hashes of a request differ by their salts: whether it is shadowed says nothing of who answers it.
    """
    drawn = int.from_bytes(blake2b(salt.encode() + key, digest_size=8).digest())
    return drawn * 100 < percent * 2**64
