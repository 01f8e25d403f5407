"""The keys that `gradserve keys` makes: `data/keys.json`, which holds their hashes and nobody's secret.

A key has 256 random bits, so its plain SHA-256 can't be turned back by guessing, which is what slow and salted hashes
are against; those would cost each request more than its prediction does.
"""

import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from app.errors import InvalidInput, NotFound
from app.storage.files import stamp_of, write_atomically

PREFIX = "gs"
MODE = 0o600


@dataclass(frozen=True)
class StoredKey:
    """What is kept of a key. `id` stands in the key's text, in lists and in logs; it opens nothing."""

    id: str
    name: str
    scopes: tuple[str, ...]
    sha256: str
    created_at: float


class KeyFile:
    """Written by the command line, read by all API processes.

    Once it is there, keys are wanted, even where it has none: to revoke the last does not open the service to everyone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def stamp(self) -> object:
        """Another one whenever the file is another; None while there is none."""
        return stamp_of(self.path)

    def read(self) -> list[StoredKey]:
        """All keys, oldest first; none where there is no file.

        Raises:
            InvalidInput: it is not as it was written.
            OSError: it can't be read.
        """
        try:
            found = orjson.loads(self.path.read_bytes())
            return [StoredKey(**{**entry, "scopes": tuple(entry["scopes"])}) for entry in found["keys"]]
        except FileNotFoundError:
            return []
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise InvalidInput(f"{self.path} is no file of keys: {error}", code="bad_key_file") from error

    def create(self, name: str, scopes: Sequence[str]) -> tuple[StoredKey, str]:
        """A new key, and its text, which is nowhere else."""
        key_id = secrets.token_hex(4)
        text = f"{PREFIX}_{key_id}_{secrets.token_urlsafe(32)}"
        made = StoredKey(key_id, name, tuple(scopes), hashlib.sha256(text.encode()).hexdigest(), time.time())
        with self._locked():
            self._write([*self.read(), made])
        return made, text

    def revoke(self, key_id: str) -> StoredKey:
        """Take a key out.

        Raises:
            NotFound
        """
        with self._locked():
            keys = self.read()
            gone = next((key for key in keys if key.id == key_id), None)
            if gone is None:
                raise NotFound(f"there is no key {key_id!r}; see `gradserve keys list`", code="key_not_found")
            self._write([key for key in keys if key is not gone])
        return gone

    def _write(self, keys: Sequence[StoredKey]) -> None:
        data = orjson.dumps({"keys": [asdict(key) for key in keys]}, option=orjson.OPT_INDENT_2)
        write_atomically(self.path, data, mode=MODE)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Those who write take turns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path.with_suffix(".lock"), os.O_WRONLY | os.O_CREAT, MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
