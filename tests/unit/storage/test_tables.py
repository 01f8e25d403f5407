from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import GradserveError, InvalidInput, ShapeMismatch, TooLarge, UnknownColumn
from app.storage import tables
from app.storage.tables import MAX_FAULTS, TableParts, frame_from_inputs, frame_from_records, read_table


def pointers(error: InvalidInput) -> list[str]:
    return [fault.pointer for fault in error.faults]


# ---- records


def test_records_may_miss_keys_and_have_them_in_any_order() -> None:
    frame = frame_from_records([{"a": 1, "b": "x"}, {"c": True, "a": 2.5}, {"b": None, "d": None}])
    assert frame.schema == {"a": pl.Float64, "b": pl.String, "c": pl.Boolean, "d": pl.Float64}
    assert frame.rows() == [(1.0, "x", None, None), (2.5, None, True, None), (None, None, None, None)]


def test_numbers_that_no_column_can_hold() -> None:
    frame = frame_from_records([{"a": 2**70, "b": float("inf"), "c": 2**63 - 1}, {"a": 1, "b": 1, "c": -(2**63)}])
    assert frame.rows() == [(2.0**70, None, 2**63 - 1), (1.0, 1.0, -(2**63))]


def test_every_record_out_of_place_is_pointed_at() -> None:
    records = [{"a/b": 1, "c~": "x"}, {"a/b": "2", "c~": 3}, {"a/b": None, "c~": None}, {"a/b": True, "c~": [1]}]
    with pytest.raises(InvalidInput) as caught:
        frame_from_records(records)
    assert pointers(caught.value) == [
        "/data/records/1/a~1b",
        "/data/records/3/a~1b",
        "/data/records/1/c~0",
        "/data/records/3/c~0",
    ]
    assert caught.value.faults[0].detail == "this is text, but the column's earlier values are a number"
    said = "this is a list; a value is a number, text, a boolean or null; give each of its values a column"
    assert caught.value.faults[3].detail == said


@pytest.mark.parametrize(
    ("records", "pointer"),
    [
        ([], "/rows"),
        ([{"a": 1}, 2, [3]], "/rows/1"),
        ([{}, {}], "/rows/0"),
        ([{"": 1}], "/rows"),
        ([{"x" * 1001: 1}], "/rows"),
    ],
)
def test_records_that_are_no_table(records: list[Any], pointer: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        frame_from_records(records, "/rows")
    assert pointers(caught.value)[0] == pointer


def test_records_are_bounded_before_the_table_is_built() -> None:
    with pytest.raises(TooLarge, match="11 columns; at most 10"):
        frame_from_records([{f"x{place}": 1 for place in range(11)}], max_columns=10)
    with pytest.raises(TooLarge, match="too sparse"):
        frame_from_records([{f"x{row % 5000}": 1} for row in range(20_000)])


def test_faults_are_bounded() -> None:
    with pytest.raises(InvalidInput) as caught:
        frame_from_records([{"a": 1}, *({"a": "x"} for _ in range(1000))])
    assert len(caught.value.faults) == MAX_FAULTS


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "whole": st.integers(-(2**63), 2**63 - 1) | st.none(),
                "real": st.floats(allow_nan=False, allow_infinity=False) | st.none(),
                "flag": st.booleans() | st.none(),
                "text": st.text(st.characters(exclude_categories=["Cs"])) | st.none(),
            },
        ),
        min_size=1,
    ).filter(any)
)
def test_records_come_back_as_they_were(records: list[dict[str, Any]]) -> None:
    names = {name for record in records for name in record}
    assert frame_from_records(records).to_dicts() == [{name: row.get(name) for name in names} for row in records]


# ---- inputs


def test_inputs_and_flat_targets() -> None:
    frame = frame_from_inputs([[1, True], [2.5, None], [float("nan"), False]], ["a", "b", "a"], [1, 0.5, 0])
    assert frame.schema == {"x0": pl.Float64, "x1": pl.Float64, "y": pl.String, "sample_weight": pl.Float64}
    assert frame.rows() == [(1.0, 1.0, "a", 1.0), (2.5, None, "b", 0.5), (None, 0.0, "a", 0.0)]


def test_rows_of_targets_and_their_types() -> None:
    frame = frame_from_inputs([[1], [2]], [[1, True, "x", 1], [2, False, None, 2.5]])
    assert frame.columns == ["x0", "y0", "y1", "y2", "y3"]
    assert frame.dtypes[1:] == [pl.Int64, pl.Boolean, pl.String, pl.Float64]


@given(
    st.integers(1, 5).flatmap(
        lambda width: st.lists(
            st.lists(
                st.integers(-(2**60), 2**60)
                | st.floats(allow_nan=False, allow_infinity=False)
                | st.booleans()
                | st.none(),
                min_size=width,
                max_size=width,
            ),
            min_size=1,
        )
    )
)
def test_inputs_come_back_as_numbers(rows: list[list[Any]]) -> None:
    frame = frame_from_inputs(rows, list(range(len(rows))))
    assert frame.drop("y").rows() == [tuple(None if cell is None else float(cell) for cell in row) for row in rows]


@pytest.mark.parametrize(
    ("inputs", "targets", "weights", "error", "pointer", "said"),
    [
        ([], [], None, InvalidInput, "/data/inputs", "no rows"),
        ([1, 2], [1, 2], None, InvalidInput, "/data/inputs/0", "a row is a list"),
        ([[1], [2], {}], [1, 2, 3], None, InvalidInput, "/data/inputs/2", "this is an object"),
        ([[], []], [1, 2], None, ShapeMismatch, "/data/inputs/0", "empty"),
        ([[1, 2, 3], [1, 2]], [1, 2], None, ShapeMismatch, "/data/inputs/1", "this row has 2 numbers, the first has 3"),
        ([[1, 2], [1]], [1, 2], None, ShapeMismatch, "/data/inputs/1", "this row has 1 number, the first has 2"),
        ([[1, "2"]], [1], None, InvalidInput, "/data/inputs/0/1", "this is text; inputs are numbers"),
        ([[1], [[2]]], [1, 2], None, InvalidInput, "/data/inputs/1/0", "this is a list; a row is one list"),
        ([[1], [2]], [1], None, ShapeMismatch, "/data/targets", "1 of these for 2 rows"),
        ([[1], [2]], [1, "a"], None, InvalidInput, "/data/targets/1", "this is text"),
        ([[1], [2]], [1, [2]], None, InvalidInput, "/data/targets/1", "this is a list"),
        ([[1], [2]], [[1], 2], None, InvalidInput, "/data/targets/1", "this is a number"),
        ([[1], [2]], [[1], [2, 3]], None, ShapeMismatch, "/data/targets/1", "2 numbers, the first has 1"),
        ([[1], [2]], [[1, 2], [1, "x"]], None, InvalidInput, "/data/targets/1/1", "this is text"),
        ([[1], [2]], [1, 2], [1], ShapeMismatch, "/data/sample_weight", "1 of these for 2 rows"),
        ([[1], [2]], [1, 2], [1, -1], InvalidInput, "/data/sample_weight/1", "not negative"),
        ([[1], [2]], [1, 2], [1, float("inf")], InvalidInput, "/data/sample_weight/1", "not negative"),
        ([[1], [2]], [1, 2], [1, None], InvalidInput, "/data/sample_weight/1", "not negative"),
        ([[1], [2]], [1, 2], [0, 0.0], InvalidInput, "/data/sample_weight", "all weights are 0"),
    ],
    ids=range(19),
)
def test_inputs_that_are_no_table(
    inputs: list[Any],
    targets: list[Any],
    weights: list[Any] | None,
    error: type[GradserveError],
    pointer: str,
    said: str,
) -> None:
    with pytest.raises(InvalidInput) as caught:
        frame_from_inputs(inputs, targets, weights)
    assert type(caught.value) is error
    assert caught.value.faults[0].pointer == pointer
    assert said in caught.value.faults[0].detail
    assert caught.value.detail == caught.value.faults[0].detail


def test_inputs_are_as_wide_as_allowed() -> None:
    with pytest.raises(TooLarge, match="the rows have 3 numbers; at most 2"):
        frame_from_inputs([[1, 2, 3]], [1], max_columns=2)


# ---- stored tables


def test_reading_some_columns(tmp_path: Path) -> None:
    pl.DataFrame({"height": [1], "weight": [2], "age": [3]}).write_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", ["age", "height"]).to_dicts() == [{"age": 3, "height": 1}]
    with pytest.raises(UnknownColumn, match="'heihgt'; did you mean 'height'"):
        read_table(tmp_path / "t.parquet", ["age", "heihgt"])


# ---- in parts


@pytest.mark.parametrize(("part_rows", "group"), [(3, 4), (4, 4), (8, 2), (100, 1)])
def test_parts_are_the_table_as_often_as_one_likes(
    part_rows: int, group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "group_rows", lambda _columns: group)
    frame = pl.DataFrame({"a": range(21), "b": [str(i) for i in range(21)], "c": [0.5] * 21})
    frame.write_parquet(tmp_path / "table.parquet", row_group_size=4)
    parts = TableParts(tmp_path / "table.parquet", ["b", "a"], part_rows)
    for _ in range(2):
        found = list(parts)
        assert [part.height for part in found[:-1]] == [part_rows] * (len(found) - 1)
        assert pl.concat(found).equals(frame.select("b", "a"))
    with pytest.raises(UnknownColumn):
        TableParts(tmp_path / "table.parquet", ["z"], part_rows)
