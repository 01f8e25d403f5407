"""Models, their versions, aliases and files."""

import os
from contextlib import suppress
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from app.api.auth import require
from app.api.json_route import JsonRoute
from app.api.paging import Limit, Page, page_of
from app.api.services import Deps
from app.errors import CorruptVersion, ModelNotFound
from app.specs.alias import Alias, Canary, Shadow
from app.specs.base import Name
from app.storage.version import Version

router = APIRouter(prefix="/models", tags=["models"], route_class=JsonRoute)
read, write = [Depends(require("read"))], [Depends(require("train"))]

ModelName = Annotated[Name, Path()]
AliasName = Annotated[Name, Path()]
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


def _is_none(value: object) -> bool:
    return value is None


class AliasOut(BaseModel):
    """Where an alias points; `canary` and `shadow` only where it has one."""

    model: str
    alias: str
    version: str
    canary: Annotated[Canary | None, Field(exclude_if=_is_none)] = None
    shadow: Annotated[Shadow | None, Field(exclude_if=_is_none)] = None


@router.get("", summary="List models", dependencies=read)
def list_models(deps: Deps, limit: Limit = 50, after: str | None = None) -> Page[ModelOut]:
    """Models by name; one of which no version can be read is named in the log only."""
    names = [name for name in deps.models.names() if after is None or name > after]
    found = []
    for name in names[:limit]:
        with suppress(CorruptVersion, ModelNotFound):  # it can't be read, or was just deleted
            found.append(_model_out(deps, name))
    return Page(data=found, next=names[limit - 1] if len(names) > limit else None)


@router.get("/{name}", summary="One model", dependencies=read)
def get_model(name: ModelName, deps: Deps) -> ModelOut:
    return _model_out(deps, name)


@router.get("/{name}/versions", summary="List versions, newest first", dependencies=read)
def list_versions(name: ModelName, deps: Deps, limit: Limit = 50, after: VersionCursor = None) -> Page[VersionOut]:
    """One that can't be read is named in the log only."""
    numbers = [number for number in reversed(deps.models.versions(name)) if after is None or int(number) < int(after)]
    found = [version_out(deps, version) for version in deps.models.readable(name, numbers[:limit])]
    return Page(data=found, next=numbers[limit - 1] if len(numbers) > limit else None)


@router.get("/{name}/versions/{version}", summary="One version", dependencies=read)
def get_version(name: ModelName, version: Selector, deps: Deps) -> VersionOut:
    return version_out(deps, deps.models.get(name, version))


MEDIA_TYPES = {"safetensors": "application/octet-stream", "json": "application/json", "jsonl": "application/x-ndjson"}


class OpenFileResponse(FileResponse):
    """An answer that has begun is whole, though the file be deleted meanwhile."""

    def __init__(self, file: BufferedReader) -> None:
        self._file, name = file, FilePath(file.name).name
        super().__init__(
            f"/dev/fd/{file.fileno()}",
            filename=name,
            media_type=MEDIA_TYPES[name.rpartition(".")[2]],
            stat_result=os.fstat(file.fileno()),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_unless_refused(message: Message) -> None:
            if message.get("status") in (400, 416):  # in plain text
                size = self.headers["Content-Length"]
                raise HTTPException(
                    416, f"there is no such range; the file has {size} bytes", {"Content-Range": f"bytes */{size}"}
                )
            await send(message)

        with self._file:
            await super().__call__(scope, receive, send_unless_refused)


_FILES: dict[str, Any] = {
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    "application/json": {"schema": {"type": "object"}},
    "application/x-ndjson": {"schema": {"type": "string"}},
}


@router.get(
    "/{name}/versions/{version}/files/{file}",
    summary="Download a file",
    dependencies=read,
    response_class=FileResponse,
    responses={
        200: {"content": _FILES},
        206: {"content": _FILES, "description": "The `Range` that was asked for"},
        416: {},
    },
)
def get_file(name: ModelName, version: Selector, file: str, deps: Deps) -> FileResponse:
    """`model.safetensors`, `config.json`, `metrics.json` or `history.jsonl`."""
    return OpenFileResponse(deps.models.open(name, version, file))


@router.get("/{name}/aliases", summary="List aliases", dependencies=read)
def list_aliases(name: ModelName, deps: Deps, limit: Limit = 50, after: str | None = None) -> Page[AliasOut]:
    deps.models.versions(name)
    known = sorted((alias, to) for alias, to in deps.models.aliases(name).items() if after is None or alias > after)
    found = [alias_out(name, *item) for item in known[:limit]]
    return page_of(found, more=len(known) > limit, cursor=lambda alias: alias.alias)


@router.get("/{name}/aliases/{alias}", summary="One alias", dependencies=read)
def get_alias(name: ModelName, alias: AliasName, deps: Deps) -> AliasOut:
    return alias_out(name, alias, deps.models.get_alias(name, alias))


@router.put(
    "/{name}/aliases/{alias}",
    summary="Point an alias at a version",
    dependencies=write,
)
def put_alias(name: ModelName, alias: AliasName, body: Alias, deps: Deps) -> AliasOut:
    """The whole of it: a canary or a shadow that the body does not have ends.

    A `canary` answers its percentage of the predictions, the same for requests with the same `X-Routing-Key`. A
    `shadow` is asked after the answer, and compared with it in `/metrics`.
    """
    deps.models.set_alias(name, alias, body)
    return alias_out(name, alias, body)


@router.delete("/{name}/aliases/{alias}", summary="Delete an alias", dependencies=write, status_code=204)
def delete_alias(name: ModelName, alias: AliasName, deps: Deps) -> Response:
    deps.models.delete_alias(name, alias)
    return Response(status_code=204)


@router.delete("/{name}", summary="Delete a model", dependencies=write, status_code=204, responses={409: {}})
def delete_model(name: ModelName, deps: Deps) -> Response:
    """All versions; 409 while an alias points at one."""
    return _delete(deps, name)


@router.delete(
    "/{name}/versions/{version}", summary="Delete a version", dependencies=write, status_code=204, responses={409: {}}
)
def delete_version(name: ModelName, version: Selector, deps: Deps) -> Response:
    """409 while an alias points at it, or has it as its canary or its shadow.

    Jobs that begin with it keep its files.
    """
    return _delete(deps, name, deps.models.resolve(name, version))


def _delete(deps: Deps, name: str, version: str | None = None) -> Response:
    deps.models.delete(name, version)
    deps.predictor.cache.refresh()
    deps.models.empty_trash(deps.jobs.versions_in_use)
    return Response(status_code=204)


def alias_out(name: str, alias: str, to: Alias) -> AliasOut:
    return AliasOut(model=name, alias=alias, version=to.version, canary=to.canary, shadow=to.shadow)


def _model_out(deps: Deps, name: str) -> ModelOut:
    """Raises CorruptVersion where no version can be read."""
    aliases = {alias: to.version for alias, to in _aliases_of(deps, name).items()}
    newest = version_out(deps, deps.models.newest(name))
    return ModelOut(name=name, versions=deps.models.versions(name), aliases=aliases, newest=newest)


def _aliases_of(deps: Deps, name: str) -> dict[str, Alias]:
    """To be shown beside versions, which can be looked at without them; the log has why there are none."""
    try:
        return deps.models.aliases(name)
    except CorruptVersion:
        return {}


def version_out(deps: Deps, version: Version) -> VersionOut:
    config, base = version.config, f"/models/{version.model}/versions/{version.version}/files"
    return VersionOut(
        model=version.model,
        version=version.version,
        created_at=datetime.fromtimestamp(config["created_at"], UTC),
        job_id=config["job_id"],
        num_parameters=config["num_parameters"],
        num_bytes=version.num_bytes,
        signature=config["signature"],
        metrics=version.metrics,
        aliases=[alias for alias, to in _aliases_of(deps, version.model).items() if to.version == version.version],
        spec=config["spec"],
        files={file: f"{base}/{file}" for file in (*config["digests"], "config.json")},
    )
