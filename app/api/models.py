"""Models, their versions, aliases and files."""

from datetime import UTC, datetime
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Depends, Path, Query, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel

from app.api.auth import require
from app.api.examples import ALIAS
from app.api.json_route import JsonRoute
from app.api.paging import Limit, Page, page_of
from app.api.services import Deps
from app.errors import CorruptVersion
from app.specs.base import Name, Spec
from app.storage.models import Version

router = APIRouter(prefix="/models", tags=["models"], route_class=JsonRoute)
log = structlog.get_logger()
read, write = [Depends(require("read"))], [Depends(require("train"))]

ModelName = Annotated[Name, Path()]
Selector = Annotated[str, Path(min_length=1, max_length=64, description="a version's number or an alias")]


VersionCursor = Annotated[str | None, Query(pattern=r"^[1-9][0-9]{0,18}$", description="`next` of the page before")]


class VersionOut(BaseModel):
    """A published version. `signature`: what goes in and comes out; `spec`: what it can be trained again from."""

    model: str
    version: str
    created_at: datetime
    job_id: str
    num_parameters: int
    num_bytes: int
    signature: dict[str, Any]
    metrics: dict[str, Any]
    aliases: list[str]
    spec: dict[str, Any]
    files: dict[str, str]


class ModelOut(BaseModel):
    """A model: its newest version that can be read, and the numbers of all."""

    name: str
    versions: list[str]
    aliases: dict[str, str]
    newest: VersionOut


class AliasBody(Spec):
    version: str


class AliasOut(BaseModel):
    model: str
    alias: str
    version: str


@router.get("", summary="List models", dependencies=read)
def list_models(deps: Deps, limit: Limit = 50, after: str | None = None) -> Page[ModelOut]:
    """Models by name; one of which no version can be read is named in the log only."""
    names = [name for name in deps.models.names() if after is None or name > after]
    found = [model for name in names[:limit] if (model := _model_out(deps, name)) is not None]
    return Page(data=found, next=names[limit - 1] if len(names) > limit else None)


@router.get("/{name}", summary="One model", dependencies=read)
def get_model(name: ModelName, deps: Deps) -> ModelOut:
    found = _model_out(deps, name)
    if found is None:
        raise CorruptVersion(f"no version of model {name!r} can be read")
    return found


@router.get("/{name}/versions", summary="List versions, newest first", dependencies=read)
def list_versions(name: ModelName, deps: Deps, limit: Limit = 50, after: VersionCursor = None) -> Page[VersionOut]:
    numbers = [number for number in reversed(deps.models.versions(name)) if after is None or int(number) < int(after)]
    found = [version_out(deps, deps.models.get(name, number)) for number in numbers[:limit]]
    return page_of(found, more=len(numbers) > limit, cursor=lambda version: version.version)


@router.get("/{name}/versions/{version}", summary="One version", dependencies=read)
def get_version(name: ModelName, version: Selector, deps: Deps) -> VersionOut:
    return version_out(deps, deps.models.get(name, version))


@router.get(
    "/{name}/versions/{version}/files/{file}", summary="Download a file", dependencies=read, response_class=FileResponse
)
def get_file(name: ModelName, version: Selector, file: str, deps: Deps) -> FileResponse:
    """`model.safetensors`, `config.json`, `metrics.json` or `history.jsonl`."""
    return FileResponse(deps.models.file(name, version, file), filename=file)


@router.put(
    "/{name}/aliases/{alias}",
    summary="Point an alias at a version",
    dependencies=write,
    openapi_extra={"requestBody": {"content": {"application/json": {"examples": ALIAS}}}},
)
def put_alias(name: ModelName, alias: Annotated[Name, Path()], body: AliasBody, deps: Deps) -> AliasOut:
    deps.models.set_alias(name, alias, body.version)
    return AliasOut(model=name, alias=alias, version=body.version)


@router.delete("/{name}/aliases/{alias}", summary="Delete an alias", dependencies=write, status_code=204)
def delete_alias(name: ModelName, alias: Annotated[Name, Path()], deps: Deps) -> Response:
    deps.models.delete_alias(name, alias)
    return Response(status_code=204)


@router.delete("/{name}", summary="Delete a model", dependencies=write, status_code=204)
def delete_model(name: ModelName, deps: Deps) -> Response:
    """All versions; 409 while an alias points at one."""
    deps.models.delete(name)
    deps.predictor.cache.unload(name)
    return Response(status_code=204)


@router.delete("/{name}/versions/{version}", summary="Delete a version", dependencies=write, status_code=204)
def delete_version(name: ModelName, version: Selector, deps: Deps) -> Response:
    """409 while an alias points at it."""
    number = deps.models.resolve(name, version)
    deps.models.delete(name, number)
    deps.predictor.cache.unload(name, number)
    return Response(status_code=204)


def _model_out(deps: Deps, name: str) -> ModelOut | None:
    """A model, or None where no version of it can be read."""
    versions = deps.models.versions(name)
    for number in reversed(versions):
        try:
            newest = version_out(deps, deps.models.get(name, number))
        except CorruptVersion as error:
            log.warning("a version can't be read", model=name, version=number, detail=error.detail)
        else:
            return ModelOut(name=name, versions=versions, aliases=deps.models.aliases(name), newest=newest)
    return None


def version_out(deps: Deps, version: Version) -> VersionOut:
    config, base = version.config, f"/models/{version.model}/versions/{version.version}/files"
    return VersionOut(
        model=version.model,
        version=version.version,
        created_at=datetime.fromtimestamp(config["created_at"], UTC),
        job_id=config["job_id"],
        num_parameters=config["num_parameters"],
        num_bytes=(version.path / "model.safetensors").stat().st_size,
        signature=config["signature"],
        metrics=version.metrics,
        aliases=[alias for alias, number in deps.models.aliases(version.model).items() if number == version.version],
        spec=config["spec"],
        files={file: f"{base}/{file}" for file in (*config["digests"], "config.json")},
    )
