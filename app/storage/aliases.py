"""`aliases.json` of a model: `{"champion": "3", "live": {"version": "3", "canary": {…}}}`, replaced by a rename."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from app.specs.alias import Alias
from app.storage.files import write_atomically

FILE = "aliases.json"
Stamp = tuple[int, int, int]


class Aliases:
    """Of all models under a folder. Reading costs a stat while nothing has changed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._read: dict[str, tuple[Stamp, dict[str, Alias]]] = {}

    def of(self, name: str) -> dict[str, Alias]:
        """A model's aliases, which the caller does not change."""
        path = self._root / name / FILE
        try:
            status = path.stat()
        except FileNotFoundError:
            return {}
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)  # a rename brings another file: another inode
        known = self._read.get(name)
        if known is None or known[0] != stamp:
            known = self._read[name] = (stamp, _parse(path.read_bytes()))
        return known[1]

    @contextmanager
    def change(self, name: str) -> Iterator[dict[str, Alias]]:
        """A copy, which is written at the end of the block; changes by others wait until then."""
        folder = os.open(self._root / name, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            aliases = dict(self.of(name))
            yield aliases
            said = {alias: _plain(value) for alias, value in aliases.items()}
            write_atomically(self._root / name / FILE, orjson.dumps(said))
        finally:
            os.close(folder)


def _parse(text: bytes) -> dict[str, Alias]:
    return {
        alias: Alias(version=value) if isinstance(value, str) else Alias.model_validate(value)
        for alias, value in orjson.loads(text).items()
    }


def _plain(alias: Alias) -> Any:
    said = alias.model_dump(exclude_none=True)
    return alias.version if said.keys() == {"version"} else said
