"""What those who run the service look at."""

import os
import platform
import shutil
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from app import __version__
from app.api.auth import require
from app.api.services import Deps
from app.errors import Unavailable
from app.learning.devices import devices

router = APIRouter(tags=["operations"])
MIN_FREE_BYTES = 16 * 2**20


class Health(BaseModel):
    status: str = "ok"


class Info(BaseModel):
    """Versions of the parts, devices with their memory in bytes, and the limits that the settings state."""

    version: str
    versions: dict[str, str]
    devices: list[dict[str, Any]]
    num_cores: int
    limits: dict[str, int | float]


@router.get("/healthz", summary="The process is alive")
async def healthz() -> Health:
    return Health()


@router.get("/readyz", summary="Ready to train and to predict")
def readyz(deps: Deps) -> Health:
    """The database answers, and it and both folders can be written to."""
    deps.jobs.counts()
    settings = deps.settings
    database = [] if settings.database_url else [settings.data_dir / "gradserve.db"]
    for place in (settings.data_dir, settings.models_dir, *database):
        if not os.access(place, os.W_OK):
            raise Unavailable(f"{place} can't be written to")
        if shutil.disk_usage(place).free < MIN_FREE_BYTES:
            raise Unavailable(f"the disk of {place} is full")
    return Health()


@router.get("/info", summary="Versions, devices, limits", dependencies=[Depends(require("read"))])
def info(deps: Deps) -> Info:
    settings = deps.settings
    limits = {name: value for name, value in settings.model_dump().items() if name.startswith("max_")}
    parts = {name: version(name) for name in ("torch", "fastapi", "polars", "pydantic")}
    return Info(
        version=__version__,
        versions={"python": platform.python_version(), **parts},
        devices=devices(),
        num_cores=os.cpu_count() or 1,
        limits=limits,
    )
