"""`/jobs`: what became of a `POST /train`, and what may be asked of it."""

import asyncio
import csv
import io
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from pydantic import BaseModel, ConfigDict, Field

from app.api.auth import require
from app.api.paging import Limit, Page, page_of
from app.api.parameters import known_parameters
from app.api.services import Deps, Services
from app.errors import InvalidInput, NotFound
from app.jobs.feed import EventFeed
from app.jobs.queue import TERMINAL, JobQueue, State
from app.specs.base import Name
from app.storage import jobs as rows

router = APIRouter(prefix="/jobs", tags=["jobs"])
read, write = [Depends(require("read"))], [Depends(require("train"))]
CONFLICT: dict[int | str, dict[str, Any]] = {409: {}}  # what `app.api.openapi` says of it

JobId = Annotated[str, Path(examples=["019aaf3bd1c87bb1a4c9f5e2d3a60718"])]


class Progress(BaseModel):
    """How far a run is. `fraction` is that of the nearest known end, and moves with the steps; `num_epochs` is null
    where there is no limit.
    """

    model_config = ConfigDict(extra="allow")

    epoch: int = 0
    num_epochs: int | None = None
    step: int = 0
    fraction: float = 0.0
    eta_seconds: float | None = None


class JobError(BaseModel):
    """Why a job failed: a stable word, and a sentence that helps."""

    code: str
    detail: str


class Links(BaseModel):
    """Where to go from here; `model` is there once the version is."""

    self: str
    events: str
    history: str
    model: str | None = None


class Job(BaseModel):
    """A training run. `spec` has every default filled in; `queue_position` 1 is the next to start, and `wait_reason`
    says why it does not, where it is not that enough others run.

    `submitted_by` is the id of the key that it came with; `request_id` is that of the request, and in the log lines
    of both.
    """

    id: str
    state: State
    terminal: bool
    model: str
    version: str | None
    spec: dict[str, Any]
    progress: Progress
    metrics: dict[str, Any]
    stop_reason: str | None
    warnings: list[str]
    error: JobError | None
    queue_position: int | None
    wait_reason: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    submitted_by: str | None
    request_id: str | None
    links: Links


class Event(BaseModel):
    """One thing that happened. `data` is that of the event type: `state`, `progress`, `metrics` or `warning`."""

    id: int
    type: str
    data: dict[str, Any]
    created_at: datetime


class History(BaseModel):
    """The metrics of each epoch so far."""

    data: list[dict[str, Any]] = Field(examples=[[{"epoch": 1, "step": 8, "train_loss": 0.9, "val_loss": 1.0}]])


def job_response(job: rows.Job) -> Job:
    """The wire form of a job."""
    version = job.version if job.state == "succeeded" else None  # reserved is not yet published
    path = f"/jobs/{job.id}"
    return Job(
        id=job.id,
        state=job.state,
        terminal=job.state in TERMINAL,
        model=job.model,
        version=version,
        spec=job.spec,
        progress=Progress(**job.progress or {}),
        metrics=job.metrics or {},
        stop_reason=job.stop_reason,
        warnings=job.warnings,
        error=JobError(**job.error) if job.error else None,
        queue_position=job.queue_position,
        wait_reason=job.wait_reason,
        created_at=_time(job.created_at),
        started_at=_time(job.started_at) if job.started_at else None,
        finished_at=_time(job.finished_at) if job.finished_at else None,
        submitted_by=job.submitted_by,
        request_id=job.request_id,
        links=Links(
            self=path,
            events=f"{path}/events",
            history=f"{path}/history",
            model=f"/models/{job.model}/versions/{version}" if version else None,
        ),
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


# ---- jobs


@router.get("", summary="List jobs", dependencies=[*read, Depends(known_parameters)])
def list_jobs(
    deps: Deps,
    state: State | None = None,
    model: Name | None = None,
    limit: Limit = 50,
    after: Annotated[str | None, Query(description="`next` of the page before")] = None,
) -> Page[Job]:
    """All jobs, newest first, or those in a state or of a model."""
    found, following = deps.jobs.page(state=state, model=model, limit=limit, after=after)
    return Page(data=[job_response(job) for job in found], next=following)


@router.get("/{job_id}", summary="Describe a job", dependencies=read)
def get_job(job_id: JobId, deps: Deps) -> Job:
    """One job."""
    return job_response(deps.jobs.get(job_id))


@router.post("/{job_id}/cancel", summary="Cancel a job", status_code=202, dependencies=write, responses=CONFLICT)
def cancel_job(job_id: JobId, deps: Deps) -> Job:
    """Stop for good: at once where the job waits; a running one is `cancelling` until its worker has ended."""
    return job_response(deps.jobs.cancel(job_id))


@router.post("/{job_id}/pause", summary="Pause a job", status_code=202, dependencies=write, responses=CONFLICT)
def pause_job(job_id: JobId, deps: Deps) -> Job:
    """Stop for now. A running job is `pausing` until its checkpoint is written."""
    return job_response(deps.jobs.pause(job_id))


@router.post("/{job_id}/resume", summary="Resume a job", status_code=202, dependencies=write, responses=CONFLICT)
def resume_job(job_id: JobId, deps: Deps) -> Job:
    """Put a paused job back in its place in the queue; it goes on from its checkpoint."""
    return job_response(deps.jobs.resume(job_id))


@router.delete("/{job_id}", summary="Delete a finished job", status_code=204, dependencies=write, responses=CONFLICT)
def delete_job(job_id: JobId, deps: Deps) -> None:
    """Forget a finished job, its events and its history. The version that it published stays."""
    deps.jobs.delete(job_id)


# ---- what happens in them

_EVENT_STREAM = {"schema": {"type": "string"}, "example": 'event: state\ndata: {"state":"running"}\nid: 17\n\n'}


@router.get(
    "/{job_id}/events",
    summary="Follow a job",
    dependencies=read,
    responses={
        200: {"model": Page[Event], "content": {"text/event-stream": _EVENT_STREAM}},
        204: {"description": "To an EventSource: the job has ended, and there are no more events"},
    },
)
async def get_events(
    request: Request,
    job_id: JobId,
    deps: Deps,
    limit: Limit = 50,
    after: Annotated[str | None, Query(description="the id of the last event that you have")] = None,
    last_event_id: Annotated[str | None, Header(description="the same, as an EventSource sends it")] = None,
) -> Response:
    """A page of events, or, with `Accept: text/event-stream`, all of them as they happen, until the job has ended.

    An EventSource that comes back after the end gets 204, which tells it not to come again.
    """
    position = _event_id(last_event_id or after or "0")
    job = await asyncio.to_thread(deps.jobs.get, job_id)
    if "text/event-stream" not in request.headers.get("accept", ""):
        events = await asyncio.to_thread(deps.jobs.events, job_id, after=position, limit=limit + 1)
        return _json(_event_page(events, limit))
    if (
        last_event_id
        and job.state in TERMINAL
        and not await asyncio.to_thread(_has_events, deps.jobs, job_id, position)
    ):
        return Response(status_code=204)
    return EventSourceResponse(_stream(deps.feed, job_id, position), headers={"Cache-Control": "no-store"})


def _has_events(queue: JobQueue, job_id: str, after: int) -> bool:
    return bool(queue.events(job_id, after=after, limit=1))


def _event_page(events: list[rows.Event], limit: int) -> Page[Event]:
    data = [
        Event(id=event.id, type=event.type, data=event.data, created_at=_time(event.created_at)) for event in events
    ]
    return page_of(data[:limit], more=len(data) > limit, cursor=lambda event: str(event.id))


async def _stream(feed: EventFeed, job_id: str, after: int) -> AsyncIterator[bytes]:
    async with aclosing(feed.follow(job_id, after=after)) as batches:
        async for events in batches:
            yield b"".join(_sse(event) for event in events) or KEEPALIVE_COMMENT


def _sse(event: rows.Event) -> bytes:
    return format_sse_event(data_str=orjson.dumps(event.data).decode(), event=event.type, id=str(event.id))


def _event_id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InvalidInput(f"{text!r} is not the id of an event; ids are whole numbers", code="invalid_event_id")
    return int(text)


@router.get(
    "/{job_id}/history",
    summary="Metrics per epoch",
    dependencies=read,
    responses={200: {"model": History, "content": {"text/csv": {"schema": {"type": "string"}}}}},
)
def get_history(request: Request, job_id: JobId, deps: Deps) -> Response:
    """The metrics of each epoch so far, as JSON or, with `Accept: text/csv`, as a table."""
    history = _history(deps, job_id)
    if "text/csv" in request.headers.get("accept", ""):
        return Response(_csv(history), media_type="text/csv")
    return _json(History(data=history))


def _history(deps: Services, job_id: str) -> list[dict[str, Any]]:
    """From the job's events, or, where the first of these are not kept any more, from the version that it published."""
    history, job = deps.jobs.history(job_id), deps.jobs.get(job_id)
    if job.state == "succeeded" and job.version and (not history or history[0]["epoch"] > 1):
        with suppress(NotFound), deps.models.open(job.model, job.version, "history.jsonl") as lines:
            return [orjson.loads(line) for line in lines]
    return history


def _csv(history: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    names = dict.fromkeys(name for row in history for name in row)
    writer = csv.DictWriter(text, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")
