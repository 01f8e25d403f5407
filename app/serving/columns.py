"""Columns of a table, or tensors, as the columns that a model was trained on, whatever types they came in."""

from collections.abc import Callable

import polars as pl

from app.errors import Fault, InvalidInput
from app.serving.encode import DTYPES, MAX_FAULTS
from app.specs.table import Column
from app.storage.columns import finite, read_datetimes

TAKES = {
    "numeric": "numbers",
    "boolean": "true and false, or 1 and 0",
    "categorical": "text",
    "datetime": "times such as 2026-01-31T12:00:00",
}
_FLAGS = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0, "1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}

At = Callable[[int], str]
"""From a row's number, from 0, to the pointer of its cell."""


def fit_column(column: Column, cells: pl.Series, at: At, *, untyped: bool = False) -> pl.Series:
    """Cells as `encode_frame` takes them; numbers that are not finite are missing.

    Args:
        untyped: text is how numbers, flags and times are written too, as in CSV.

    Raises:
        InvalidInput: with a fault for each cell that does not fit, at most `MAX_FAULTS`.
    """
    fitted = _READERS[column.kind](cells.rename(column.name), untyped)
    if fitted is None:
        given = "text" if cells.dtype == pl.String else cells.dtype
        raise InvalidInput.at(at(0), f"{column.name!r} takes {TAKES[column.kind]}, not {given}")
    wrong = fitted.is_null() & cells.is_not_null()
    if wrong.any():
        faults = [
            Fault(at(row), f"{column.name!r} takes {TAKES[column.kind]}, not {str(cells[row])[:60]!r}")
            for row in wrong.arg_true().head(MAX_FAULTS)
        ]
        raise InvalidInput(faults[0].detail, faults)
    return _select(fitted, finite(pl.all())) if fitted.dtype == pl.Float64 else fitted


def _select(cells: pl.Series, expression: pl.Expr) -> pl.Series:
    return cells.to_frame().select(expression).to_series()


def _numbers(cells: pl.Series, untyped: bool) -> pl.Series | None:
    if cells.dtype == pl.String and not untyped:
        return None
    if not (cells.dtype.is_numeric() or cells.dtype in (pl.String, pl.Boolean, pl.Null)):
        return None
    return cells.cast(pl.Float64, strict=False)


def _flags(cells: pl.Series, untyped: bool) -> pl.Series | None:
    if cells.dtype == pl.String and untyped:
        return cells.str.to_lowercase().replace_strict(_FLAGS, default=None, return_dtype=pl.Float64)
    numbers = _numbers(cells, untyped=False)
    return (
        None
        if numbers is None
        else _select(numbers, pl.when(pl.all().is_in([0.0, 1.0]) | pl.all().is_nan()).then(pl.all()))
    )


def _texts(cells: pl.Series, _untyped: bool) -> pl.Series | None:
    return None if cells.dtype.is_temporal() or cells.dtype.is_nested() else cells.cast(pl.String)


def _times(cells: pl.Series, _untyped: bool) -> pl.Series | None:
    if cells.dtype == pl.String:
        return _select(cells, read_datetimes(pl.all()))
    return cells.cast(DTYPES["datetime"]) if cells.dtype in (pl.Datetime, pl.Date, pl.Null) else None


_READERS: dict[str, Callable[[pl.Series, bool], pl.Series | None]] = {
    "numeric": _numbers,
    "boolean": _flags,
    "categorical": _texts,
    "datetime": _times,
}
"""By kind; None where no cell of the type can be one of the kind."""
