"""The time of day, as far as it can be believed by who removes what is old.

A machine's clock may jump ahead, by a year or by ten, and back again once somebody sees it. What was removed meanwhile
does not come back.
"""

import time
from collections.abc import Callable
from pathlib import Path

import structlog

from app.errors import StorageFailed
from app.storage.files import write_atomically

FASTEST = 2.0  # seconds that may pass here in one that really does: what was missed while nothing ran is made up for

log = structlog.get_logger()


class Clock:
    """Never ahead of the machine's clock, and after a jump or a long stop it runs after it, at twice its speed.

    What it has come to is kept in a file, so that a restart changes nothing.
    """

    def __init__(
        self, path: Path, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._path, self._wall, self._monotonic = path, wall, monotonic
        self._read_at = monotonic()
        self._last = self._stored()

    def now(self) -> float:
        """Seconds since 1970."""
        wall, passed = self._wall(), self._monotonic() - self._read_at
        self._read_at += passed
        self._last = wall if self._last is None else min(wall, self._last + FASTEST * passed)
        try:
            write_atomically(self._path, f"{self._last:.0f}\n".encode())
        except OSError as error:
            if not StorageFailed.of(error):
                raise
            log.warning("the time could not be noted", reason=error.strerror)
        return self._last

    def _stored(self) -> float | None:
        try:
            return float(self._path.read_text())
        except (FileNotFoundError, ValueError):
            return None
