"""The Open Inference Protocol's inference: tensors in, predictions out, in JSON and in binary."""

import re
from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.types import Receive

from app.api.ahead import SMALL_BYTES, Body, Post, Shortcut
from app.api.auth import require
from app.api.encodings import accepted_encoding, compress, decompress
from app.api.json_route import parse_json, validated
from app.api.patience import unless_gone
from app.api.services import Deps, RoutingKey, Services
from app.api.v2 import MAX_SELECTOR, ModelName, Selector
from app.errors import Unparseable
from app.serving.predictor import in_time
from app.serving.served_model import ServedModel
from app.serving.statistics import Request as Asked
from app.serving.v2_codec import Call, InferRequest, encode_response, read_call
from app.specs.base import NAME_PATTERN

router = APIRouter(prefix="/v2/models", tags=["open inference protocol"])

NAME = re.compile(NAME_PATTERN)
HEADER_LENGTH = "Inference-Header-Content-Length"
SMALL_VALUES_BYTES = 2**18  # more predictions are written in a thread


class InferAnswer(BaseModel):
    """`outputs`: tensors with their `data`, or with as many bytes after the JSON as `binary_data_size` says."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[dict[str, Any]]


def _inlined(schema: Any, definitions: dict[str, Any] | None = None) -> Any:
    """A JSON schema with its definitions where they are referred to, since OpenAPI has another place for them."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    known = definitions or schema.get("$defs", {})
    if "$ref" in schema:
        return _inlined(known[schema["$ref"].rpartition("/")[2]], known)
    return {key: _inlined(value, known) for key, value in schema.items() if key != "$defs"}


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": _inlined(InferRequest.model_json_schema())},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


@router.post(
    "/{name}/infer",
    summary="Infer with the newest version",
    dependencies=[Depends(require("predict"))],
    response_model=InferAnswer,
    openapi_extra=_BODY,
)
@router.post(
    "/{name}/versions/{version}/infer",
    summary="Infer with a version",
    dependencies=[Depends(require("predict"))],
    response_model=InferAnswer,
    openapi_extra=_BODY,
)
async def infer(
    name: ModelName, request: Request, deps: Deps, version: Selector | None = None, key: RoutingKey = None
) -> Response:
    """JSON, or JSON of `Inference-Header-Content-Length` bytes and binary tensors behind it; gzip and deflate too.

    Whatever Content-Type the body is said to have is fine. Numeric inputs take any datatype of numbers. With
    `parameters.timeout`, in microseconds, an answer that does not come in time is 429.
    """
    body = await request.body()
    asked = await deps.predictor.request(name, version, key)
    return await _answer(deps, asked, body, request.headers, request.receive)


async def _answer(deps: Services, asked: Asked, body: Body, headers: Headers, receive: Receive) -> Response:
    model = asked.model
    is_small = len(body) <= SMALL_BYTES and "content-encoding" not in headers
    with deps.predictor.statistics.measured(asked):
        with asked.part("compute_input"):
            read = partial(_read_call, deps, model, body, headers)
            call = read() if is_small else await deps.predictor.in_thread(read)
        predicting = deps.predictor.predict_encoded(
            asked, call.inputs, lambda other: _read_call(deps, other, body, headers).inputs
        )
        async with in_time(call.timeout_seconds):
            values = await unless_gone(receive, predicting)
        with asked.part("compute_output"):

            def write() -> Response:
                return _response(headers, *encode_response(model, call, values))

            return write() if values.nbytes <= SMALL_VALUES_BYTES else await deps.predictor.in_thread(write)


def _read_call(deps: Services, model: ServedModel, body: Body, headers: Headers) -> Call:
    plain = decompress(body, headers.get("content-encoding", ""), deps.settings.max_body_bytes)
    length = _header_length(headers.get(HEADER_LENGTH), len(plain))
    request = validated(InferRequest, parse_json(plain[:length]))
    return read_call(model, request, memoryview(plain)[length:], deps.settings.max_rows)


def _header_length(given: str | None, num_bytes: int) -> int:
    if given is None:
        return num_bytes
    if not (given.isascii() and given.isdecimal() and len(given) <= 20) or int(given) > num_bytes:
        raise Unparseable(
            f"{HEADER_LENGTH} must be the length of the JSON in a body of {num_bytes} bytes, not {given[:20]!r}"
        )
    return int(given)


def _response(asked: Headers, body: bytes, header_length: int | None) -> Response:
    headers = {} if header_length is None else {HEADER_LENGTH: str(header_length)}
    if encoding := accepted_encoding(asked.get("accept-encoding", "")):
        body = compress(body, encoding)
        headers |= {"Content-Encoding": encoding, "Vary": "Accept-Encoding"}
    media_type = "application/json" if header_length is None else "application/octet-stream"
    return Response(body, headers=headers, media_type=media_type)


# ---- ahead of FastAPI


def _names_a_version(parts: dict[str, str], _headers: dict[bytes, bytes]) -> bool:
    return bool(NAME.fullmatch(parts["name"])) and len(parts.get("version", "")) <= MAX_SELECTOR


async def _answer_ahead(post: Post) -> Response:
    key = post.headers.get("x-routing-key")
    asked = await post.services.predictor.request(post.parts["name"], post.parts.get("version"), key)
    return await _answer(post.services, asked, post.body, post.headers, post.receive)


SHORTCUTS = [Shortcut(route, _names_a_version, _answer_ahead) for route in router.routes if isinstance(route, APIRoute)]
