"""Both clients behind one face, for tests that say the same of both."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import isasyncgen, isawaitable
from typing import Any

from app.client import AsyncClient, Client

KINDS = ("sync", "asyncio")


class Driven:
    """An AsyncClient whose coroutines are run to their end, one at a time."""

    def __init__(self, runner: asyncio.Runner, *arguments: Any) -> None:
        async def make() -> AsyncClient:
            return AsyncClient(*arguments)

        self._runner = runner
        self._client = runner.run(make())

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        return found if not callable(found) else lambda *given, **named: self._drive(found(*given, **named))

    def _drive(self, found: Any) -> Any:
        async def finish() -> Any:
            return await found

        if isasyncgen(found):
            return self._iterate(found)
        return self._runner.run(finish()) if isawaitable(found) else found

    def _iterate(self, items: Any) -> Iterator[Any]:
        while True:
            try:
                yield self._drive(anext(items))
            except StopAsyncIteration:
                return


@contextmanager
def client_of(kind: str, *arguments: Any) -> Iterator[Any]:
    """A Client, or an AsyncClient that is driven like one."""
    if kind == "sync":
        with Client(*arguments) as client:
            yield client
        return
    with asyncio.Runner() as runner:
        driven = Driven(runner, *arguments)
        yield driven
        driven.close()
