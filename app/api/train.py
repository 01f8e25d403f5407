"""`POST /train`: from a body to a job that survives."""

import hashlib
from contextlib import nullcontext
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import BaseModel

from app.api.auth import caller_of, require
from app.api.jobs import Job, job_response
from app.api.json_route import JsonRoute
from app.api.parameters import known_parameters
from app.api.services import Deps, Services
from app.api.warm_start import filled_in_from, find_start, go_on_from
from app.errors import InvalidInput, TooLarge
from app.learning.plan import Plan, plan
from app.specs.resolve import resolve
from app.specs.resolve_validation import check_validation
from app.specs.table import InputsData, RecordsData, StoredData, Table
from app.specs.training import TrainingSpec, ValidationDataset
from app.storage import jobs as rows
from app.storage.tables import frame_from_inputs, frame_from_records

router = APIRouter(
    tags=["train"], route_class=JsonRoute, dependencies=[Depends(require("train")), Depends(known_parameters)]
)


class DryRun(BaseModel):
    """What would be run, and what it would take."""

    spec: dict[str, Any]
    num_parameters: int
    memory_bytes: int
    seconds_per_epoch: float
    warnings: list[str]


@router.post(
    "/train",
    summary="Train a model",
    status_code=202,
    response_model=Job,
    responses={
        200: {"model": Job | DryRun, "description": "The finished job (`Prefer: wait=N`), or what a dry run says"}
    },
)
async def train(
    spec: TrainingSpec,
    request: Request,
    deps: Deps,
    dry_run: Annotated[bool, Query(description="resolve and estimate only; nothing is queued")] = False,
    prefer: Annotated[str | None, Header(description="`wait=10`: wait that many seconds for the end")] = None,
    idempotency_key: Annotated[str | None, Header(max_length=255, description="same key and body: same job")] = None,
) -> Any:
    """Queue a run; a new version of the model is published when it succeeds.

    Only `model` and `data` are required. The job's `spec` shows every default that was filled in.
    """
    caller = caller_of(request.scope, request.app.state.keys)
    digest = f"sha256:{hashlib.sha256(await request.body()).hexdigest()}"
    job = None
    if idempotency_key is not None and not dry_run:  # what it names may be gone since
        job = await anyio.to_thread.run_sync(deps.jobs.submitted, idempotency_key, digest)
    if job is None:
        resolved, facts, warnings = await anyio.to_thread.run_sync(_resolve, deps, spec)
        if dry_run:
            found = DryRun(
                spec=resolved,
                num_parameters=facts.num_parameters,
                memory_bytes=facts.memory_bytes,
                seconds_per_epoch=facts.seconds_per_epoch,
                warnings=warnings,
            )
            return Response(found.model_dump_json(), media_type="application/json")
        job = await anyio.to_thread.run_sync(
            lambda: _submit(
                deps,
                resolved,
                idempotency_key=idempotency_key,
                request_digest=digest,
                submitted_by=caller.id,
                request_id=request.scope["request_id"],
                warnings=warnings,
                memory=vars(facts.memory),
            )
        )
    seconds = _wait_seconds(prefer, deps.settings.max_wait_seconds)
    if seconds:
        job = await deps.feed.wait_for(job.id, seconds)
    out = job_response(job)
    status = 200 if seconds and out.terminal else 202
    return Response(
        out.model_dump_json(), status, headers={"Location": f"/jobs/{job.id}"}, media_type="application/json"
    )


def _submit(deps: Services, spec: dict[str, Any], **told: Any) -> rows.Job:
    """Raises ModelNotFound or VersionNotFound where what it begins with was deleted while it was resolved."""
    start = spec["warm_start"]
    with deps.models.undeleted(start["model"], start["version"]) if start else nullcontext():
        return deps.jobs.submit(spec, spec["model"], **told)


def _wait_seconds(prefer: str | None, most: float) -> float:
    """The `wait` of a `Prefer` header (RFC 7240); preferences that are not understood are ignored, as it asks."""
    for preference in (prefer or "").split(","):
        name, _, value = preference.partition("=")
        if name.strip().lower() == "wait" and value.isascii() and value.strip().isdigit():
            return min(float(value), most)
    return 0.0


def _resolve(deps: Services, spec: TrainingSpec) -> tuple[dict[str, Any], Plan, list[str]]:
    data, table = store_data(deps, spec.data)
    named = {"validation": _resolve_validation(deps, spec.validation)} if "validation" in spec.model_fields_set else {}
    spec = spec.model_copy(update={"data": data} | named)  # what was left out stays known as that
    news: list[str] = []
    start = None if spec.warm_start is None else find_start(deps, spec.warm_start)
    if start is not None:
        spec, table, news = filled_in_from(start, spec, table)
    resolved, warnings = resolve(spec, table)
    if isinstance(resolved.validation, ValidationDataset):
        assert resolved.validation.digest is not None
        # to ask for its table keeps it from being swept, or says that it is not there
        check_validation(resolved, table, deps.datasets.table(resolved.validation.digest))
    if start is not None:
        resolved, more = go_on_from(deps, start, resolved, table)
        news += more
    settings = deps.settings
    settled, facts, notes = plan(
        resolved,
        table,
        device=settings.device,
        max_parameters=settings.max_parameters,
        max_rows_bytes=settings.max_rows_bytes,
        busy=lambda: bool(deps.jobs.counts().get("running")),
    )
    return settled.model_dump(mode="json"), facts, news + warnings + notes


def store_data(deps: Services, data: StoredData | RecordsData | InputsData) -> tuple[StoredData, Table]:
    """Data that came in the body are stored like a dataset without a name, so that the job can be run again.

    Raises:
        InvalidInput, DatasetNotFound
        TooLarge: more rows than the settings allow in a body.
    """
    rows = data.records if isinstance(data, RecordsData) else data.inputs if isinstance(data, InputsData) else ()
    check_num_rows(deps, len(rows))
    if isinstance(data, RecordsData):
        table = deps.datasets.add_table(frame_from_records(data.records))
        stored = StoredData(
            digest=table.digest,
            target=data.target,
            features=data.features,
            ignored_columns=data.ignored_columns,
            sample_weight=data.sample_weight,
        )
        return stored, table
    if isinstance(data, InputsData):
        frame = frame_from_inputs(data.inputs, data.targets, data.sample_weight)
        table = deps.datasets.add_table(frame)
        targets = tuple(name for name in frame.columns if name.startswith("y"))
        weight = "sample_weight" if data.sample_weight is not None else None
        target = targets[0] if len(targets) == 1 else targets
        return StoredData(digest=table.digest, target=target, sample_weight=weight, positional=True), table
    if data.dataset is None and data.digest is None:
        raise InvalidInput.at("/data", "name a dataset, or give records, or inputs and targets")
    digest = data.digest or deps.datasets.get(str(data.dataset)).digest
    return data.model_copy(update={"digest": digest}), deps.datasets.table(digest)


def check_num_rows(deps: Services, num_rows: int) -> None:
    if num_rows > deps.settings.max_rows:
        raise TooLarge(f"there are more than the {deps.settings.max_rows} rows that one request may have")


def _resolve_validation(deps: Services, validation: Any) -> Any:
    if not isinstance(validation, ValidationDataset):
        return validation
    if validation.digest is None and validation.dataset is None:
        raise InvalidInput.at("/validation", "give a fraction or a dataset, or null for no validation")
    digest = validation.digest or deps.datasets.get(str(validation.dataset)).digest
    return validation.model_copy(update={"digest": digest})
