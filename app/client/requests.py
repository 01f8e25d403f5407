"""How requests are made and answers read: JSON, pages, uploads and files, and errors as exceptions."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson

from app.client.bodies import body_of, json_body
from app.client.errors import BrokenOff, ClientError, Json, Unreachable, error_of
from app.client.files import whole_file
from app.client.transport import Transport

PATIENT = httpx.Timeout(86_400.0, connect=10.0)  # as long as it takes: without an end, Ctrl-C would wait for it, too


class Requests:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @property
    def base_url(self) -> str:
        return self._transport.base_url

    async def close(self) -> None:
        await self._transport.close()

    async def _pages(self, path: str, **params: str | None) -> AsyncGenerator[Json]:
        after: str | None = None
        while True:
            given = {key: value for key, value in (params | {"after": after}).items() if value is not None}
            page = await self._json("GET", path, params=given)
            for item in page["data"]:
                yield item
            after = page["next"]
            if after is None:
                return

    async def _data(self, path: str, **params: str) -> list[Json]:
        rows: list[Json] = (await self._json("GET", path, params=params))["data"]
        return rows

    async def _upload(self, method: str, path: str, source: Any, media_type: str = "application/octet-stream") -> Json:
        content, known = await self._transport.run(body_of, source)
        headers = {"Content-Type": media_type} | known
        return await self._json(method, path, content=content, headers=headers, timeout=PATIENT)

    async def _json(self, method: str, path: str, *, json: Json | None = None, **options: Any) -> Json:
        if json is not None:
            options["content"] = json_body(json)
            options["headers"] = {"Content-Type": "application/json"} | options.get("headers", {})
        response = await self._request(method, path, **options)
        try:
            answer: Json = orjson.loads(response.content)
        except orjson.JSONDecodeError as error:
            raise ClientError(f"the answer of {response.url} is no JSON; is a Gradserve service there?") from error
        return answer

    async def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async with self._streaming(method, path, **options) as response:
            await self._transport.read(response)
            return response

    async def _save(self, path: str | Path, address: str, **options: Any) -> None:
        """An answer into a file, which is there once it is whole."""
        with whole_file(path) as file:
            async with self._streaming("GET", address, timeout=PATIENT, **options) as response:
                async for block in self._transport.blocks(response):
                    await self._transport.run(file.write, block)

    @asynccontextmanager
    async def _streaming(
        self, method: str, path: str, *, content: Any = None, **options: Any
    ) -> AsyncIterator[httpx.Response]:
        """An answer that is no error, whose body is still to come.

        Raises:
            ApiError, Unreachable
        """
        begun: httpx.Response | None = None
        try:
            async with self._transport.stream(method, path, content, **options) as response:
                if not response.is_success:  # a redirection is nobody of ours, either
                    await self._transport.read(response)
                    raise error_of(response)
                begun = response
                yield response
        except httpx.LocalProtocolError as error:
            raise ClientError(f"no request can be made of this: {error}") from error
        except httpx.TransportError as error:
            url, reason = self._transport.base_url, str(error) or type(error).__name__
            if begun is None:
                raise Unreachable(f"no answer from {url}: {reason}") from error
            raise BrokenOff(f"the answer of {url} broke off: {reason}", begun.headers.get("X-Request-ID")) from error
