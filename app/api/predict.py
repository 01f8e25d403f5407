"""`POST /predict`: rows in, predictions out."""

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field
from starlette.types import Receive

from app.api import tabular
from app.api.auth import require
from app.api.json_route import JsonRoute
from app.api.patience import unless_gone
from app.api.services import Deps, RoutingKey, Services
from app.api.train import check_num_rows
from app.serving import json_rows
from app.serving.predictor import in_time
from app.specs.base import Name, Spec
from app.specs.table import Label

router = APIRouter(tags=["predict"], route_class=JsonRoute, dependencies=[Depends(require("predict"))])

Selector = Annotated[str, Field(min_length=1, max_length=64, description="a number or an alias; absent: the newest")]

Timeout = Annotated[
    float,
    Field(
        gt=0, strict=False, description="an answer that does not come in time is 429; absent: wait as long as it takes"
    ),
]


class PredictRequest(Spec):
    """Rows as lists of values in the order of the model's columns, or as objects by column name."""

    model: Name
    version: Selector | None = None
    inputs: Annotated[list[Any], Field(json_schema_extra={"items": {"anyOf": [{"type": "array"}, {"type": "object"}]}})]
    timeout_seconds: Timeout | None = None


class Prediction(BaseModel):
    """`predictions`: a number or label a row (a list of them a row where there are several targets)."""

    model: str
    version: str
    predictions: list[Any]
    classes: list[Label] | None = None
    probabilities: list[list[float | None]] | None = None


@router.post(
    "/predict",
    summary="Predict rows",
    response_model=Prediction,
    openapi_extra=tabular.DESCRIBED | {"requestBody": {"content": tabular.BODIES}},
)
async def predict(body: PredictRequest, request: Request, deps: Deps, key: RoutingKey = None) -> Response:
    """Rows are treated exactly as in training; missing and unseen values have their places.

    A table in CSV or Arrow IPC comes with `?model=`, and is answered in parts, by a table or (with `Accept`) JSON. The
    columns of `text/csv; header=absent` are the model's in their order, or those of the file that it was trained on.
    """
    return Response(await answer(deps, body, key, request.receive), media_type="application/json")


async def answer(deps: Services, asked: PredictRequest, key: str | None, receive: Receive) -> bytes:
    """The answer's JSON; the work ends when the client has gone."""
    check_num_rows(deps, len(asked.inputs))
    request = await deps.predictor.request(asked.model, asked.version, key)
    if asked.timeout_seconds is None and (quick := deps.predictor.small.answer(request, asked.inputs)):
        return orjson.dumps(await quick)
    with deps.predictor.statistics.measured(request):
        async with in_time(asked.timeout_seconds):
            values = await unless_gone(receive, deps.predictor.predict(request, asked.inputs))
        with request.part("compute_output"):
            return json_rows.dump(request.model.answer(values))
