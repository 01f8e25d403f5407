"""Which engine a run takes where a clock has to tell: measured once, and kept, so that equal runs get the same one."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from app.errors import StorageFailed
from app.storage.files import write_atomically

MAX_CHOICES = 10_000
LOCK = "lock"
ENGINES = ("eager", "compiled")


class Choice:
    """A file that names the engine of all runs of one spec, from the first of them on."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def settle(self, measure: Callable[[], str]) -> str:
        """The engine that is kept; where none is, the one that `measure` tells is kept before it is returned.

        Who measures does so alone on this machine.

        Raises:
            StorageFailed: the file can't be written.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (self.path.parent / LOCK).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                return self._kept() or self._keep(measure())
        except OSError as error:
            if known := StorageFailed.of(error):
                raise known from error
            raise

    def _kept(self) -> str | None:
        if not self.path.exists():
            return None
        engine = self.path.read_text()
        os.utime(self.path)
        return engine if engine in ENGINES else None

    def _keep(self, engine: str) -> str:
        write_atomically(self.path, engine.encode())
        others = [path for path in self.path.parent.iterdir() if path.name != LOCK]
        for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[MAX_CHOICES:]:
            path.unlink(missing_ok=True)
        return engine
