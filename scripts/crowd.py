"""Clients at work in threads of their own, from `with` to its end."""

import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self


class Crowd:
    """`ended` tells the clients, each of which is called once, in a thread, to come to an end."""

    def __init__(self, clients: Iterable[Callable[[], None]]) -> None:
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=client) for client in clients]

    def __enter__(self) -> Self:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join()
