"""The pages a person looks at. All they load comes from this service; no script stands in a page itself."""

from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

from app import web

FOLDER = Path(web.__file__).parent
router = APIRouter(include_in_schema=False)


def install(app: FastAPI) -> None:
    app.include_router(router)
    app.mount("/web", StaticFiles(directory=FOLDER), name="web")


@router.get("/")
def root() -> RedirectResponse:
    return RedirectResponse("/docs")


@router.get("/docs")
def docs() -> FileResponse:
    """Every call, with an example to run, by swagger-ui."""
    return FileResponse(FOLDER / "docs.html")
