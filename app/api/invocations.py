"""`POST /invocations`, as MLflow's scoring server has it (https://mlflow.org/docs/latest/deployment)."""

from collections.abc import Iterable
from functools import partial
from typing import Annotated, Any, NamedTuple

import orjson
from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel

from app.api.auth import require
from app.api.json_route import JsonRoute
from app.api.services import Deps, RoutingKey, Services
from app.api.tabular import meant_model, parameters, version_header
from app.errors import InvalidInput, ShapeMismatch, TooLarge
from app.serving.encode import encode_rows
from app.serving.served_model import ServedModel
from app.specs.base import Name, Spec
from app.specs.table import Signature

router = APIRouter(tags=["predict"], route_class=JsonRoute)

_CSV: dict[str, Any] = {"schema": {"type": "string"}, "example": "x\n4\n11\n"}


class Split(BaseModel):
    """A frame as `DataFrame.to_dict("split")` gives it; `index` is not looked at."""

    columns: list[str] | None = None
    data: list[list[Any]]
    index: Any = None


class Invocation(Spec):
    """Exactly one of the four forms. `params` is not looked at."""

    dataframe_split: Split | None = None
    dataframe_records: list[dict[str, Any]] | None = None
    instances: list[Any] | None = None
    inputs: list[Any] | dict[str, Any] | None = None
    params: Any = None


class Predictions(BaseModel):
    """A number or label a row (a list of them a row where there are several targets)."""

    predictions: list[Any]


@router.get("/ping", include_in_schema=False)
async def ping() -> Response:
    """The process is alive, in MLflow's words."""
    return Response()


@router.post(
    "/invocations",
    summary="Predict, in MLflow's words",
    dependencies=[Depends(require("predict"))],
    response_model=Predictions,
    openapi_extra={
        "parameters": parameters("line", "may be left out where there is only one"),
        "requestBody": {"content": {"text/csv": _CSV}},
    },
)
async def invoke(
    body: Invocation,
    deps: Deps,
    model: Annotated[Name | None, Query(include_in_schema=False)] = None,
    version: Annotated[str | None, Query(include_in_schema=False, min_length=1, max_length=64)] = None,
    key: RoutingKey = None,
) -> Response:
    """Frames are matched by the names of their columns; a model of plain numbers takes other names in their order."""
    name = await to_thread.run_sync(meant_model, deps, model)
    request = await deps.predictor.request(name, version, key)
    with deps.predictor.statistics.measured(request):
        with request.part("compute_input"):
            encoded = await to_thread.run_sync(_encode, deps, request.model, body)
        values = await deps.predictor.predict_encoded(request, encoded, partial(_encode, deps, body=body))
        with request.part("compute_output"):
            content = await to_thread.run_sync(_answer, request.model, values)
    return Response(content, headers=version_header(request.model), media_type="application/json")


def _encode(deps: Services, model: ServedModel, body: Invocation) -> Any:
    pointer, rows = rows_of(body, model.model.signature)
    if len(rows) > deps.settings.max_rows:
        raise TooLarge(f"there are more than the {deps.settings.max_rows} rows that one request may have")
    return encode_rows(model.model.features, model.model.signature, rows, pointer)


def _answer(model: ServedModel, values: Any) -> bytes:
    predictions = model.answer(values)["predictions"]
    return orjson.dumps({"predictions": predictions}, option=orjson.OPT_SERIALIZE_NUMPY)


class Rows(NamedTuple):
    """Rows as `POST /predict` takes them, and the pointer to where they came from."""

    pointer: str
    rows: list[Any]


def rows_of(body: Invocation, signature: Signature) -> Rows:
    """The rows of whichever form a body has; of a model of plain numbers as lists, where columns have other names.

    Raises:
        InvalidInput, ShapeMismatch
    """
    forms = ("dataframe_split", "dataframe_records", "instances", "inputs")
    given = [form for form in forms if getattr(body, form) is not None]
    if len(given) != 1:
        raise InvalidInput.at("", f"give exactly one of {', '.join(forms)}; there are {len(given)}")
    if body.dataframe_split:
        return Rows("/dataframe_split/data", _split_rows(body.dataframe_split, signature))
    if isinstance(body.inputs, dict):
        return Rows("/inputs", _in_order(_transposed(body.inputs), signature, "/inputs"))
    rows = next(value for form in forms[1:] if (value := getattr(body, form)) is not None)
    listed = [row if isinstance(row, (list, dict)) else [row] for row in rows]
    return Rows(f"/{given[0]}", _in_order(listed, signature, f"/{given[0]}"))


def _by_order(signature: Signature, names: Iterable[str]) -> bool:
    """Whether columns of these names are the model's by their order: it is of plain numbers, and has other names."""
    return signature.positional and not {column.name for column in signature.inputs} <= set(names)


def _split_rows(split: Split, signature: Signature) -> list[Any]:
    if split.columns is None or _by_order(signature, split.columns):
        return split.data
    if len(set(split.columns)) < len(split.columns):
        raise InvalidInput.at("/dataframe_split/columns", "two columns have the same name")
    for index, row in enumerate(split.data):
        if len(row) != len(split.columns):
            raise ShapeMismatch.at(
                f"/dataframe_split/data/{index}",
                f"this row has {len(row)} values; there are {len(split.columns)} columns",
            )
    return [dict(zip(split.columns, row, strict=True)) for row in split.data]


def _in_order(rows: list[Any], signature: Signature, pointer: str) -> list[Any]:
    """The rows; objects whose keys stand for columns by their order, which is the first one's, as lists."""
    if not (rows and isinstance(rows[0], dict) and _by_order(signature, rows[0])):
        return rows
    names = rows[0].keys()
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or row.keys() != names:
            raise ShapeMismatch.at(f"{pointer}/{index}", "this row does not have the keys of the first")
    return [[row[name] for name in names] for row in rows]


def _transposed(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Objects from columns, whose cells may each be in a list of their own; single values are one row."""
    listed = {name: cells if isinstance(cells, list) else [cells] for name, cells in columns.items()}
    if len(lengths := {len(cells) for cells in listed.values()}) > 1:
        raise ShapeMismatch.at("/inputs", f"the columns have different lengths: {', '.join(map(str, sorted(lengths)))}")
    cells = [[_only(cell) for cell in cells] for cells in listed.values()]
    return [dict(zip(listed, row, strict=True)) for row in zip(*cells, strict=True)]


def _only(cell: Any) -> Any:
    return cell[0] if isinstance(cell, list) and len(cell) == 1 else cell
