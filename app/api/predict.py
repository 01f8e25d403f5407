"""`POST /predict` and `POST /evaluate`."""

from typing import Annotated, Any

import anyio.to_thread
import orjson
import polars as pl
from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from app.api import tabular
from app.api.auth import require
from app.api.examples import EVALUATE, PREDICT
from app.api.json_route import JsonRoute
from app.api.problems import Problem
from app.api.services import Deps, Services
from app.api.train import store_data
from app.errors import InvalidInput, TooLarge
from app.serving.served_model import ServedModel
from app.specs.base import Name, Spec
from app.specs.table import DataSpec, Label, StoredData
from app.storage.tables import read_table

router = APIRouter(tags=["predict"], route_class=JsonRoute, dependencies=[Depends(require("predict"))])

WEIGHT = "\0weight"  # a column name that no table has

Selector = Annotated[str, Field(min_length=1, max_length=64, description="a number or an alias; absent: the newest")]


class PredictRequest(Spec):
    """Rows as lists of values in the order of the model's columns, or as objects by column name."""

    model: Name
    version: Selector | None = None
    inputs: Annotated[list[Any], Field(json_schema_extra={"items": {"anyOf": [{"type": "array"}, {"type": "object"}]}})]


class Prediction(BaseModel):
    """`predictions`: a number or label a row (a list of them a row where there are several targets)."""

    model: str
    version: str
    predictions: list[Any]
    classes: list[Label] | None = None
    probabilities: list[list[float | None]] | None = None


class EvaluateRequest(Spec):
    """Data as in `POST /train`; its target must be the model's."""

    model: Name
    version: Selector | None = None
    data: DataSpec


class Evaluation(BaseModel):
    """`loss` is the training loss; `metrics` are in the target's units."""

    num_rows: int
    loss: float | None
    metrics: dict[str, float | None]


@router.post(
    "/predict",
    summary="Predict rows",
    response_model=Prediction,
    responses={404: {"model": Problem}, 422: {"model": Problem}},
    openapi_extra=tabular.DESCRIBED
    | {"requestBody": {"content": {"application/json": {"examples": PREDICT}, **tabular.BODIES}}},
)
async def predict(body: PredictRequest, deps: Deps) -> Response:
    """Rows are treated exactly as in training; missing and unseen values have their places.

    A table in CSV or Arrow IPC comes with `?model=`, and is answered in parts, by a table or (with `Accept`) JSON.
    """
    if len(body.inputs) > deps.settings.max_rows:
        raise TooLarge(f"{len(body.inputs)} rows are more than the {deps.settings.max_rows} that one request may have")
    model = await deps.predictor.load(body.model, body.version)
    values = await deps.predictor.predict(model, body.inputs)
    return Response(
        orjson.dumps(model.answer(values), option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json"
    )


@router.post(
    "/evaluate",
    summary="Measure a model on test data",
    response_model=Evaluation,
    responses={404: {"model": Problem}, 422: {"model": Problem}},
    openapi_extra={"requestBody": {"content": {"application/json": {"examples": EVALUATE}}}},
)
async def evaluate(body: EvaluateRequest, deps: Deps) -> Any:
    """The loss and the metrics that fit the task, over all rows whose target is there."""
    model = await deps.predictor.load(body.model, body.version)
    return await anyio.to_thread.run_sync(_evaluate, deps, model, body.data)


def _evaluate(deps: Services, model: ServedModel, data: Any) -> dict[str, Any]:
    stored, _ = store_data(deps, data)
    return deps.predictor.evaluate(model, _frame_for(deps, model, stored), WEIGHT if stored.sample_weight else None)


def _frame_for(deps: Services, model: ServedModel, data: StoredData) -> pl.DataFrame:
    """The rows with the model's column names, and the weights, if any, as `WEIGHT`."""
    assert data.digest is not None
    signature = model.model.signature
    wanted = [column.name for column in signature.targets]
    if data.positional:
        facts = deps.datasets.table(data.digest)
        given = [column.name for column in facts.columns if column.name.startswith("x")]
        if len(given) != len(signature.inputs):
            raise InvalidInput.at(
                "/data/inputs", f"rows have {len(given)} numbers; the model takes {len(signature.inputs)}"
            )
    else:
        given = [column.name for column in signature.inputs]
    if not data.positional and list(data.targets) != wanted:
        raise InvalidInput.at(
            "/data/target", f"the model's target is {', '.join(wanted)}, not {', '.join(data.targets)}"
        )
    if len(data.targets) != len(wanted):
        raise InvalidInput.at(
            "/data/targets", f"the model has {len(wanted)} target(s), the rows have {len(data.targets)}"
        )
    weight = [data.sample_weight] if data.sample_weight else []
    frame = read_table(deps.datasets.path(data.digest), [*given, *data.targets, *weight])
    names = [column.name for column in signature.inputs] + wanted + [WEIGHT] * len(weight)
    return frame.rename(dict(zip(frame.columns, names, strict=True))).drop_nulls(
        [*wanted, *names[len(given) + len(wanted) :]]
    )
