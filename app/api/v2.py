"""The Open Inference Protocol v2, which `tritonclient.http` speaks; errors have an `error` besides a problem's members.

https://github.com/kserve/open-inference-protocol, with those of Triton's extensions that `EXTENSIONS` lists.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, ParamSpec, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import BaseModel, Field
from starlette.datastructures import Headers

from app import __version__
from app.api import operations
from app.api.auth import require
from app.api.encodings import accepted_encoding, compress, decompress
from app.api.examples import INFER
from app.api.json_route import parse_json, validated
from app.api.patience import unless_gone
from app.api.services import Deps, RoutingKey, Services
from app.errors import Conflict, InvalidInput, Unparseable
from app.serving.predictor import in_time
from app.serving.served_model import ServedModel
from app.serving.signature import TensorType, input_types, output_types
from app.serving.statistics import facts_of, last_inference_of, triton_statistics
from app.serving.v2_codec import Call, InferRequest, encode_response, read_call
from app.specs.base import Name
from app.specs.table import Signature

router = APIRouter(prefix="/v2", tags=["open inference protocol"])
read, predict, write = ([Depends(require("read"))], [Depends(require("predict"))], [Depends(require("train"))])

Body = TypeVar("Body", bound=BaseModel)
T = TypeVar("T")
P = ParamSpec("P")
ModelName = Annotated[Name, Path(examples=["line"])]
Selector = Annotated[str, Field(min_length=1, max_length=64, description="a number or an alias; absent: the newest")]

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "statistics",
)
PLATFORM = "pytorch_safetensors"
HEADER_LENGTH = "Inference-Header-Content-Length"
MAX_BYTES_ON_LOOP = 2**16  # more than that is read or written in a thread, so that the event loop stays free


class ServerMetadata(BaseModel):
    name: str = "gradserve"
    version: str = __version__
    extensions: tuple[str, ...] = EXTENSIONS


class TensorMetadata(BaseModel):
    """`shape` has -1 for the number of rows."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str = PLATFORM
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class IndexEntry(BaseModel):
    """A version that is published. UNAVAILABLE: it was unloaded, and loads again at its next use."""

    name: str
    version: str
    state: str
    reason: str = ""


class IndexRequest(BaseModel):
    ready: bool = False


class RepositoryRequest(BaseModel):
    parameters: dict[str, Any] = {}


class InferAnswer(BaseModel):
    """`outputs`: tensors with their `data`, or with as many bytes after the JSON as `binary_data_size` says."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[dict[str, Any]]


# ---- the server


@router.get("", summary="The server", dependencies=read)
async def server_metadata() -> ServerMetadata:
    return ServerMetadata()


@router.get("/health/live", summary="The process is alive")
async def server_live() -> dict[str, bool]:
    return {"live": True}


@router.get("/health/ready", summary="Ready to predict")
def server_ready(deps: Deps) -> dict[str, bool]:
    operations.readyz(deps)
    return {"ready": True}


# ---- models


@router.get("/models/stats", summary="How all models were used", dependencies=read, responses={404: {}})
@router.get("/models/{name}/stats", summary="How a model was used", dependencies=read)
@router.get("/models/{name}/versions/{version}/stats", summary="How a version was used", dependencies=read)
async def statistics(deps: Deps, name: ModelName | None = None, version: Selector | None = None) -> dict[str, Any]:
    """By whatever protocol, in all processes, since the service started; times in nanoseconds."""
    return await to_thread.run_sync(_statistics, deps, name, version)


def _statistics(deps: Services, name: str | None, version: str | None) -> dict[str, Any]:
    chosen = _chosen(deps, name, version)
    counted = deps.predictor.statistics.counters.read()
    facts, last = facts_of(counted.counts), last_inference_of(counted.gauges)
    return {"model_stats": [triton_statistics(*key, facts.get(key, {}), last.get(key, 0)) for key in chosen]}


def _chosen(deps: Services, name: str | None, version: str | None) -> list[tuple[str, str]]:
    if name is not None and version is not None:
        return [(name, deps.models.resolve(name, version))]
    names = deps.models.names() if name is None else [name]
    return [(name, version) for name in names for version in deps.models.versions(name)]


@router.get("/models/{name}", summary="A model's tensors", dependencies=read)
@router.get("/models/{name}/versions/{version}", summary="A version's tensors", dependencies=read)
def model_metadata(name: ModelName, deps: Deps, version: Selector | None = None) -> ModelMetadata:
    signature = _signature(deps, name, version)
    return ModelMetadata(
        name=name,
        versions=deps.models.versions(name),
        inputs=[_metadata(tensor) for tensor in input_types(signature)],
        outputs=[_metadata(tensor) for tensor in output_types(signature)],
    )


def _signature(deps: Services, name: str, version: str | None) -> Signature:
    found = deps.models.newest(name) if version is None else deps.models.get(name, version)
    return Signature.model_validate(found.config["signature"])


def _metadata(tensor: TensorType) -> TensorMetadata:
    return TensorMetadata(name=tensor.name, datatype=tensor.datatype, shape=list(tensor.shape))


@router.get("/models/{name}/ready", summary="A model is ready", dependencies=read, responses={409: {}})
@router.get(
    "/models/{name}/versions/{version}/ready", summary="A version is ready", dependencies=read, responses={409: {}}
)
async def model_ready(name: ModelName, deps: Deps, version: Selector | None = None) -> dict[str, Any]:
    """Loads it, so that a yes is one."""
    if deps.models.is_unloaded(name):
        raise Conflict(f"the model {name!r} was unloaded; it loads again at its next use", code="model_unloaded")
    await deps.predictor.load(name, version)
    return {"name": name, "ready": True}


@router.get("/models/{name}/config", summary="A model's configuration", dependencies=read)
@router.get("/models/{name}/versions/{version}/config", summary="A version's configuration", dependencies=read)
def model_config(name: ModelName, deps: Deps, version: Selector | None = None) -> dict[str, Any]:
    """As Triton has it. `max_batch_size` is 0: the shapes include the number of rows, which has no limit of its own."""
    signature = _signature(deps, name, version)
    return {
        "name": name,
        "platform": PLATFORM,
        "backend": "pytorch",
        "version_policy": {"latest": {"num_versions": 1}} if version is None else {"specific": {"versions": [version]}},
        "max_batch_size": 0,
        "input": [_config(tensor) for tensor in input_types(signature)],
        "output": [_config(tensor) for tensor in output_types(signature)],
    }


def _config(tensor: TensorType) -> dict[str, Any]:
    datatype = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    return {"name": tensor.name, "data_type": f"TYPE_{datatype}", "dims": list(tensor.shape)}


# ---- the repository


def _optional_body(body_type: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": body_type.model_json_schema(), "example": example}}
    return {"requestBody": {"required": False, "content": content}}


_TOLD = _optional_body(RepositoryRequest, {})


@router.post(
    "/repository/index",
    summary="List versions",
    dependencies=read,
    openapi_extra=_optional_body(IndexRequest, {"ready": True}),
)
async def repository_index(request: Request, deps: Deps) -> list[IndexEntry]:
    """`{"ready": true}` leaves out what was unloaded."""
    only_ready = _validated(IndexRequest, await request.body()).ready
    entries = await to_thread.run_sync(_index, deps)
    return [entry for entry in entries if entry.state == "READY" or not only_ready]


def _index(deps: Services) -> list[IndexEntry]:
    entries = []
    for name in deps.models.names():
        state, reason = ("UNAVAILABLE", "unloaded") if deps.models.is_unloaded(name) else ("READY", "")
        entries += [
            IndexEntry(name=name, version=version, state=state, reason=reason) for version in deps.models.versions(name)
        ]
    return entries


@router.post(
    "/repository/models/{name}/load", summary="Load a model into memory", dependencies=write, openapi_extra=_TOLD
)
async def load_model(name: ModelName, request: Request, deps: Deps) -> dict[str, Any]:
    """The newest version. Where it can't be loaded, the one that was serving goes on."""
    parameters = _validated(RepositoryRequest, await request.body()).parameters
    for key in parameters:
        if key == "config" or key.startswith("file:"):
            raise InvalidInput.at(
                "/parameters", f"a model's {key} can't be replaced; POST /models/{name}/versions publishes a version"
            )
    await deps.predictor.load(name, deps.models.resolve(name, None))
    deps.models.mark_unloaded(name, False)
    return {}


@router.post(
    "/repository/models/{name}/unload", summary="Free a model's memory", dependencies=write, openapi_extra=_TOLD
)
async def unload_model(name: ModelName, request: Request, deps: Deps) -> dict[str, Any]:
    """All versions, in all processes within a second. It is loaded again when it is used again."""
    _validated(RepositoryRequest, await request.body())
    deps.models.versions(name)
    await to_thread.run_sync(deps.predictor.cache.unload, name)
    return {}


# ---- inference


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
            "application/json": {"schema": _inlined(InferRequest.model_json_schema()), "examples": INFER},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


@router.post(
    "/models/{name}/infer",
    summary="Infer with the newest version",
    dependencies=predict,
    response_model=InferAnswer,
    openapi_extra=_BODY,
)
@router.post(
    "/models/{name}/versions/{version}/infer",
    summary="Infer with a version",
    dependencies=predict,
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
    model = asked.model
    num_bytes = MAX_BYTES_ON_LOOP + 1 if "content-encoding" in request.headers else len(body)
    with deps.predictor.statistics.measured(asked):
        with asked.part("compute_input"):
            call = await _run(num_bytes, _read_call, deps, model, body, request.headers)
        predicting = deps.predictor.predict_encoded(
            asked, call.inputs, lambda other: _read_call(deps, other, body, request.headers).inputs
        )
        async with in_time(call.timeout_seconds):
            values = await unless_gone(request.receive, predicting)
        with asked.part("compute_output"):
            answer = await _run(values.nbytes, encode_response, model, call, values)
            return await _run(values.nbytes, _response, *answer, request.headers.get("accept-encoding", ""))


async def _run(num_bytes: int, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call a function at once, or in a thread where it has to do with many bytes."""
    if num_bytes <= MAX_BYTES_ON_LOOP:
        return function(*arguments, **named)
    return await to_thread.run_sync(partial(function, *arguments, **named))


def _read_call(deps: Services, model: ServedModel, body: bytes, headers: Headers) -> Call:
    plain = decompress(body, headers.get("content-encoding", ""), deps.settings.max_body_bytes)
    length = _header_length(headers.get(HEADER_LENGTH), len(plain))
    request = _validated(InferRequest, plain[:length])
    return read_call(model, request, memoryview(plain)[length:], deps.settings.max_rows)


def _header_length(given: str | None, num_bytes: int) -> int:
    if given is None:
        return num_bytes
    if not (given.isascii() and given.isdecimal() and len(given) <= 20) or int(given) > num_bytes:
        raise Unparseable(
            f"{HEADER_LENGTH} must be the length of the JSON in a body of {num_bytes} bytes, not {given[:20]!r}"
        )
    return int(given)


def _response(body: bytes, header_length: int | None, accept_encoding: str) -> Response:
    headers = {} if header_length is None else {HEADER_LENGTH: str(header_length)}
    if encoding := accepted_encoding(accept_encoding):
        body = compress(body, encoding)
        headers |= {"Content-Encoding": encoding, "Vary": "Accept-Encoding"}
    media_type = "application/json" if header_length is None else "application/octet-stream"
    return Response(body, headers=headers, media_type=media_type)


def _validated(body_type: type[Body], body: bytes) -> Body:
    """A JSON body of this type, or an empty one where all of its fields have defaults.

    Raises:
        Unparseable, RequestValidationError
    """
    optional = not any(field.is_required() for field in body_type.model_fields.values())
    value = {} if optional and not body.strip() else parse_json(body)
    return validated(body_type, value)
