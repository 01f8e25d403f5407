"""Versions in other programs' formats."""

from typing import Annotated, Any, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import Field

from app.api.auth import require
from app.api.services import Deps
from app.serving.onnx_process import export_apart
from app.specs.base import Name

router = APIRouter(prefix="/models/{name}/versions/{version}", tags=["models"])

_exporters = CapacityLimiter(1)  # each takes the memory of a process with torch and onnx
_FILE: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


@router.get(
    "/export",
    summary="Export a version",
    dependencies=[Depends(require("read"))],
    response_class=Response,
    responses={200: {"content": _FILE}},
)
async def export(
    name: Annotated[Name, Path(examples=["line"])],
    version: Annotated[str, Field(min_length=1, max_length=64, description="a version's number or an alias")],
    deps: Deps,
    form: Annotated[Literal["onnx"], Query(alias="format")] = "onnx",
) -> Response:
    """ONNX: columns in, as `/v2` names them, and predictions out; features are a part of it.

    It is sent once onnxruntime has answered as this service does. Needs the extra `onnx`; takes a few seconds.
    """
    found = await to_thread.run_sync(deps.models.get, name, version)
    with deps.models.reading(name, found.version):
        content = await to_thread.run_sync(export_apart, deps.models.root, name, found.version, limiter=_exporters)
    disposition = f'attachment; filename="{name}-{found.version}.{form}"'
    return Response(content, headers={"Content-Disposition": disposition}, media_type="application/octet-stream")
