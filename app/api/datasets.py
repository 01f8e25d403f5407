"""`/datasets`: tables that stay, under names."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from app.api.auth import require
from app.api.paging import Limit, Page
from app.api.services import Deps
from app.errors import TooLarge, Unparseable
from app.specs.base import Name
from app.specs.table import ColumnProfile
from app.storage.datasets import Dataset

NO_LIMIT = 2**62  # the framework's limit is answered in plain text; the store's, which counts here, with a problem
router = APIRouter(prefix="/datasets", tags=["datasets"], max_body_size=NO_LIMIT)
read, write = [Depends(require("read"))], [Depends(require("train"))]

BLOCK_BYTES = 2**20
MAX_PARSERS = 2  # more uploads than these arrive together, but wait to be parsed, each with all cores and its memory
_parsers = CapacityLimiter(MAX_PARSERS)

DatasetName = Annotated[Name, Path(examples=["penguins"])]

_CSV = "species,bill_length_mm,sex\nAdelie,39.1,male\nAdelie,39.5,female\nGentoo,46.1,NA\n"
_NDJSON = '{"species": "Adelie", "bill_length_mm": 39.1}\n{"species": "Gentoo", "bill_length_mm": null}\n'
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BODY = {
    "requestBody": {
        "required": True,
        "description": "A table: CSV or TSV (UTF-8, the first line has the names), NDJSON, Parquet or Arrow IPC, "
        "each also gzipped. Without a Content-Type that tells, the bytes do. With `text/csv; header=absent` the first "
        "line is a row, and columns are named `x0`, `x1`, …",
        "content": {
            "text/csv": {"schema": {"type": "string"}, "example": _CSV},
            "text/tab-separated-values": {"schema": {"type": "string"}, "example": _CSV.replace(",", "\t")},
            "application/x-ndjson": {"schema": {"type": "string"}, "example": _NDJSON},
            "application/jsonl": {"schema": {"type": "string"}, "example": _NDJSON},
            "application/vnd.apache.parquet": _BINARY,
            "application/vnd.apache.arrow.file": _BINARY,
            "application/vnd.apache.arrow.stream": _BINARY,
            "application/gzip": _BINARY,
            "application/octet-stream": _BINARY,
        },
    }
}


class DatasetOut(BaseModel):
    """A named table and what its columns hold.

    `digest` is that of the uploaded bytes (and of `; header=absent`, where that was said), `num_bytes` their number.
    """

    name: str
    digest: str
    num_rows: int
    num_bytes: int
    columns: list[ColumnProfile]
    created_at: datetime


@router.put(
    "/{name}",
    summary="Upload a dataset",
    status_code=201,
    dependencies=write,
    openapi_extra=_BODY,
    responses={200: {"model": DatasetOut, "description": "Replaced"}},
)
async def put_dataset(name: DatasetName, request: Request, response: Response, deps: Deps) -> DatasetOut:
    """Store a table under a name, new or taken from another: `curl -T penguins.csv HOST/datasets/penguins`.

    Columns are typed by all of their values. Jobs that use a replaced dataset keep its bytes.
    """
    check_length(request, deps.datasets.max_bytes)
    headers = request.headers
    with deps.datasets.upload(headers.get("content-type", ""), headers.get("content-encoding", "")) as upload:
        await receive(request, upload.write)
        dataset, created = await to_thread.run_sync(deps.datasets.put_upload, name, upload, limiter=_parsers)
    response.status_code = 201 if created else 200
    response.headers["Location"] = f"/datasets/{name}"
    return _dataset_out(dataset)


@router.get("", summary="List datasets", dependencies=read)
def list_datasets(deps: Deps, limit: Limit = 50, after: str | None = None) -> Page[DatasetOut]:
    found, following = deps.datasets.list(limit, after)
    return Page(data=[_dataset_out(dataset) for dataset in found], next=following)


@router.get("/{name}", summary="One dataset", dependencies=read)
def get_dataset(name: DatasetName, deps: Deps) -> DatasetOut:
    return _dataset_out(deps.datasets.get(name))


@router.get("/{name}/rows", summary="First rows", dependencies=read)
def get_rows(name: DatasetName, deps: Deps, limit: Limit = 50) -> Page[dict[str, Any]]:
    """Objects by column name. Missing values are null; datetimes are ISO 8601 in UTC."""
    return Page(data=deps.datasets.rows(name, limit))


@router.delete("/{name}", summary="Delete a dataset", status_code=204, dependencies=write)
def delete_dataset(name: DatasetName, deps: Deps) -> None:
    """Jobs that use it keep its bytes."""
    deps.datasets.delete(name)


def check_length(request: Request, max_bytes: int) -> None:
    """Raises TooLarge before a body is read that says itself that it is."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise TooLarge(f"the body has {length} bytes; a dataset may have at most {max_bytes}")


async def receive(request: Request, write: Callable[[bytearray], object]) -> None:
    """The body to where it is written, with a block of it in memory. Threads write, so that the loop never waits."""
    block = bytearray()
    try:
        async for chunk in request.stream():
            block += chunk
            if len(block) >= BLOCK_BYTES:
                await to_thread.run_sync(write, block)
                block = bytearray()
    except ClientDisconnect as error:
        raise Unparseable("the body ended before it was complete") from error
    await to_thread.run_sync(write, block)


def _dataset_out(dataset: Dataset) -> DatasetOut:
    return DatasetOut.model_validate(vars(dataset))
