"""The Open Inference Protocol's model repository: which versions there are, and which are in memory.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
"""

from typing import Any, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel

from app.api.auth import require
from app.api.json_route import parse_json, validated
from app.api.services import Deps, Services
from app.api.v2 import ModelName
from app.errors import InvalidInput

router = APIRouter(prefix="/v2/repository", tags=["open inference protocol"])
read, write = [Depends(require("read"))], [Depends(require("train"))]

Body = TypeVar("Body", bound=BaseModel)


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


def _optional_body(body_type: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": body_type.model_json_schema(), "example": example}}
    return {"requestBody": {"required": False, "content": content}}


_TOLD = _optional_body(RepositoryRequest, {})


@router.post(
    "/index",
    summary="List versions",
    dependencies=read,
    openapi_extra=_optional_body(IndexRequest, {"ready": True}),
)
async def repository_index(request: Request, deps: Deps) -> list[IndexEntry]:
    """`{"ready": true}` leaves out what was unloaded."""
    only_ready = _read(IndexRequest, await request.body()).ready
    entries = await to_thread.run_sync(_index, deps)
    return [entry for entry in entries if entry.state == "READY" or not only_ready]


def _index(deps: Services) -> list[IndexEntry]:
    entries = []
    for name, version in deps.models.all_versions():
        state, reason = ("UNAVAILABLE", "unloaded") if deps.models.is_unloaded(name) else ("READY", "")
        entries.append(IndexEntry(name=name, version=version, state=state, reason=reason))
    return entries


@router.post("/models/{name}/load", summary="Load a model into memory", dependencies=write, openapi_extra=_TOLD)
async def load_model(name: ModelName, request: Request, deps: Deps) -> dict[str, Any]:
    """The newest version. Where it can't be loaded, the one that was serving goes on."""
    parameters = _read(RepositoryRequest, await request.body()).parameters
    for key in parameters:
        if key == "config" or key.startswith("file:"):
            raise InvalidInput.at(
                "/parameters", f"a model's {key} can't be replaced; POST /models/{name}/versions publishes a version"
            )
    await deps.predictor.load(name, deps.models.resolve(name, None))
    deps.models.mark_unloaded(name, False)
    return {}


@router.post("/models/{name}/unload", summary="Free a model's memory", dependencies=write, openapi_extra=_TOLD)
async def unload_model(name: ModelName, request: Request, deps: Deps) -> dict[str, Any]:
    """All versions, in all processes within a second. It is loaded again when it is used again."""
    _read(RepositoryRequest, await request.body())
    deps.models.versions(name)
    await to_thread.run_sync(deps.predictor.cache.unload, name)
    return {}


def _read(body_type: type[Body], body: bytes) -> Body:
    """A JSON body of this type, all fields of which have defaults; it may be empty.

    Raises:
        Unparseable, RequestValidationError
    """
    return validated(body_type, parse_json(body) if body.strip() else {})
