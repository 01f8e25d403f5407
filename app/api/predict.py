"""`POST /predict`: rows in, predictions out."""

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from app.api import tabular
from app.api.auth import require
from app.api.examples import PREDICT
from app.api.json_route import JsonRoute
from app.api.services import Deps, RoutingKey
from app.api.train import check_num_rows
from app.specs.base import Name, Spec
from app.specs.table import Label

router = APIRouter(tags=["predict"], route_class=JsonRoute, dependencies=[Depends(require("predict"))])

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


@router.post(
    "/predict",
    summary="Predict rows",
    response_model=Prediction,
    openapi_extra=tabular.DESCRIBED
    | {"requestBody": {"content": {"application/json": {"examples": PREDICT}, **tabular.BODIES}}},
)
async def predict(body: PredictRequest, deps: Deps, key: RoutingKey = None) -> Response:
    """Rows are treated exactly as in training; missing and unseen values have their places.

    A table in CSV or Arrow IPC comes with `?model=`, and is answered in parts, by a table or (with `Accept`) JSON.
    """
    check_num_rows(deps, len(body.inputs))
    request = await deps.predictor.request(body.model, body.version, key)
    with deps.predictor.statistics.measured(request):
        values = await deps.predictor.predict(request, body.inputs)
        with request.part("compute_output"):
            answer = orjson.dumps(request.model.answer(values), option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(answer, media_type="application/json")
