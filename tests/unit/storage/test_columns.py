import datetime as dt
import io
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidInput
from app.storage.columns import read_datetimes, storable_table
from tests.unit.storage.reading import read

DATETIME = pl.Datetime("us")


def parse(*cells: str) -> pl.Series:
    """The column that CSV with these cells gives."""
    return read("\n".join(["x,row", *(f"{cell},{row}" for row, cell in enumerate(cells))]).encode())["x"]


@pytest.mark.parametrize(
    ("cells", "dtype", "values"),
    [
        (["1", "-2", "+3", "007"], pl.Int64, [1, -2, 3, 7]),
        (["9223372036854775807", "1"], pl.Int64, [2**63 - 1, 1]),
        (["9223372036854775808", "1"], pl.Float64, [2.0**63, 1.0]),
        (["1", "2.5", "1e3", ".5"], pl.Float64, [1.0, 2.5, 1000.0, 0.5]),
        (["1.5", "inf", "-Infinity", "1e999"], pl.Float64, [1.5, None, None, None]),
        (["", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "?", "1"], pl.Int64, [None] * 10 + [1]),
        (["NA", "?", ""], pl.Float64, [None, None, None]),
        (["true", "FALSE", "True", "NA"], pl.Boolean, [True, False, True, None]),
        (["yes", "No", "YES"], pl.String, ["yes", "No", "YES"]),
        (["true", "no"], pl.String, ["true", "no"]),
        (["1", "true"], pl.String, ["1", "true"]),
        (["1", "x", "NA"], pl.String, ["1", "x", None]),
        (["1_000", "0x10"], pl.String, ["1_000", "0x10"]),
        (["2020-02-29", "NA"], DATETIME, [dt.datetime(2020, 2, 29), None]),
        (["2020-02-30"], pl.String, ["2020-02-30"]),
        (["2020-02-29", "2020-01-01T10:30"], DATETIME, [dt.datetime(2020, 2, 29), dt.datetime(2020, 1, 1, 10, 30)]),
        (["2020-01-01 10:30:01.25Z"], DATETIME, [dt.datetime(2020, 1, 1, 10, 30, 1, 250_000)]),
        (["2020-01-01T01:30:00+02:00"], DATETIME, [dt.datetime(2019, 12, 31, 23, 30)]),
        (["2020-01-01T01:30:00-0930"], DATETIME, [dt.datetime(2020, 1, 1, 11, 0)]),
        (["2020-01-01T25:00"], pl.String, ["2020-01-01T25:00"]),
        (["01.02.2020"], pl.String, ["01.02.2020"]),
    ],
    ids=range(21),
)
def test_text_is_typed_by_all_of_its_values(cells: list[str], dtype: Any, values: list[Any]) -> None:
    column = parse(*cells)
    assert column.dtype == dtype
    assert column.to_list() == values


@pytest.mark.parametrize(
    ("first", "last", "dtype"),
    [
        ("1", "word", pl.String),
        ("1", "2.5", pl.Float64),
        ("1", "1e999", pl.Float64),
        ("2.5", "2020-01-01", pl.String),
        ("true", "FALSE", pl.Boolean),
        ("true", "yes", pl.String),
        ("2020-01-01", "2020-01-02T10:00", DATETIME),
        ("2020-01-01", "soon", pl.String),
        ("NA", "word", pl.String),
        ("NA", "7", pl.Int64),
        ("NA", "2020-01-01", DATETIME),
    ],
)
def test_first_rows_may_mislead(first: str, last: str, dtype: Any) -> None:
    """There are more of them than are looked at before the whole file is."""
    column = parse(*[first] * 1500, last)
    assert column.dtype == dtype
    assert column.null_count() == 1500 * (first == "NA") + (last == "1e999")
    if dtype == pl.String:
        assert column[-1] == last


@given(st.datetimes(dt.datetime(2, 1, 1), dt.datetime(9998, 12, 31), timezones=st.just(dt.UTC) | st.none()))
def test_iso_datetimes_are_read_as_python_reads_them(moment: dt.datetime) -> None:
    for text in (moment.isoformat(), moment.isoformat(" ", "milliseconds"), moment.isoformat(timespec="minutes")):
        expected = dt.datetime.fromisoformat(text).replace(tzinfo=None)
        assert pl.select(read_datetimes(pl.lit(text))).item() == expected


@given(
    st.datetimes(dt.datetime(2, 1, 1), dt.datetime(9998, 12, 31)),
    st.integers(-23 * 60, 23 * 60).map(lambda minutes: dt.timezone(dt.timedelta(minutes=minutes))),
)
def test_offsets_are_taken_off(moment: dt.datetime, zone: dt.timezone) -> None:
    text = moment.replace(tzinfo=zone).isoformat()
    expected = moment.replace(tzinfo=zone).astimezone(dt.UTC).replace(tzinfo=None)
    assert pl.select(read_datetimes(pl.lit(text))).item() == expected


def test_typed_formats_keep_text_that_looks_like_something_else() -> None:
    frame = pl.DataFrame({"x": ["1", "2"], "y": ["yes", "no"], "z": ["", "NA"], "when": ["2020-01-01", None]})
    file = io.BytesIO()
    frame.write_parquet(file)
    got = read(file.getvalue())
    assert got.drop("when").equals(frame.drop("when"))
    assert got["when"].to_list() == [dt.datetime(2020, 1, 1), None]


STORED: list[tuple[pl.Series, list[Any]]] = [
    (pl.Series([1, None], dtype=pl.Int8), [1, None]),
    (pl.Series([1, 2**64 - 1], dtype=pl.UInt64), [1.0, 2.0**64]),
    (pl.Series([1, None], dtype=pl.UInt64), [1, None]),
    (pl.Series([1.5, float("nan")], dtype=pl.Float32), [1.5, None]),
    (pl.Series([1.5, float("inf")]), [1.5, None]),
    (pl.Series(["1.50", None]).cast(pl.Decimal(10, 2)), [1.5, None]),
    (pl.Series([None, None]), [None, None]),
    (pl.Series([None, None], dtype=pl.String), [None, None]),
    (pl.Series(["a", None], dtype=pl.Categorical), ["a", None]),
    (pl.Series(["a", None], dtype=pl.Enum(["b", "a"])), ["a", None]),
    (pl.Series([dt.date(2020, 1, 2), None]), [dt.datetime(2020, 1, 2), None]),
    (pl.Series([dt.datetime(2020, 1, 2, 3), None], dtype=pl.Datetime("ms")), [dt.datetime(2020, 1, 2, 3), None]),
    (pl.Series([dt.datetime(2020, 1, 2, 3)]).dt.replace_time_zone("Europe/Paris"), [dt.datetime(2020, 1, 2, 2)]),
    (pl.Series([dt.timedelta(minutes=1.5), None]), [90.0, None]),
    (pl.Series([dt.time(0, 1, 30), None]), [90.0, None]),
]


@pytest.mark.parametrize(("column", "values"), STORED, ids=[str(column.dtype) for column, _ in STORED])
def test_every_type_becomes_one_that_is_stored(column: pl.Series, values: list[Any]) -> None:
    file = io.BytesIO()
    column.alias("x").to_frame().write_ipc(file)
    got = read(file.getvalue())["x"]
    assert got.dtype in (pl.Int64, pl.Float64, pl.String, pl.Boolean, DATETIME)
    assert got.to_list() == values
    assert [type(value) for value in got] == [type(value) for value in values]


@pytest.mark.parametrize("cell", [[1, 2], {"a": 1}, b"\x00"], ids=["list", "object", "bytes"])
def test_what_is_no_single_value_is_refused(cell: Any) -> None:
    file = io.BytesIO()
    pl.DataFrame({"fine": [1], "odd": [cell]}).write_parquet(file)
    with pytest.raises(InvalidInput, match="column 'odd' holds"):
        read(file.getvalue())


def test_the_numbers_that_pandas_gives_to_rows_are_no_column() -> None:
    table = pl.DataFrame({"x": [1, 2], "__index_level_0__": [7, 5], "__index_level_1__": ["a", "b"]})
    assert storable_table(table.lazy(), 1).collect().columns == ["x"]
