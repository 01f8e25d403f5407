"""The OpenAPI document: what FastAPI derives from the routes, and what all routes have in common.

Each operation names the problems that it may answer with, from its form: one that takes a body can be sent one that is
no JSON, one that wants a key can be asked without. Links say which operations go on from an answer.
"""

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, NamedTuple

from fastapi import FastAPI

from app.api.examples import ALIAS, EVALUATE, INFER, INVOCATIONS, PREDICT, TRAIN
from app.api.problems import MEDIA_TYPE, Problem

Document = dict[str, Any]

PROBLEMS = {
    400: "The body can't be parsed",
    401: "There is no key, or not a valid one",
    403: "The key does not have the scope, or the request comes from another site's page",
    404: "There is no such thing",
    409: "The state of the thing does not allow it",
    413: "The body is larger than the settings allow",
    415: "The body is in a format that is not spoken here",
    416: "The file has no such `Range`",
    422: "Well-formed, but wrong; `errors` says where",
    429: "Full for now: try again later",
    503: "A part of the service is not there yet, or any more",
    507: "The disk is full",
}
_TEXT = {"type": "string"}
_REQUEST_ID = {"X-Request-ID": {"$ref": "#/components/headers/RequestId"}}
_OF_PROBLEM: dict[int, Document] = {
    401: {"WWW-Authenticate": {"schema": _TEXT}},
    429: {"Retry-After": {"required": True, "description": "seconds", "schema": _TEXT}},
}
_LOCATION = {"Location": {"required": True, "description": "the path of what there is now", "schema": _TEXT}}
_LOCATED = {("POST", "/train", "202"), ("PUT", "/datasets/{name}", "201"), ("POST", "/models/{name}/versions", "201")}
_ALWAYS_OPEN = ("/healthz", "/v2/health/live")


class Link(NamedTuple):
    """An operation that goes on from an answer, with expressions for its parameters."""

    method: str
    path: str
    parameters: dict[str, str]


_JOB = {"job_id": "$response.body#/id"}
_FROM_JOB = {
    "job": Link("GET", "/jobs/{job_id}", _JOB),
    "events": Link("GET", "/jobs/{job_id}/events", _JOB),
    "history": Link("GET", "/jobs/{job_id}/history", _JOB),
    "cancel": Link("POST", "/jobs/{job_id}/cancel", _JOB),
    "pause": Link("POST", "/jobs/{job_id}/pause", _JOB),
    "resume": Link("POST", "/jobs/{job_id}/resume", _JOB),
    "delete": Link("DELETE", "/jobs/{job_id}", _JOB),
    "model": Link("GET", "/models/{name}", {"name": "$response.body#/model"}),
}
_DATASET = {"name": "$response.body#/name"}
_FROM_DATASET = {
    "dataset": Link("GET", "/datasets/{name}", _DATASET),
    "rows": Link("GET", "/datasets/{name}/rows", _DATASET),
    "delete": Link("DELETE", "/datasets/{name}", _DATASET),
}
_VERSION = {"name": "$response.body#/model", "version": "$response.body#/version"}
_FROM_VERSION = {
    "version": Link("GET", "/models/{name}/versions/{version}", _VERSION),
    "archive": Link("GET", "/models/{name}/versions/{version}/archive", _VERSION),
    "metadata": Link("GET", "/v2/models/{name}/versions/{version}", _VERSION),
    "infer": Link("POST", "/v2/models/{name}/versions/{version}/infer", _VERSION),
    "alias": Link("PUT", "/models/{name}/aliases/{alias}", {"name": "$response.body#/model"}),
    "delete": Link("DELETE", "/models/{name}/versions/{version}", _VERSION),
}
_NEWEST = {"name": "$response.body#/name", "version": "$response.body#/newest/version"}
LINKS: dict[tuple[str, str], dict[str, Link]] = {
    ("POST", "/train"): _FROM_JOB,
    ("GET", "/jobs/{job_id}"): _FROM_JOB,
    ("POST", "/jobs/{job_id}/pause"): _FROM_JOB,
    ("PUT", "/datasets/{name}"): _FROM_DATASET,
    ("GET", "/datasets/{name}"): _FROM_DATASET,
    ("GET", "/models/{name}"): {
        key: Link(link.method, link.path, {name: _NEWEST[name] for name in link.parameters})
        for key, link in _FROM_VERSION.items()
    },
    ("POST", "/models/{name}/versions"): _FROM_VERSION,
    ("PUT", "/models/{name}/aliases/{alias}"): {
        "aliased": Link("GET", "/models/{name}/versions/{version}", _VERSION | {"version": "$response.body#/alias"}),
        "delete": Link(
            "DELETE",
            "/models/{name}/aliases/{alias}",
            {"name": "$response.body#/model", "alias": "$response.body#/alias"},
        ),
    },
}


EXAMPLES: dict[tuple[str, str], Document] = {
    ("POST", "/train"): TRAIN,
    ("POST", "/predict"): PREDICT,
    ("POST", "/evaluate"): EVALUATE,
    ("POST", "/invocations"): INVOCATIONS,
    ("PUT", "/models/{name}/aliases/{alias}"): ALIAS,
    ("POST", "/v2/models/{name}/infer"): INFER,
    ("POST", "/v2/models/{name}/versions/{version}/infer"): INFER,
}
"""Bodies in JSON. They are put in here, as FastAPI would take out their nulls."""


def install(app: FastAPI) -> None:
    """Let `app.openapi`, which FastAPI calls once, give the whole document."""
    derive = app.openapi

    def openapi() -> Document:
        if app.openapi_schema is None:
            app.openapi_schema = complete(derive())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def complete(document: Document) -> Document:
    """FastAPI's document with every operation's problems, headers and links."""
    components = document["components"]
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    components["schemas"] |= problem.pop("$defs") | {"Problem": problem}
    components["headers"] = {
        "RequestId": {"required": True, "description": "that of the request, or a new one", "schema": _TEXT}
    }
    components["responses"] = {_name(status): _problem_response(status) for status in PROBLEMS}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            _complete_operation(document, method.upper(), path, operation)
    return document


def _name(status: int) -> str:
    return HTTPStatus(status).phrase.title().replace(" ", "")


def _problem_response(status: int) -> Document:
    return {
        "description": PROBLEMS[status],
        "headers": _REQUEST_ID | _OF_PROBLEM.get(status, {}),
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


def _complete_operation(document: Document, method: str, path: str, operation: Document) -> None:
    if (method, path) in EXAMPLES:
        operation["requestBody"]["content"]["application/json"]["examples"] = EXAMPLES[method, path]
    responses = operation["responses"]
    declared = {int(status) for status in responses if int(status) >= 400}
    for status in sorted(declared | set(_problems_of(path, operation))):
        responses[str(status)] = {"$ref": f"#/components/responses/{_name(status)}"}
    links = {
        name: {
            "operationId": document["paths"][link.path][link.method.lower()]["operationId"],
            "parameters": link.parameters,
        }
        for name, link in LINKS.get((method, path), {}).items()
    }
    for status, response in responses.items():
        if int(status) < 400:
            located = _LOCATION if (method, path, status) in _LOCATED else {}
            response["headers"] = response.get("headers", {}) | _REQUEST_ID | located
            if links:
                response["links"] = links


def _problems_of(path: str, operation: Document) -> Iterator[int]:
    """What any operation of this form may answer with. 409 is declared by the routes that have a state."""
    takes_body = "requestBody" in operation
    if takes_body:
        yield from (400, 413, 415)
    if "security" in operation:
        yield from (401, 403, 429)
    if takes_body or "{" in path:
        yield 404
    if takes_body or operation.get("parameters"):
        yield 422
    if path not in _ALWAYS_OPEN:
        yield from (503, 507)
