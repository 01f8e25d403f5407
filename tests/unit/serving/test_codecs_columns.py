"""Columns as they come, and as models take them."""

from datetime import UTC, date, datetime
from typing import Any

import polars as pl
import pytest

from app.errors import InvalidInput
from app.serving.columns import fit_column
from app.specs.table import Column, Kind

NOON = datetime(2026, 1, 31, 12)


def fit(kind: Kind, cells: pl.Series, **options: Any) -> list[Any]:
    return fit_column(Column(name="c", kind=kind), cells, lambda row: f"/{row}/c", **options).to_list()


@pytest.mark.parametrize(
    ("kind", "cells", "expected"),
    [
        ("numeric", pl.Series([1, None], dtype=pl.Int8), [1.0, None]),
        ("numeric", pl.Series([1.5, float("nan"), float("inf")], dtype=pl.Float32), [1.5, None, None]),
        ("numeric", pl.Series([True, None]), [1.0, None]),
        ("numeric", pl.Series([None, None]), [None, None]),
        ("boolean", pl.Series([True, None, False]), [1.0, None, 0.0]),
        ("boolean", pl.Series([1, 0]), [1.0, 0.0]),
        ("boolean", pl.Series([1.0, float("nan")]), [1.0, None]),
        ("categorical", pl.Series(["a", None]), ["a", None]),
        ("categorical", pl.Series(["a", None], dtype=pl.Categorical), ["a", None]),
        ("categorical", pl.Series([1, None]), ["1", None]),
        ("categorical", pl.Series([True, False]), ["true", "false"]),
        ("datetime", pl.Series(["2026-01-31T12:00:00", "2026-01-31T13:00+01:00", None]), [NOON, NOON, None]),
        ("datetime", pl.Series([NOON], dtype=pl.Datetime("ns")), [NOON]),
        ("datetime", pl.Series([date(2026, 1, 31)]), [datetime(2026, 1, 31)]),
    ],
)
def test_typed_cells(kind: Kind, cells: pl.Series, expected: list[Any]) -> None:
    assert fit(kind, cells) == expected


@pytest.mark.parametrize(
    ("kind", "texts", "expected"),
    [
        ("numeric", ["1", "2.5e3", None, "inf"], [1.0, 2500.0, None, None]),
        ("boolean", ["TRUE", "no", "1", "0", "1.0", "0.0", None], [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, None]),
        ("categorical", ["01", None], ["01", None]),
        ("datetime", ["2026-01-31 12:00"], [NOON]),
    ],
)
def test_text_of_formats_without_types(kind: Kind, texts: list[Any], expected: list[Any]) -> None:
    assert fit(kind, pl.Series(texts), untyped=True) == expected


@pytest.mark.parametrize(
    ("kind", "cells", "untyped", "row"),
    [
        ("numeric", pl.Series(["1", "two"]), True, 1),
        ("numeric", pl.Series(["1"]), False, 0),
        ("numeric", pl.Series([NOON]), False, 0),
        ("boolean", pl.Series(["true", "maybe"]), True, 1),
        ("boolean", pl.Series([1, 2]), False, 1),
        ("categorical", pl.Series([[1]]), False, 0),
        ("categorical", pl.Series([NOON.replace(tzinfo=UTC)]), False, 0),
        ("datetime", pl.Series(["2026-01-31", "soon"]), False, 1),
        ("datetime", pl.Series([5]), False, 0),
    ],
)
def test_a_cell_that_does_not_fit_is_named(kind: Kind, cells: pl.Series, untyped: bool, row: int) -> None:
    with pytest.raises(InvalidInput, match=r"'c' takes ") as caught:
        fit(kind, cells, untyped=untyped)
    assert caught.value.faults[0].pointer == f"/{row}/c"


def test_text_where_types_say_what_is_no_number_is_called_text() -> None:
    with pytest.raises(InvalidInput, match="'c' takes numbers, not text"):
        fit("numeric", pl.Series(["1"]))
