"""What is counted and told a moment after it happened, together: for a small prediction, doing it at once is dear."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

SECONDS = 0.02


class Later(Generic[T]):
    """Used on the event loop. `tell` is given all that was added since, in its order."""

    def __init__(self, tell: Callable[[list[T]], None]) -> None:
        self._tell = tell
        self._untold: list[T] = []

    def add(self, one: T) -> None:
        if not self._untold:
            asyncio.get_running_loop().call_later(SECONDS, self.flush)
        self._untold.append(one)

    def flush(self) -> None:
        """Tell it now: somebody wants to know, or it is the end."""
        told, self._untold = self._untold, []
        if told:
            self._tell(told)
