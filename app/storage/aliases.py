"""`aliases.json` of a model: `{"champion": "3", "live": {"version": "3", "canary": {…}}}`, replaced by a rename."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import structlog

from app.errors import CorruptVersion
from app.specs.alias import Alias
from app.storage.files import stamp_of, write_atomically

FILE = "aliases.json"

log = structlog.get_logger("gradserve.models")


class Aliases:
    """Of all models under a folder. Reading costs a stat while nothing has changed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._read: dict[str, tuple[object, dict[str, Alias] | None]] = {}

    def of(self, name: str) -> dict[str, Alias]:
        """A model's aliases, which the caller does not change.

        Raises:
            CorruptVersion: `corrupt_aliases`, the file is not as it was written. Versions serve on by their numbers.
        """
        path = self._root / name / FILE
        stamp = stamp_of(path)
        if stamp is None:
            return {}
        known = self._read.get(name)
        if known is None or known[0] != stamp:
            known = self._read[name] = (stamp, _parse(path))
        if known[1] is None:
            raise CorruptVersion(
                f"the {FILE} of model {name!r} is not as it was written and must be repaired or removed; "
                "until then its versions are served by their numbers, and the newest",
                code="corrupt_aliases",
            )
        return known[1]

    @contextmanager
    def change(self, name: str) -> Iterator[dict[str, Alias]]:
        """A copy, which is written at the end of the block; changes by others wait until then."""
        with self.unchanged(name):
            aliases = dict(self.of(name))
            yield aliases
            said = {alias: _plain(value) for alias, value in aliases.items()}
            write_atomically(self._root / name / FILE, orjson.dumps(said))

    @contextmanager
    def unchanged(self, name: str) -> Iterator[None]:
        """Changes, by whichever process, wait until the end of the block."""
        folder = os.open(self._root / name, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)


def _parse(path: Path) -> dict[str, Alias] | None:
    """None for what is no JSON, or of another form."""
    try:
        return {
            alias: Alias(version=value) if isinstance(value, str) else Alias.model_validate(value)
            for alias, value in orjson.loads(path.read_bytes()).items()
        }
    except (ValueError, AttributeError) as error:
        log.error("aliases can't be read", model=path.parent.name, file=str(path), error=str(error))
        return None


def _plain(alias: Alias) -> Any:
    said = alias.model_dump(exclude_none=True)
    return alias.version if said.keys() == {"version"} else said
