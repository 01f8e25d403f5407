"""How requests reach the service, for a caller that awaits and for one that blocks: all that differs between the two.

Both have the same coroutines. Those of `BlockingTransport` never wait: whoever runs one gets to its end at once.
"""

import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, TypeVar, TypeVarTuple

import anyio
import httpx
from anyio import to_thread

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Transport(Protocol):
    base_url: str

    def stream(
        self, method: str, path: str, content: Any, **options: Any
    ) -> AbstractAsyncContextManager[httpx.Response]:
        """An answer whose body has not been read. `content`: bytes, or blocks of them; `options` as httpx has them."""

    async def read(self, response: httpx.Response) -> None:
        """All of the body, into `response.content`."""

    def blocks(self, response: httpx.Response) -> AsyncIterator[bytes]:
        """The body block by block."""

    async def run(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Call what takes long, or waits for a disk."""

    async def sleep(self, seconds: float) -> None: ...

    async def close(self) -> None: ...


class AsyncTransport:
    def __init__(self, base_url: str, **options: Any) -> None:
        self.base_url = base_url
        self._http = httpx.AsyncClient(base_url=base_url, **options)

    @asynccontextmanager
    async def stream(self, method: str, path: str, content: Any, **options: Any) -> AsyncIterator[httpx.Response]:
        if isinstance(content, Iterable) and not isinstance(content, bytes):
            content = _in_threads(content)
        async with self._http.stream(method, path, content=content, **options) as response:
            yield response

    async def read(self, response: httpx.Response) -> None:
        await response.aread()

    def blocks(self, response: httpx.Response) -> AsyncIterator[bytes]:
        return response.aiter_bytes()

    async def run(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        return await to_thread.run_sync(function, *arguments)

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    async def close(self) -> None:
        await self._http.aclose()


async def _in_threads(blocks: Iterable[bytes]) -> AsyncIterator[bytes]:
    source = iter(blocks)
    while (block := await to_thread.run_sync(next, source, None)) is not None:
        yield block


class BlockingTransport:
    def __init__(self, base_url: str, **options: Any) -> None:
        self.base_url = base_url
        self._http = httpx.Client(base_url=base_url, **options)

    @asynccontextmanager
    async def stream(self, method: str, path: str, content: Any, **options: Any) -> AsyncIterator[httpx.Response]:
        if isinstance(content, AsyncIterable):
            raise TypeError("this client blocks; give it blocks to iterate over, or use AsyncClient")
        with self._http.stream(method, path, content=content, **options) as response:
            yield response

    async def read(self, response: httpx.Response) -> None:
        response.read()

    async def blocks(self, response: httpx.Response) -> AsyncIterator[bytes]:
        for block in response.iter_bytes():
            yield block

    async def run(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        return function(*arguments)

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 (it blocks; that is what it is for)

    async def close(self) -> None:
        self._http.close()
