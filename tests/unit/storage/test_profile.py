import datetime as dt
import math
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.specs.table import ColumnProfile, Table
from app.storage import profile
from app.storage.profile import profile_table

DIGEST = f"sha256:{'0' * 64}"


def of(values: list[Any], dtype: Any = None) -> ColumnProfile:
    return profile_table(pl.LazyFrame({"x": pl.Series(values, dtype=dtype)}), DIGEST).columns[0]


def test_numbers() -> None:
    column = of([3.0, None, 1.0, 3.0])
    assert (column.kind, column.num_missing, column.num_unique) == ("numeric", 1, 2)
    assert (column.min, column.max, column.integral, column.examples) == (1.0, 3.0, True, (3.0, 1.0))
    assert column.mean == pytest.approx(7 / 3)
    assert not of([1.0, 2.5]).integral
    assert of([1, 2]).integral


def test_datetimes_are_iso_text() -> None:
    column = of([dt.datetime(2020, 1, 2, 3), None, dt.datetime(2019, 1, 1)])
    assert (column.kind, column.min, column.max) == ("datetime", "2019-01-01T00:00:00", "2020-01-02T03:00:00")
    assert column.examples == ("2020-01-02T03:00:00", "2019-01-01T00:00:00")
    assert column.mean is None


def test_booleans() -> None:
    column = of([True, None, True])
    assert (column.kind, column.num_missing, column.num_unique, column.min) == ("boolean", 1, 1, None)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([f"v{n}" for n in range(20)], "categorical"),
        ([f"v{n}" for n in range(21)], "text"),
        ([f"v{n}" for n in range(21)] * 2, "categorical"),
        ([f"v{n}" for n in range(21)] + [None] * 21, "text"),
        ([f"v{n}" for n in range(1000)] * 2, "categorical"),
        ([f"v{n}" for n in range(1001)] * 3, "text"),
    ],
)
def test_text_with_few_values_is_categorical(values: list[str], kind: str) -> None:
    assert of(values).kind == kind


def test_a_column_without_values() -> None:
    column = of([None, None], pl.Float64)
    assert (column.num_missing, column.num_unique, column.min, column.mean) == (2, 0, None, None)
    assert (column.integral, column.examples) == (False, ())


def test_a_mean_that_overflows_is_left_out() -> None:
    column = of([1.7e308, 1.7e308])
    assert (column.mean, column.max) == (None, 1.7e308)


def test_examples_are_found_behind_missing_values_and_clipped() -> None:
    assert of([None] * 5000 + ["late", "x" * 1000]).examples == ("late", "x" * 200)


def test_large_tables_are_counted_exactly_where_there_are_few_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "_EXACT_CELLS", 10_000)
    monkeypatch.setattr(profile, "_EXACT_UNIQUE", 1_000)
    num_rows = 50_000
    table = profile_table(
        pl.LazyFrame({"few": [n % 700 for n in range(num_rows)], "many": list(range(num_rows))}), DIGEST
    )
    few, many = table.columns
    assert few.num_unique == 700
    assert many.num_unique == pytest.approx(num_rows, rel=0.1)
    assert many.num_unique <= num_rows


@given(
    st.lists(st.floats(-1e6, 1e6) | st.none(), min_size=1),
    st.lists(st.sampled_from(["a", "b", "c"]) | st.none(), min_size=1),
)
def test_facts_are_those_of_the_values(numbers: list[float | None], words: list[str | None]) -> None:
    num_rows = min(len(numbers), len(words))
    numbers, words = numbers[:num_rows], words[:num_rows]
    schema = {"n": pl.Float64, "w": pl.String}
    table = profile_table(pl.LazyFrame({"n": numbers, "w": words}, schema=schema), DIGEST)
    some = [number for number in numbers if number is not None]
    n, w = table.columns
    assert (table.num_rows, n.num_missing, w.num_missing) == (num_rows, num_rows - len(some), words.count(None))
    assert (n.num_unique, w.num_unique) == (len({*some}), len({*words} - {None}))
    assert (n.min, n.max) == (min(some, default=None), max(some, default=None))
    assert n.integral == (bool(some) and all(number.is_integer() for number in some))
    assert n.mean is None if not some else n.mean == pytest.approx(math.fsum(some) / len(some), abs=1e-6)


def test_many_columns_and_json() -> None:
    table = profile_table(pl.LazyFrame({f"c{n}": [n, None] for n in range(450)}), DIGEST)
    assert [(column.name, column.min, column.num_missing) for column in table.columns] == [
        (f"c{n}", n, 1) for n in range(450)
    ]
    assert Table.model_validate_json(table.model_dump_json()) == table
