"""The two clients: one that awaits, and one that blocks, whose methods are the same coroutines run to their end."""

import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from app.client.calls import Calls
from app.client.errors import ClientError
from app.client.transport import AsyncTransport, BlockingTransport

P = ParamSpec("P")
T = TypeVar("T")

URL = "http://127.0.0.1:8000"


def _options(base_url: str, api_key: str | None) -> dict[str, Any]:
    """Raises ClientError: what can be no address, or no key."""
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ClientError(f"{base_url!r} is no address of a service: {error}") from error
    if url.scheme not in ("http", "https"):
        raise ClientError(f"{base_url!r} is no address of a service: one begins with http:// or https://")
    key = (api_key or "").strip()  # a file that it was read from may end in a line break
    if not (key.isascii() and key.isprintable()):
        raise ClientError("an API key is printable ASCII text")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # to read whom this machine trusts takes longer than many a command; a context that trusts nobody takes nothing
    trusted = True if url.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    timeout = httpx.Timeout(60.0, connect=10.0)
    return {"base_url": base_url.rstrip("/"), "headers": headers, "timeout": timeout, "verify": trusted}


class AsyncClient(Calls):
    """Talks to the service at `base_url`, on asyncio or trio; closed by `async with` or `close()`."""

    def __init__(self, base_url: str = URL, api_key: str | None = None) -> None:
        super().__init__(AsyncTransport(**_options(base_url, api_key)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _finish(coroutine: Awaitable[T]) -> T:
    """The result of a coroutine that never waits."""
    steps = coroutine.__await__()
    try:
        next(steps)
    except StopIteration as end:
        result: T = end.value
        return result
    steps.close()
    raise TypeError("a coroutine waits for something; in the client that blocks nothing can")


def _blocking(call: Callable[Concatenate[Calls, P], Awaitable[T]]) -> Callable[Concatenate["Client", P], T]:
    @wraps(call)
    def method(client: "Client", /, *arguments: P.args, **named: P.kwargs) -> T:
        return _finish(call(client._calls, *arguments, **named))

    return method


def _iterating(
    call: Callable[Concatenate[Calls, P], AsyncGenerator[T]],
) -> Callable[Concatenate["Client", P], Iterator[T]]:
    @wraps(call)
    def method(client: "Client", /, *arguments: P.args, **named: P.kwargs) -> Iterator[T]:
        items = call(client._calls, *arguments, **named)
        try:
            while True:
                try:
                    item = _finish(anext(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            _finish(items.aclose())

    return method


class Client:
    """Talks to the service at `base_url`; safe to share between threads, closed by `with` or `close()`."""

    def __init__(self, base_url: str = URL, api_key: str | None = None) -> None:
        self._calls = Calls(BlockingTransport(**_options(base_url, api_key)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def base_url(self) -> str:
        return self._calls.base_url

    close = _blocking(Calls.close)

    upload_dataset = _blocking(Calls.upload_dataset)
    datasets = _iterating(Calls.datasets)
    dataset = _blocking(Calls.dataset)
    dataset_rows = _blocking(Calls.dataset_rows)
    delete_dataset = _blocking(Calls.delete_dataset)

    submit = _blocking(Calls.submit)
    train = _blocking(Calls.train)
    dry_run = _blocking(Calls.dry_run)
    jobs = _iterating(Calls.jobs)
    job = _blocking(Calls.job)
    wait = _blocking(Calls.wait)
    cancel = _blocking(Calls.cancel)
    pause = _blocking(Calls.pause)
    resume = _blocking(Calls.resume)
    delete_job = _blocking(Calls.delete_job)
    history = _blocking(Calls.history)
    events = _iterating(Calls.events)

    models = _iterating(Calls.models)
    versions = _iterating(Calls.versions)
    model = _blocking(Calls.model)
    delete_model = _blocking(Calls.delete_model)
    set_alias = _blocking(Calls.set_alias)
    alias = _blocking(Calls.alias)
    delete_alias = _blocking(Calls.delete_alias)
    download = _blocking(Calls.download)
    download_version = _blocking(Calls.download_version)
    upload_version = _blocking(Calls.upload_version)
    export = _blocking(Calls.export)

    predict = _blocking(Calls.predict)
    predict_table = _iterating(Calls.predict_table)
    evaluate = _blocking(Calls.evaluate)

    ready = _blocking(Calls.ready)
    info = _blocking(Calls.info)
