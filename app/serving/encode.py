"""Rows as clients send them to the network's input tensor, with a fault for every cell that doesn't fit.

Shape suffixes: N rows, K columns, F encoded numbers.
"""

import math
import reprlib
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import Tensor

from app.errors import Fault, InvalidInput, ShapeMismatch, UnknownColumn
from app.learning.features import Features
from app.specs.sentences import some_of, unknown_column
from app.specs.table import Column, Signature
from app.storage.columns import read_datetimes

MAX_FAULTS = 20  # more say nothing new
DTYPES: dict[str, pl.DataType] = {
    "numeric": pl.Float64(),
    "boolean": pl.Float64(),
    "categorical": pl.String(),
    "datetime": pl.Datetime("us"),
}


At = Callable[[int, int], str]
"""From the numbers of a row and a column, from 0, to the pointer of their cell."""


def encode_rows(features: Features, signature: Signature, inputs: list[Any], pointer: str = "/inputs") -> Tensor:
    """Rows as lists in the order of the columns, or as objects by column name, to `[N, F]`.

    Raises:
        ShapeMismatch, UnknownColumn, InvalidInput: with a pointer for each fault, at most `MAX_FAULTS`.
    """
    if not inputs:
        raise ShapeMismatch.at(pointer, "there are no rows; give at least one")
    if isinstance(inputs[0], dict):
        names = [escape(column.name) for column in signature.inputs]
        frame = frame_of_records(signature, inputs, pointer)
        return encode_frame(features, frame, lambda row, column: f"{pointer}/{row}/{names[column]}")

    def at(row: int, column: int) -> str:
        return f"{pointer}/{row}/{column}"

    if features.all_measures and (numbers := _matrix(signature, inputs)) is not None:
        refuse_missing(features, np.isnan(numbers), at)
        return encode_numbers(features, numbers, at)
    return encode_frame(features, _frame_of_lists(signature, inputs, pointer), at)


def encode_frame(features: Features, frame: pl.DataFrame, at: At) -> Tensor:
    """A frame with a column of the right type for each input, to `[N, F]`.

    Raises:
        InvalidInput
    """
    if features.spec is None or features.spec.missing == "error":
        nulls = np.column_stack([frame[column.name].is_null().to_numpy() for column in features.columns])
        refuse_missing(features, nulls, at)
    if features.num_places is not None:  # so all columns are numbers
        return encode_numbers(features, features.measures(frame), at)
    return features.transform(frame)


def encode_numbers(features: Features, rows_NK: NDArray[np.floating[Any]], at: At) -> Tensor:
    """Rows of numbers in the order of the columns, NaN where missing, to `[N, F]`.

    Raises:
        InvalidInput
    """
    if features.num_places is not None:
        _refuse_misplaced(features, rows_NK, at)
    return features.transform_numbers(rows_NK)


def refuse_missing(features: Features, missing_NK: NDArray[np.bool_], at: At) -> None:
    """Raise where the model was trained with no place for missing values."""
    if (features.spec is None or features.spec.missing == "error") and missing_NK.any():
        faults = [
            Fault(
                at(row, column),
                f"{features.columns[column].name!r} is missing, and this model takes no missing values",
            )
            for row, column in np.argwhere(missing_NK)[:MAX_FAULTS].tolist()
        ]
        raise InvalidInput(faults[0].detail, faults)


def _refuse_misplaced(features: Features, rows_NK: NDArray[np.floating[Any]], at: At) -> None:
    """Raise where the network's embedding has no place for a number."""
    if faults := [
        Fault(at(row, column), detail) for row, column, detail in islice(features.misplaced(rows_NK), MAX_FAULTS)
    ]:
        raise InvalidInput(faults[0].detail, faults)


def _matrix(signature: Signature, inputs: list[Any]) -> NDArray[np.float64] | None:
    """Numbers, booleans and nulls as `[N, K]`, or None if a look at every cell is needed to say what is wrong."""
    try:
        array = np.asarray(inputs)
        if array.ndim != 2 or array.shape[1] != len(signature.inputs) or array.dtype.kind not in "fiubO":
            return None
        if array.dtype == object and not _only_numbers(array):
            return None
        numbers: NDArray[np.float64] = array.astype(np.float64)
    except (ValueError, TypeError, OverflowError):
        return None
    flags = numbers[:, [column.kind == "boolean" for column in signature.inputs]]
    return numbers if ((flags == 0) | (flags == 1) | np.isnan(flags)).all() else None


def _only_numbers(array: NDArray[Any]) -> bool:
    return all(cell is None or isinstance(cell, (int, float)) for cell in array.ravel())


def _frame_of_lists(signature: Signature, inputs: list[Any], pointer: str) -> pl.DataFrame:
    width = len(signature.inputs)
    faults = []
    for index, row in enumerate(inputs):
        if not isinstance(row, list):
            faults.append(Fault(f"{pointer}/{index}", f"a row must be a list of {width} values, as in [[…], […]]"))
        elif len(row) != width:
            nested = row and isinstance(row[0], list)
            detail = (
                f"this row is a list of lists; a row is one list of {width} values"
                if nested
                else f"this row has {len(row)} values; the model takes {width}: {_names(signature)}"
            )
            faults.append(Fault(f"{pointer}/{index}", detail))
        if len(faults) >= MAX_FAULTS:
            break
    if faults:
        raise ShapeMismatch(faults[0].detail, faults)
    columns = list(zip(*inputs, strict=True))
    return _frame(signature, columns, lambda row, column: f"{pointer}/{row}/{column}")


def frame_of_records(signature: Signature, inputs: list[Any], pointer: str) -> pl.DataFrame:
    """Objects by column name; a column that an object does not have is missing in it.

    Raises:
        ShapeMismatch, UnknownColumn, InvalidInput
    """
    names = [column.name for column in signature.inputs]
    known = {*names, *signature.ignored, *(column.name for column in signature.targets)}
    faults = []
    for index, row in enumerate(inputs):
        if not isinstance(row, dict):
            raise ShapeMismatch.at(f"{pointer}/{index}", "the first row is an object, so every row must be one")
        unknown = islice((key for key in row if key not in known), MAX_FAULTS)
        faults += [Fault(f"{pointer}/{index}/{escape(key)}", unknown_column(key, names)) for key in unknown]
        if len(faults) >= MAX_FAULTS:
            break
    if faults:
        raise UnknownColumn(faults[0].detail, faults)
    columns = [[row.get(name) for row in inputs] for name in names]
    return _frame(signature, columns, lambda row, column: f"{pointer}/{row}/{escape(names[column])}")


def _names(signature: Signature) -> str:
    return some_of([column.name for column in signature.inputs])


def escape(key: str) -> str:
    """A key as a part of a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")


def _frame(signature: Signature, columns: Sequence[Sequence[Any]], at: At) -> pl.DataFrame:
    faults: list[Fault] = []
    series = []
    for index, (column, cells) in enumerate(zip(signature.inputs, columns, strict=True)):
        values = [_CELLS[column.kind](cell) for cell in cells]
        for row, value in enumerate(values):
            if value is _WRONG and len(faults) < MAX_FAULTS:
                faults.append(
                    Fault(at(row, index), f"{column.name!r} takes {_WANTED[column.kind]}, not {_show(cells[row])}")
                )
        if not faults:
            series.append(_series(column, values, lambda row, index=index: at(row, index), faults))  # type: ignore[misc]
    if faults:
        raise InvalidInput(faults[0].detail, faults)
    return pl.DataFrame(series)


def _series(column: Column, values: list[Any], at: Callable[[int], str], faults: list[Fault]) -> pl.Series:
    if column.kind != "datetime":
        return pl.Series(column.name, values, dtype=DTYPES[column.kind])
    text = pl.Series(column.name, values, dtype=pl.String)
    stamps = text.to_frame().select(read_datetimes(pl.all())).to_series()
    unread = (stamps.is_null() & text.is_not_null()).arg_true().head(MAX_FAULTS)
    faults += [
        Fault(at(row), f"{column.name!r} takes {_WANTED['datetime']}, not {_show(values[row])}") for row in unread
    ]
    return stamps


def _show(value: Any) -> str:
    text = reprlib.repr(value) if isinstance(value, (list, dict)) else repr(value)  # of the former, a few levels only
    return text if len(text) <= 60 else text[:57] + "…"


_WRONG = object()
_WANTED = {
    "numeric": "a number or null",
    "boolean": "true, false or null",
    "categorical": "a text or null",
    "datetime": "a time such as 2026-01-31T12:00:00, or null",
}


def _number(cell: Any) -> Any:
    if cell is None:
        return None
    if not isinstance(cell, (int, float)):
        return _WRONG
    try:
        number = float(cell)
    except OverflowError:
        return _WRONG
    return number if math.isfinite(number) else None


def _flag(cell: Any) -> Any:
    return None if cell is None else float(cell) if isinstance(cell, (bool, int, float)) and cell in (0, 1) else _WRONG


def _text(cell: Any) -> Any:
    if cell is None or isinstance(cell, str):
        return cell
    if isinstance(cell, bool):
        return str(cell).lower()
    return str(cell) if isinstance(cell, (int, float)) else _WRONG


_CELLS: dict[str, Callable[[Any], Any]] = {
    "numeric": _number,
    "boolean": _flag,
    "categorical": _text,
    "datetime": lambda cell: cell if cell is None or isinstance(cell, str) else _WRONG,
}
