"""Versions as archives: from one service's models/ to another's."""

import secrets
from pathlib import Path as FilePath
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field

from app.api.auth import require
from app.api.datasets import receive
from app.api.models import VersionOut, version_out
from app.api.services import Deps, Services
from app.errors import Conflict, InvalidInput
from app.serving.served_model import ServedModel
from app.specs.base import Name
from app.storage.models import UPLOAD
from app.storage.version import Version
from app.storage.version_archive import pack_version, read_unpacked, unpack_version

router = APIRouter(prefix="/models/{name}/versions", tags=["models"])
read, write = [Depends(require("read"))], [Depends(require("train"))]

ModelName = Annotated[Name, Path(examples=["line"])]
Selector = Annotated[str, Field(min_length=1, max_length=64, description="a version's number or an alias")]

MAX_READERS = 2  # more archives than these arrive together, but wait to be read, each with its memory
_readers = CapacityLimiter(MAX_READERS)
MEDIA_TYPES = ("application/x-tar", "application/gzip", "application/zip", "application/octet-stream")
_ARCHIVE: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_BODY = {
    "requestBody": {
        "required": True,
        "description": "a tar, tar.gz or zip of a version's folder",
        "content": dict.fromkeys(MEDIA_TYPES, _ARCHIVE),
    }
}


def max_archive_bytes(max_parameters: int) -> int:
    """What the weights of the largest network take, and some for the rest."""
    return 8 * max_parameters + 2**30


@router.post("", summary="Upload a version", status_code=201, dependencies=write, openapi_extra=_BODY)
async def post_version(name: ModelName, request: Request, response: Response, deps: Deps) -> VersionOut:
    """Publish a version that another service trained; it becomes the newest.

    Its files must be those whose digests its config.json has, and it must load and answer; until then nobody sees it.
    """
    upload_id = f"{UPLOAD}{secrets.token_hex(8)}"
    try:
        folder = await to_thread.run_sync(deps.models.staging, f"{upload_id}-archive")
        with (folder / "archive").open("wb") as file:
            await receive(request, file.write)
        published = await to_thread.run_sync(_publish, deps, name, upload_id, folder / "archive", limiter=_readers)
    finally:
        for part in (upload_id, f"{upload_id}-archive"):
            await to_thread.run_sync(deps.models.discard, part)
    response.headers["Location"] = f"/models/{name}/versions/{published.version}"
    return version_out(deps, published)


@router.get(
    "/{version}/archive",
    summary="Download a version",
    dependencies=read,
    response_class=Response,
    responses={200: {"content": {"application/x-tar": _ARCHIVE}}},
)
def get_archive(name: ModelName, version: Selector, deps: Deps) -> Response:
    """A tar of its files, as `POST /models/{name}/versions` takes it."""
    found = deps.models.get(name, version)
    with deps.models.reading(name, found.version):
        num_bytes, blocks = pack_version(found)
    headers = {
        "Content-Length": str(num_bytes),
        "Content-Disposition": f'attachment; filename="{name}-{found.version}.tar"',
    }
    return StreamingResponse(blocks, headers=headers, media_type="application/x-tar")


def _publish(deps: Services, name: str, upload_id: str, archive: FilePath) -> Version:
    folder = deps.models.staging(upload_id)
    unpack_version(archive, folder, max_archive_bytes(deps.settings.max_parameters))
    _check_answers(read_unpacked(folder, name))
    while True:
        version = deps.models.next_version(name)
        try:
            deps.models.publish(upload_id, name, version)
        except Conflict:  # a job was faster; its version has that number, and the next is ours
            continue
        return deps.models.get(name, version)


def _check_answers(version: Version) -> None:
    """Load it and let it predict a row, as before it is first served.

    Raises:
        InvalidInput
    """
    try:
        ServedModel.load(version, "cpu")
    except OSError:
        raise
    except Exception as error:  # a stranger's config can break a network in any way; that is the upload's fault
        raise InvalidInput(f"the version does not load: {error}", code="invalid_version") from error
