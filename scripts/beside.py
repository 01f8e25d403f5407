"""What a benchmark looks at, over and over, while something else goes on."""

import threading
from types import TracebackType
from typing import Self


class Beside(threading.Thread):
    """Looks every so many seconds for as long as the body of a `with` takes."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds, self._over = seconds, threading.Event()

    def look(self) -> None:
        raise NotImplementedError

    def run(self) -> None:
        while not self._over.wait(self._seconds):
            self.look()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self.join()
