"""Errors on the wire: RFC 9457 problem details, with a pointer for every fault."""

import errno
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any

import orjson
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from app import errors
from app.api.fields import fields_at, fields_below, fields_beside, types_at
from app.api.meant import no_such_field, unknown_type
from app.serving.encode import escape
from app.specs.base import NAME_PATTERN
from app.specs.sentences import nearest, some_of
from app.specs.training import DEVICE_PATTERN

MEDIA_TYPE = "application/problem+json"
MAX_FAULTS = 100  # more say nothing new
MAX_SHOWN = 60  # letters of what was sent
MUST_BE, PYDANTIC_MUST_BE = "this must be ", "Input should be "
OF_ALL_AXES = {"kernel_size", "stride", "padding", "dilation"}
STATUS: dict[type[errors.GradserveError], int] = {
    errors.InvalidInput: 422,
    errors.TrainingFailed: 422,
    errors.Unparseable: 400,
    errors.UnsupportedMedia: 415,
    errors.TooLarge: 413,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Overloaded: 429,
    errors.StorageFull: 507,
    errors.ClientGone: 400,  # for the log; there is nobody who could read it
    errors.Unavailable: 503,
    errors.CorruptVersion: 503,
}
CODE_OF_STATUS = {
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    400: "unparseable",
    416: "no_such_range",
}
OBJECT = ("model_type", "model_attributes_type", "dict_type")
ARRAY = ("tuple_type", "list_type")
WORDS = {
    **dict.fromkeys(OBJECT, "this must be an object"),
    "extra_forbidden": "there is no such field",
    **dict.fromkeys(ARRAY, "this must be an array"),
    "union_tag_not_found": 'this needs a "type"',
    "string_type": "this must be a string, in quotes",
    "too_short": "this must have at least {min_length} item(s)",
    "too_long": "this may have at most {max_length} item(s)",
    "string_pattern_mismatch": "this is not of the form {pattern}",
}
"""Our words for pydantic's errors, where its own speak of Python."""
WORDS_OF_PATTERN = {
    NAME_PATTERN: "a name has 1 to 64 of a-z, 0-9, '.', '_' and '-', and begins with a letter or a digit",
    DEVICE_PATTERN: "a device is auto, cpu, cuda, or one of several cards: cuda:0, cuda:1, …",
}

log = structlog.get_logger()


class FaultOut(BaseModel):
    """One wrong place; `pointer` is a JSON pointer into the request's body, or `?name` for a query parameter."""

    pointer: str
    detail: str


class Problem(BaseModel):
    """RFC 9457 problem details. `code` is a stable word, `detail` a sentence that helps."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    request_id: str | None = None
    errors: list[FaultOut] | None = None
    error: Annotated[str | None, Field(description="under /v2: the detail, as the Open Inference Protocol has it")] = (
        None
    )


def problem_response(
    request: Request,
    status: int,
    code: str,
    detail: str,
    faults: Iterable[errors.Fault] = (),
    headers: dict[str, str] | None = None,
) -> Response:
    problem = Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        code=code,
        request_id=request.scope.get("request_id"),
        errors=[FaultOut(pointer=fault.pointer, detail=fault.detail) for fault in faults] or None,
        error=detail if request.url.path.startswith("/v2") else None,
    )
    body = orjson.dumps(problem.model_dump(exclude_none=True))
    return Response(body, status, headers=headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Give every error its problem."""
    app.add_exception_handler(errors.GradserveError, _expected)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _cut_short)
    for kind in (OSError, MemoryError, RuntimeError):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(Exception, partial(_unexpected, headers={"Connection": "close"}))  # as uvicorn does then


async def answer(request: Request, error: Exception) -> Response:
    """The problem of any error, for those too that FastAPI does not see."""
    if isinstance(error, RequestValidationError):
        return await _invalid(request, error)
    known = _of_system(error) or error
    return await (_expected if isinstance(known, errors.GradserveError) else _unexpected)(request, known)


async def _expected(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.GradserveError)
    return answer_to(request, error)


def answer_to(request: Request, error: errors.GradserveError) -> Response:
    """The problem of an error, for those too that answer before any route."""
    status = next(status for kind, status in STATUS.items() if isinstance(error, kind))
    if status >= 500:
        log.error("a request could not be answered", code=error.code, detail=error.detail)
    headers = {}
    if isinstance(error, errors.Overloaded):
        headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    return problem_response(request, status, error.code, error.detail, getattr(error, "faults", ()), headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    body_field = getattr(request.scope.get("route"), "body_field", None)
    body_type = body_field.field_info.annotation if body_field else None
    faults = faults_of(error.errors(), error.body, body_type)
    return problem_response(request, 422, "invalid_input", faults[0].detail, faults)


def faults_of(items: Sequence[Any], body: Any, body_type: Any = None) -> list[errors.Fault]:
    """Pydantic's errors as faults, the first of many: one for each place that has to be one thing or another."""
    missing = defaultdict[tuple[str | int, ...], list[str]](list)
    for item in items:
        if item["type"] == "missing":
            *place, name = item["loc"]
            missing[tuple(place)].append(str(name))
    found: dict[str, list[str]] = {}
    num_found = 0
    for item in items:
        if num_found == MAX_FAULTS:
            break  # to look for what was meant takes a while, and may be wanted of thousands
        if item["type"] == "too_short" and len(item["input"]) >= item["ctx"]["min_length"]:
            continue  # it counts what is right alone, and what is wrong has a fault of its own
        fault = fault_of(item, body, body_type, missing.get(item["loc"][:-1], ()))
        others = found.setdefault(fault.pointer, [])
        if others and others[-1].startswith(MUST_BE) and fault.detail.startswith(MUST_BE):
            (one, *hints), (other, *more) = others[-1].split("; "), fault.detail.removeprefix(MUST_BE).split("; ")
            others[-1] = "; ".join([f"{one} or {other}", *hints, *more])
        else:
            others.append(fault.detail)
            num_found += 1
    return [errors.Fault(pointer, detail) for pointer, details in found.items() for detail in details]


def fault_of(item: Any, body: Any, body_type: Any = None, missing: Sequence[str] = ()) -> errors.Fault:
    """A pydantic error as a fault; its location's union tags, which are not in the body, are left out.

    `missing`: required fields that are not beside it.
    """
    where, *path = item["loc"]
    message = WORDS.get(item["type"], "").format(**item.get("ctx", {})) or _in_our_words(str(item["msg"]))
    if item["type"] == "missing":
        message = f"{path[-1]!r} is required" if path else "a body is required"
    if item["type"] == "string_pattern_mismatch":
        message = WORDS_OF_PATTERN.get(item["ctx"]["pattern"], message)
    if item["type"] == "literal_error" and isinstance(item["input"], str):
        near = nearest(item["input"], item["ctx"]["expected"].split("'")[1::2])
        message += f"; did you mean {near!r}?" if near else ""
    if item["type"] in ARRAY and type(item["input"]) in (str, int, float) and len(str(item["input"])) < MAX_SHOWN:
        message += f", as in {json.dumps([item['input']])}"
    if item["type"] == "union_tag_invalid":
        tag, known = item["ctx"]["tag"], item["ctx"]["expected_tags"].replace("'", "").split(", ")
        path, message = [*path, "type"], unknown_type(tag, known, in_layer="layers" in path)
    if item["type"] == "int_type" and isinstance(item["input"], list) and OF_ALL_AXES.intersection(path):
        message += ", one for all axes"
    if item["type"] == "extra_forbidden" and (known := fields_at(body_type, path[:-1])):
        if path[-1] in known:
            message = _out_of_place(fields_beside(body_type, path))
        else:
            below = fields_below(body_type) if len(path) == 1 else {}
            given = _fields_given(path[:-1], body)
            message = no_such_field(str(path[-1]), known, given, missing, below, in_layer="layers" in path)
    if item["type"] == "union_tag_not_found" and (known := types_at(body_type, path)):
        message += f"; there are {some_of(known)}"
    if item["type"] in OBJECT and (known := fields_at(body_type, path)):
        message += ' with a "type"' if "type" in known else f"; it may have {_quoted(known)}"
    if where != "body":
        return errors.Fault("?" + "/".join(map(str, path)), message)
    return errors.Fault(_pointer(path, body, missing=item["type"] == "missing"), message)


def _out_of_place(beside: Sequence[str]) -> str:
    """Of a field of another form of the object, where `beside` are that form's others."""
    return "this does not go with the fields beside it" + (f", but with {_quoted(beside)}" if beside else "")


def _quoted(names: Sequence[str]) -> str:
    return some_of(list(map(repr, names)))


def _in_our_words(message: str) -> str:
    if message.startswith(PYDANTIC_MUST_BE):
        return MUST_BE + message.removeprefix(PYDANTIC_MUST_BE)
    return message.removeprefix("Value error, ")


def _pointer(path: Sequence[str | int], body: Any, *, missing: bool) -> str:
    parts = [*_followed(path[:-1], body)[0], *path[-1:]] if missing else _followed(path, body)[0]
    return "".join("/" + escape(str(part)) for part in parts)


def _fields_given(path: Sequence[str | int], body: Any) -> Collection[str]:
    _, value = _followed(path, body)
    return value if isinstance(value, dict) else ()


def _followed(path: Sequence[str | int], value: Any) -> tuple[list[str | int], Any]:
    """The parts of a location that are in the body, as union tags are not, and what is there."""
    parts: list[str | int] = []
    for part in path:
        if part in value if isinstance(value, dict) else isinstance(value, list) and isinstance(part, int):
            value = value[part]
            parts.append(part)
    return parts, value


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = CODE_OF_STATUS.get(error.status_code, "http_error")
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = _allowed(request)
    detail = {
        404: f"there is nothing at {request.url.path}; {_without_slash(request) or 'see /docs'}",
        405: f"{request.url.path} takes no {request.method}; it takes {headers.get('Allow')}",
        413: "the body is larger than this service allows",
    }.get(error.status_code, str(error.detail))
    return problem_response(request, error.status_code, code, detail, headers=headers)


def _without_slash(request: Request) -> str | None:
    """The path that was meant, where a slash too many is at its end."""
    path = request.scope["path"].removesuffix("/")
    meant = {**request.scope, "path": path}
    is_route = path != request.scope["path"] and any(
        route.matches(meant)[0] == Match.FULL for route in request.app.routes
    )
    return f"did you mean {path}?" if is_route else None


def _allowed(request: Request) -> str:
    """The methods of all routes that have the path; the router knows those of the first."""
    methods = {
        method
        for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
        for route in request.app.routes
        if route.matches({**request.scope, "method": method})[0] == Match.FULL
    }
    return ", ".join(sorted(methods))


async def _cut_short(request: Request, _: Exception) -> Response:
    """For the log; whoever sent half a body does not read this."""
    return problem_response(request, 400, "unparseable", "the body ended before it was complete")


def _of_system(error: Exception) -> errors.GradserveError | None:
    """A full or broken disk, or a lack of memory or file descriptors, is no fault of the program."""
    if errors.is_out_of_memory(error):
        what = str(error).partition("\n")[0] or "of the host"
        return errors.Unavailable(f"memory ran out ({what}); fewer rows in a request need less", code="out_of_memory")
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return errors.Overloaded("the service has as many files and connections open as it may; try again")
    return errors.StorageFailed.of(error)


async def _unexpected(request: Request, error: Exception, headers: dict[str, str] | None = None) -> Response:
    log.exception("request failed", exc_info=error)
    detail = "this is a fault of the service; its log has the details"
    return problem_response(request, 500, "internal_error", detail, headers=headers)
