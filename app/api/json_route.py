"""Routes whose bodies are JSON, read by orjson: fast, and with no NaN, which JSON does not have."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import orjson
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from app.api.auth import authorize_early
from app.errors import Unparseable, UnsupportedMedia
from app.storage.json_types import json_fault

Body = TypeVar("Body", bound=BaseModel)


class JsonRequest(Request):
    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = parse_json(await self.body())
        return self._json


class JsonRoute(APIRoute):
    """Says what to do about a body that has no `Content-Type: application/json`, or is no JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        takes_body = self.body_field is not None
        bodies = (self.openapi_extra or {}).get("requestBody", {}).get("content", {})
        tables = [media_type for media_type in bodies if media_type != "application/json"]

        async def handle_json(request: Request) -> Response:
            request = JsonRequest(request.scope, request.receive)
            if takes_body:
                await authorize_early(request, self.dependencies)
                require_json(request, tables)
                await request.json()  # here, because FastAPI would say no more than that parsing failed
            return await handle(request)

        return handle_json


def require_json(request: Request, tables: Sequence[str]) -> None:
    """Raise UnsupportedMedia unless the body is said to be JSON, and as it is. `tables`: what else would be taken."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMedia(f"a JSON body is taken as it is here, not in the Content-Encoding {encoding!r}")
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        said = f"not {media_type}" if media_type else "and the request has none"
        raise UnsupportedMedia(
            f"the body must come with Content-Type: application/json, {said}; "
            "curl sends that with --json, or -H 'Content-Type: application/json'"
            + (f"; tables come as {', '.join(tables)}" if tables else "")
        )


def parse_json(body: bytes | bytearray) -> Any:
    """The body's value.

    Raises:
        Unparseable: it is no JSON.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Unparseable(
            f"the body is no JSON: {json_fault(error)}" if body else "the body is empty; it must be a JSON object"
        ) from error


def validated(body_type: type[Body], value: Any) -> Body:
    """A body's value as this type.

    Raises:
        RequestValidationError: as FastAPI does.
    """
    try:
        return body_type.model_validate(value)
    except ValidationError as error:
        found = [{**item, "loc": ("body", *item["loc"])} for item in error.errors(include_url=False)]
        raise RequestValidationError(found, body=value) from error
