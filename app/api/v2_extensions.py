"""Triton's further calls, answered as by a server with no tracing and no shared memory; not in OpenAPI."""

from typing import Any

from fastapi import APIRouter, Depends, Request

from app.api.auth import require
from app.api.services import Deps
from app.errors import InvalidInput

router = APIRouter(prefix="/v2", include_in_schema=False)
read, admin = [Depends(require("read"))], [Depends(require("admin"))]

REFUSALS = {
    "/logging": "logging is set by GRADSERVE_LOG_LEVEL when the service starts",
    "/trace/setting": "there is no tracing to be set by this protocol",
    "/models/{name}/trace/setting": "there is no tracing to be set by this protocol",
    "/systemsharedmemory/region/{region}/register": "shared memory is not spoken here; send tensors as binary data",
    "/cudasharedmemory/region/{region}/register": "shared memory is not spoken here; send tensors as binary data",
}


@router.get("/logging", dependencies=read)
async def log_settings(deps: Deps) -> dict[str, Any]:
    level = ("debug", "info", "warning", "error").index(deps.settings.log_level)
    return {
        "log_file": "",
        "log_info": level <= 1,
        "log_warning": level <= 2,
        "log_error": True,
        "log_verbose_level": int(level == 0),
        "log_format": "default",
    }


@router.get("/trace/setting", dependencies=read)
@router.get("/models/{name}/trace/setting", dependencies=read)
async def trace_settings() -> dict[str, Any]:
    return {"trace_level": ["OFF"], "trace_rate": "0", "trace_count": "0", "log_frequency": "0", "trace_file": ""}


@router.get("/systemsharedmemory/status", dependencies=read)
@router.get("/systemsharedmemory/region/{region}/status", dependencies=read)
@router.get("/cudasharedmemory/status", dependencies=read)
@router.get("/cudasharedmemory/region/{region}/status", dependencies=read)
async def shared_memory() -> list[dict[str, Any]]:
    """No region is registered."""
    return []


@router.post("/systemsharedmemory/unregister", dependencies=read)
@router.post("/systemsharedmemory/region/{region}/unregister", dependencies=read)
@router.post("/cudasharedmemory/unregister", dependencies=read)
@router.post("/cudasharedmemory/region/{region}/unregister", dependencies=read)
async def forget_shared_memory() -> dict[str, Any]:
    return {}


async def refuse(request: Request) -> None:
    raise InvalidInput(REFUSALS[request.scope["route"].path.removeprefix("/v2")], code="unsupported_extension")


for path in REFUSALS:
    router.add_api_route(path, refuse, methods=["POST"], dependencies=admin)
