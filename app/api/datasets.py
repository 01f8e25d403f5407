"""`/datasets`: tables that stay, under names."""

from datetime import datetime
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from app.api.auth import require
from app.api.services import Deps
from app.errors import TooLarge, Unparseable
from app.specs.table import ColumnProfile
from app.storage.datasets import Dataset
from app.storage.uploads import Upload

router = APIRouter(prefix="/datasets", tags=["datasets"])
read, write = [Depends(require("read"))], [Depends(require("train"))]

MAX_PARSERS = 2
_parsers = CapacityLimiter(
    MAX_PARSERS
)  # uploads that arrive together are parsed one after the other, not all in memory

DatasetName = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", examples=["penguins"])]

_CSV = "species,bill_length_mm,sex\nAdelie,39.1,male\nAdelie,39.5,female\nGentoo,46.1,NA\n"
_NDJSON = '{"species": "Adelie", "bill_length_mm": 39.1}\n{"species": "Gentoo", "bill_length_mm": null}\n'
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BODY = {
    "requestBody": {
        "required": True,
        "description": "A table: CSV or TSV (UTF-8, the first line has the names), NDJSON, Parquet or Arrow IPC, each also "
        "gzipped. Without a Content-Type that tells, the bytes do.",
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


class DatasetAnswer(BaseModel):
    """A named table and what its columns hold. `digest` is that of the uploaded bytes, `num_bytes` their number."""

    name: str
    digest: str
    num_rows: int
    num_bytes: int
    columns: list[ColumnProfile]
    created_at: datetime


class DatasetPage(BaseModel):
    """Datasets by name; `next` is the `after` of the next page."""

    data: list[DatasetAnswer]
    next: str | None


class RowPage(BaseModel):
    """The first rows, as objects by column name."""

    data: list[dict[str, Any]]
    next: str | None = None


@router.put(
    "/{name}",
    status_code=201,
    dependencies=write,
    openapi_extra=_BODY,
    responses={200: {"model": DatasetAnswer, "description": "Replaced"}},
)
async def put_dataset(name: DatasetName, request: Request, response: Response, deps: Deps) -> DatasetAnswer:
    """Store a table under a name, new or taken from another: `curl -T penguins.csv HOST/datasets/penguins`.

    Columns are typed by all of their values. Jobs that use a replaced dataset keep its bytes.
    """
    _check_length(request, deps.datasets.max_bytes)
    headers = request.headers
    with deps.datasets.upload(headers.get("content-type", ""), headers.get("content-encoding", "")) as upload:
        await _receive(request, upload)
        dataset, created = await to_thread.run_sync(deps.datasets.put_upload, name, upload, limiter=_parsers)
    response.status_code = 201 if created else 200
    response.headers["Location"] = f"/datasets/{name}"
    return _answer(dataset)


@router.get("", dependencies=read)
def list_datasets(
    deps: Deps,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    after: Annotated[str | None, Query(description="`next` of the page before")] = None,
) -> DatasetPage:
    """All datasets, by name."""
    found, following = deps.datasets.list(limit, after)
    return DatasetPage(data=[_answer(dataset) for dataset in found], next=following)


@router.get("/{name}", dependencies=read)
def get_dataset(name: DatasetName, deps: Deps) -> DatasetAnswer:
    """One dataset and what its columns hold."""
    return _answer(deps.datasets.get(name))


@router.get("/{name}/rows", dependencies=read)
def get_rows(name: DatasetName, deps: Deps, limit: Annotated[int, Query(ge=1, le=200)] = 50) -> RowPage:
    """The first rows. Missing values are null; datetimes are ISO 8601 in UTC."""
    return RowPage(data=deps.datasets.rows(name, limit))


@router.delete("/{name}", status_code=204, dependencies=write)
def delete_dataset(name: DatasetName, deps: Deps) -> None:
    """Forget a dataset. Jobs that use it keep its bytes."""
    deps.datasets.delete(name)


def _check_length(request: Request, max_bytes: int) -> None:
    """Raises TooLarge before a body is read that says itself that it is."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise TooLarge(f"The body has {length} bytes; a dataset may have at most {max_bytes}.")


async def _receive(request: Request, upload: Upload) -> None:
    """The body onto the disk, with a chunk of it in memory. Hashing and writing happen in threads."""
    try:
        async for chunk in request.stream():
            await to_thread.run_sync(upload.write, chunk)
    except ClientDisconnect as error:
        raise Unparseable("The body ended before it was complete.") from error


def _answer(dataset: Dataset) -> DatasetAnswer:
    return DatasetAnswer.model_validate(vars(dataset))
