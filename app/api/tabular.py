"""`POST /predict` with a table as its body: CSV or Arrow IPC in, and out in parts as they are predicted.

The same path takes JSON (see `app.api.predict`); `TableRoute` is where the two part, by the body's media type. So it is
with `/invocations` (see `app.api.invocations`), whose answer is always JSON.
"""

from collections.abc import AsyncIterator
from contextlib import ExitStack, closing
from functools import partial
from tempfile import SpooledTemporaryFile
from typing import Annotated, Any

import polars as pl
import structlog
from anyio import to_thread
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from app.api.auth import require
from app.api.datasets import check_length, receive
from app.api.parameters import known_parameters
from app.api.services import Deps, RoutingKey, Services
from app.errors import GradserveError, InvalidInput, ModelNotFound
from app.serving.served_model import ServedModel
from app.serving.statistics import Request as Asked
from app.serving.tabular_codec import Form, RowReader, Writer, rows_at_once, writer_of
from app.specs.base import Name
from app.specs.sentences import some_of
from app.storage.row_stream import RowStream, open_rows
from app.storage.uploads import Upload

FORMS: dict[str, Form] = {
    "text/csv": "csv",
    "text/tab-separated-values": "csv",
    "application/vnd.apache.arrow.stream": "arrow",
    "application/vnd.apache.arrow.file": "arrow",
    "application/json": "json",
}
"""Media types of bodies and answers; a body in JSON goes to `app.api.predict`."""

_CSV = {"schema": {"type": "string"}}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
BODIES: dict[str, Any] = {
    "text/csv": _CSV | {"example": "bill_length_mm,sex\n40.2,male\n47.5,\n"},
    "text/tab-separated-values": _CSV | {"example": "bill_length_mm\tsex\n40.2\tmale\n47.5\t\n"},
    "application/vnd.apache.arrow.stream": _BINARY,
    "application/vnd.apache.arrow.file": _BINARY,
}


def parameters(model: str, which: str) -> list[dict[str, Any]]:
    """What OpenAPI says of the query."""
    return [
        {"name": "model", "in": "query", "schema": {"type": "string"}, "description": which, "example": model},
        {
            "name": "version",
            "in": "query",
            "schema": {"type": "string"},
            "description": "a number or an alias; absent: the newest",
        },
    ]


DESCRIBED: dict[str, Any] = {
    "parameters": parameters("birds", "the model, where the body is a table"),
    "responses": {"200": {"content": {"text/csv": _CSV, "application/vnd.apache.arrow.stream": _BINARY}}},
}
"""What OpenAPI says of tables, at the route that takes JSON: their bodies, and the rest."""

MAX_WAITING_BYTES = 2**20  # of an answer, in memory; more wait on the disk

Selector = Annotated[str, Query(min_length=1, max_length=64)]

log = structlog.get_logger()


def install(app: FastAPI, max_body_bytes: int) -> None:
    """Let tables that come to `POST /predict` and `/invocations` pass before the routes that are added later."""
    for path, endpoint in (("/predict", predict_table), ("/invocations", invoke_table)):
        app.router.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            dependencies=[Depends(require("predict")), Depends(known_parameters)],
            include_in_schema=False,
            max_body_size=max_body_bytes,
            route_class_override=TableRoute,
        )


class TableRoute(APIRoute):
    """Only there for bodies that are said to be tables."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        return (match, child) if match == Match.FULL and _is_table(scope) else (Match.NONE, {})


def _is_table(scope: Scope) -> bool:
    given = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    return FORMS.get(media_type(given.decode("latin-1")), "json") != "json"


def media_type(header: str) -> str:
    return header.partition(";")[0].strip().lower()


async def predict_table(
    request: Request,
    deps: Deps,
    model: Annotated[Name, Query()],
    version: Selector | None = None,
    key: RoutingKey = None,
) -> Response:
    asked = await deps.predictor.request(model, version, key)
    otherwise = FORMS[media_type(request.headers["content-type"])]
    return await answer_table(request, deps, asked, answer_form(request.headers.get("accept", ""), otherwise))


async def invoke_table(
    request: Request,
    deps: Deps,
    model: Annotated[Name | None, Query()] = None,
    version: Selector | None = None,
    key: RoutingKey = None,
) -> Response:
    name = await to_thread.run_sync(meant_model, deps, model)
    asked = await deps.predictor.request(name, version, key)
    return await answer_table(request, deps, asked, "mlflow")


def meant_model(deps: Services, name: str | None) -> str:
    """The model that is named, or the only one that there is.

    Raises:
        ModelNotFound, InvalidInput
    """
    if name is not None:
        return name
    names = deps.models.names()
    if not names:
        raise ModelNotFound("there is no model yet")
    if len(names) > 1:
        raise InvalidInput.at("?model", f"say which model with ?model=; there are {some_of(names)}")
    return names[0]


async def answer_table(request: Request, deps: Services, asked: Asked, form: Form) -> Response:
    """The answer begins once the whole body is here and its first rows are predicted: until then, errors are problems.

    Waiting for the whole body keeps clients from a deadlock that read no answer before they have sent everything.
    """
    model = asked.model
    check_length(request, deps.datasets.max_bytes)
    content_type = request.headers["content-type"]
    encoding = request.headers.get("content-encoding", "")
    with ExitStack() as opened:
        upload = opened.enter_context(deps.datasets.upload(content_type, encoding))
        await receive(request, upload.write)
        later = opened.enter_context(SpooledTemporaryFile(MAX_WAITING_BYTES, dir=str(upload.folder)))
        writer = writer_of(form, model, later)
        parts = _answer(deps, asked, upload, writer)
        first = await anext(parts)
        return TableResponse(first, parts, writer.media_type, opened.pop_all(), version_header(model))


def version_header(model: ServedModel) -> dict[str, str]:
    """Who answered, for answers whose body has no place to say it."""
    return {"X-Model-Version": model.version}


async def _answer(deps: Services, asked: Asked, upload: Upload, writer: Writer) -> AsyncIterator[bytes]:
    with deps.predictor.statistics.measured(asked):
        async for part in _parts(deps, asked, upload, writer):
            yield part


async def _parts(deps: Services, asked: Asked, upload: Upload, writer: Writer) -> AsyncIterator[bytes]:
    model = asked.model
    rows = await to_thread.run_sync(open_rows, upload, deps.datasets.max_columns)
    reader = RowReader(model, rows)
    parts = (piece for part in rows.parts for piece in part.iter_slices(rows_at_once(model)))
    with closing(rows.parts):
        while (part := await to_thread.run_sync(partial(next, parts, None))) is not None:
            with asked.part("compute_input"):
                encoded = await to_thread.run_sync(reader.encode, part)
            values = await deps.predictor.predict_encoded(asked, encoded, partial(_encode_part, rows, part))
            with asked.part("compute_output"):
                written = await to_thread.run_sync(writer.write, values)
            yield written
    if not reader.num_rows:
        raise InvalidInput.at("", "the table has no rows")
    last = writer.finish()
    while block := await to_thread.run_sync(partial(next, last, b"")):
        yield block


def _encode_part(rows: RowStream, part: pl.DataFrame, model: ServedModel) -> Any:
    """A part's rows, for another version than the one that answers."""
    return RowReader(model, rows).encode(part)


class TableResponse(StreamingResponse):
    """Sends the parts of an answer, and lets go of what they are made of at the end, however it comes.

    An error after the first part can only cut the answer short: the connection closes without the body's end.
    """

    def __init__(
        self,
        first: bytes,
        parts: AsyncIterator[bytes],
        media_type: str,
        opened: ExitStack,
        headers: dict[str, str],
    ) -> None:
        super().__init__(_chain(first, parts), media_type=media_type, headers=headers)
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._opened:
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        except GradserveError as error:
            places = [fault.pointer for fault in getattr(error, "faults", ())]
            log.warning("a table's answer was cut short", code=error.code, detail=error.detail, places=places)


async def _chain(first: bytes, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for part in parts:
        yield part


def answer_form(accept: str, otherwise: Form) -> Form:
    """The form that an `Accept` names first among those that it likes best; without one that is known, `otherwise`."""
    best, form = 0.0, otherwise
    for wish in accept.split(","):
        quality = _quality(wish)
        if media_type(wish) in FORMS and quality > best:
            best, form = quality, FORMS[media_type(wish)]
        elif media_type(wish) == "*/*" and quality > best:
            best, form = quality, otherwise
    return form


def _quality(wish: str) -> float:
    text = wish.lower().replace(" ", "").partition(";q=")[2].partition(";")[0]
    try:
        return float(text) if text else 1.0
    except ValueError:
        return 0.0
