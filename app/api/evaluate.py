"""`POST /evaluate`: how good a model is on rows whose targets are known."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import anyio.to_thread
import polars as pl
from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from app.api.auth import require
from app.api.json_route import JsonRoute
from app.api.services import Deps, Services
from app.api.train import store_data
from app.errors import BadData, Fault, InvalidInput, UnknownColumn
from app.serving.columns import fit_column
from app.serving.encode import escape
from app.serving.served_model import ServedModel
from app.specs.base import Name, Spec
from app.specs.resolve_columns import note_of
from app.specs.sentences import unknown_column
from app.specs.table import Column, DataSpec, InputsData, RecordsData, Signature, StoredData, Table
from app.storage.tables import read_table

router = APIRouter(tags=["predict"], route_class=JsonRoute, dependencies=[Depends(require("predict"))])

Selector = Annotated[str, Field(min_length=1, max_length=64, description="a number or an alias; absent: the newest")]


class EvaluateRequest(Spec):
    """Data as in `POST /train`; its target must be the model's."""

    model: Name
    version: Selector | None = None
    data: DataSpec


class Evaluation(BaseModel):
    """`loss` is the one that the version was trained with, class weights and label smoothing included: beside that of
    another spec it says nothing. `metrics` can be compared; they are in the target's units.
    """

    num_rows: int
    loss: float | None
    metrics: dict[str, float | None]


@router.post(
    "/evaluate",
    summary="Measure a model on test data",
    response_model=Evaluation,
)
async def evaluate(body: EvaluateRequest, deps: Deps) -> Any:
    """The loss and the metrics that fit the task, over all rows whose target is there."""
    model = await deps.predictor.load(body.model, body.version)
    return await anyio.to_thread.run_sync(_evaluate, deps, model, body.data)


def _evaluate(deps: Services, model: ServedModel, data: StoredData | RecordsData | InputsData) -> dict[str, Any]:
    stored, table = store_data(deps, data)
    signature, places = model.model.signature, Places(data)
    names = _input_names(signature, stored, table)
    target_names = _target_names(signature, stored, places)
    _check_columns(names, stored, table, places)
    weight = [stored.sample_weight] if stored.sample_weight else []
    frame = read_table(deps.datasets.path(table.digest), list(dict.fromkeys([*names, *target_names, *weight])))
    if isinstance(data, StoredData):  # what comes as JSON is as it was written
        with _found_at(places.rows):
            frame = frame.with_columns(map(model.model.features.as_written, frame.get_columns()))
    inputs = pl.DataFrame(
        _fit(column, frame[name], places.of_cells(index, name), table)
        for index, (column, name) in enumerate(zip(signature.inputs, names, strict=True))
    )
    targets = pl.DataFrame(
        _fit_target(signature, column, frame[name], places.targets, table)
        for column, name in zip(signature.targets, target_names, strict=True)
    )
    weights = _fit_weights(frame[weight[0]]) if weight else None
    present = targets.select(pl.all_horizontal(pl.all().is_not_null())).to_series()
    if weights is not None:
        present &= weights.is_not_null()
        weights = weights.filter(present)
    if not present.any():
        raise InvalidInput.at("/data", f"no row has {' and '.join([*stored.targets, *weight])}")
    if weights is not None and not weights.sum():
        raise InvalidInput.at("/data/sample_weight", "the weights of all rows are 0")
    inputs, targets = inputs.filter(present), targets.filter(present)
    with _found_at(places.rows):
        model.model.features.check(inputs)
    with _found_at(places.targets):
        return deps.predictor.evaluate(model, inputs, targets, weights)


class Places:
    """Where in the request's body the rows are, a cell of one of their columns, and the targets."""

    def __init__(self, data: StoredData | RecordsData | InputsData) -> None:
        self.by_name = isinstance(data, RecordsData)
        self.rows = "/data/records" if self.by_name else "/data/inputs" if isinstance(data, InputsData) else "/data"
        self.targets = "/data/targets" if isinstance(data, InputsData) else "/data/target"

    def of_cells(self, index: int, name: str) -> Callable[[int], str]:
        if self.rows == "/data":
            return lambda _row: self.rows
        return lambda row: f"{self.rows}/{row}/{escape(name) if self.by_name else index}"


def _input_names(signature: Signature, data: StoredData, table: Table) -> list[str]:
    """The table's columns that the model takes, in its order; plain rows go by their place."""
    if not data.positional:
        return [column.name for column in signature.inputs]
    given = [column.name for column in table.columns if column.name.startswith("x")]
    if len(given) != len(signature.inputs):
        detail = f"rows have {len(given)} numbers; the model takes {len(signature.inputs)}"
        raise InvalidInput.at("/data/inputs", detail)
    return given


def _target_names(signature: Signature, data: StoredData, places: Places) -> list[str]:
    """The table's columns of targets, in the model's order; those of plain rows go by their place."""
    wanted = [column.name for column in signature.targets]
    if not data.positional and sorted(data.targets) != sorted(wanted):
        detail = f"the model's target is {', '.join(wanted)}, not {', '.join(data.targets)}"
        raise InvalidInput.at(places.targets, detail)
    if len(data.targets) != len(wanted):
        detail = f"the model has {len(wanted)} target(s), the rows have {len(data.targets)}"
        raise InvalidInput.at(places.targets, detail)
    return list(data.targets) if data.positional else wanted


def _check_columns(names: list[str], data: StoredData, table: Table, places: Places) -> None:
    wanted = [(places.rows, name) for name in names] + [(places.targets, name) for name in data.targets]
    if data.sample_weight is not None:
        wanted.append(("/data/sample_weight", data.sample_weight))
    for pointer, name in wanted:
        if table.column(name) is None:
            raise UnknownColumn.at(pointer, unknown_column(name, [column.name for column in table.columns]))


def _fit(column: Column, cells: pl.Series, at: Callable[[int], str], table: Table) -> pl.Series:
    try:
        return fit_column(column, cells, at)
    except InvalidInput as error:
        found = table.column(cells.name)
        note = note_of(found) if found else ""
        faults = [Fault(fault.pointer, fault.detail + note) for fault in error.faults]
        raise InvalidInput(error.detail + note, faults) from error


def _fit_target(signature: Signature, column: Column, cells: pl.Series, pointer: str, table: Table) -> pl.Series:
    """Numbers, or flags, or labels as they are: the model knows which there are."""
    if signature.task in ("binary", "multiclass"):
        return cells.alias(column.name)
    wanted = column.model_copy(update={"kind": "boolean" if signature.task == "multilabel" else "numeric"})
    return _fit(wanted, cells, lambda _row: pointer, table)


def _fit_weights(cells: pl.Series) -> pl.Series:
    pointer = "/data/sample_weight"
    weights = fit_column(Column(name=cells.name, kind="numeric"), cells, lambda _row: pointer)
    if (weights < 0).any():
        raise InvalidInput.at(pointer, "weights must not be negative")
    return weights


@contextmanager
def _found_at(pointer: str) -> Iterator[None]:
    try:
        yield
    except BadData as error:
        raise InvalidInput.at(pointer, error.detail) from error
