"""The pages a person looks at. All they load comes from this service; no script stands in a page itself."""

from functools import cache
from pathlib import Path

import fastapi_offline
from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import FileResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

from app import web

FOLDER = Path(web.__file__).parent
REDOC = Path(fastapi_offline.__file__).parent / "static" / "redoc.standalone.js"
REDOC_LOGO = b"https://cdn.redoc.ly/redoc/logo-mini.svg"
router = APIRouter(include_in_schema=False)


def install(app: FastAPI) -> None:
    app.include_router(router)
    app.mount("/web", StaticFiles(directory=FOLDER), name="web")


@router.get("/")
@router.get("/docs/")
def root() -> RedirectResponse:
    return RedirectResponse("/docs")


@router.get("/docs")
def docs() -> FileResponse:
    """Every call, with an example to run, by swagger-ui."""
    return FileResponse(FOLDER / "docs.html")


@router.get("/redoc")
def redoc() -> FileResponse:
    """Every call, to read, by redoc."""
    return FileResponse(FOLDER / "redoc.html")


@router.get("/web/redoc.js")
def redoc_script() -> Response:
    return Response(_redoc(), media_type="text/javascript")


@cache
def _redoc() -> bytes:
    """redoc's script, with this service's icon where it would load its makers' logo from them."""
    return REDOC.read_bytes().replace(REDOC_LOGO, b"static-offline-docs/favicon.png")
