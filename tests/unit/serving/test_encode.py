"""Rows as clients send them: encoded as in training, or refused with a pointer to every cell that is wrong."""

from datetime import datetime
from typing import Any

import orjson
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.errors import Fault, InvalidInput, ShapeMismatch, UnknownColumn
from app.learning.model import Model
from app.serving import encode
from app.serving.encode import MAX_FAULTS, encode_rows
from app.specs.resolve_columns import unknown_column
from tests.samples import untrained

NUM_ROWS = 25  # more different texts than categories have
NUMBERS = pl.DataFrame(
    {
        "a": [None if i == 3 else i / 2 for i in range(NUM_ROWS)],
        "b": [i % 3 == 0 for i in range(NUM_ROWS)],
        "y": [i * 0.5 for i in range(NUM_ROWS)],
    }
)
MIXED = NUMBERS.with_columns(
    c=pl.Series([None if i == 5 else ["red", "green", "blue/green"][i % 3] for i in range(NUM_ROWS)]),
    t=pl.Series([None if i == 7 else datetime(2026, 1, 1 + i, 12, 30) for i in range(NUM_ROWS)]),
    n=pl.Series([f"a note that is not used, number {i}" for i in range(NUM_ROWS)]),
).rename({"a": "a~b/c"})
QUICK: dict[str, Any] = {"network": {"hidden_features": []}}
NUMERIC = untrained(NUMBERS, **QUICK)
TABULAR = untrained(MIXED, **QUICK)
COMPLETE = untrained(NUMBERS.fill_null(0.0), **QUICK, features=None)
STRICT = untrained(MIXED.drop_nulls(), **QUICK, features={"missing": "error"})


def encoded(model: Model, rows: list[Any]) -> torch.Tensor:
    plain = orjson.loads(orjson.dumps(rows, default=str))
    return encode_rows(model.features, model.signature, plain)


def faults(model: Model, rows: list[Any], kind: type[InvalidInput] = InvalidInput) -> list[tuple[str, str]]:
    with pytest.raises(InvalidInput) as caught:
        encode_rows(model.features, model.signature, rows)
    assert type(caught.value) is kind
    assert caught.value.detail == caught.value.faults[0].detail
    return [(fault.pointer, fault.detail) for fault in caught.value.faults]


# ---- the same as training


def test_rows_of_the_training_table_are_encoded_as_in_training() -> None:
    names = [column.name for column in TABULAR.signature.inputs]
    assert names == ["a~b/c", "b", "c", "t"]
    expected = TABULAR.features.transform(MIXED)
    records = MIXED.select(names).to_dicts()
    assert torch.equal(encoded(TABULAR, records), expected)
    assert torch.equal(encoded(TABULAR, [list(record.values()) for record in records]), expected)
    assert torch.equal(encoded(TABULAR, [dict(reversed(record.items())) for record in records]), expected)


def test_columns_that_were_in_the_table_may_be_carried_along() -> None:
    assert torch.equal(encoded(TABULAR, MIXED.to_dicts()), TABULAR.features.transform(MIXED))


def test_what_an_object_leaves_out_is_missing() -> None:
    gaps = pl.DataFrame({name: [None] for name in MIXED.columns}, schema=MIXED.schema)
    assert torch.equal(encoded(TABULAR, [{}]), TABULAR.features.transform(gaps))
    assert torch.equal(encoded(TABULAR, [[None, None, None, None]]), TABULAR.features.transform(gaps))


cells = st.one_of(st.none(), st.integers(-(10**6), 10**6), st.floats(-1e6, 1e6))


@given(st.lists(st.tuples(cells, st.sampled_from([None, True, False, 0, 1, 1.0])), min_size=1, max_size=6))
def test_lists_are_encoded_as_objects_are(rows: list[tuple[Any, Any]]) -> None:
    lists = [list(row) for row in rows]
    objects = [dict(zip("ab", row, strict=True)) for row in rows]
    assert torch.equal(encoded(NUMERIC, lists), encoded(NUMERIC, objects))


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2026-01-31", datetime(2026, 1, 31)),
        ("2026-01-31T12:30", datetime(2026, 1, 31, 12, 30)),
        ("2026-01-31 12:30:15", datetime(2026, 1, 31, 12, 30, 15)),
        ("2026-01-31T12:30:15Z", datetime(2026, 1, 31, 12, 30, 15)),
        ("2026-01-31T12:30:15.5+02:00", datetime(2026, 1, 31, 10, 30, 15, 500000)),
    ],
)
def test_times_are_read_as_in_a_table(text: str, utc: datetime) -> None:
    frame = pl.DataFrame({"a~b/c": [1.0], "b": [True], "c": ["red"], "t": [utc]})
    expected = TABULAR.features.transform(frame)
    assert torch.equal(encoded(TABULAR, [{"a~b/c": 1.0, "b": True, "c": "red", "t": text}]), expected)
    mixed = [{"t": "2026-01-01"}, {"t": None}, {"a~b/c": 1.0, "b": True, "c": "red", "t": text}]
    assert torch.equal(encoded(TABULAR, mixed)[2:], expected)


@pytest.mark.parametrize(("given_as", "text"), [(1, "1"), (True, "true"), (1.5, "1.5")])
def test_numbers_and_flags_can_be_categories(given_as: Any, text: str) -> None:
    frame = pl.DataFrame({"c": ["1", "true", "1.5", "2"], "y": [1.0, 2.0, 3.0, 4.5]})
    model = untrained(frame, **QUICK)
    assert torch.equal(encoded(model, [[given_as]]), encoded(model, [[text]]))
    assert encoded(model, [[text]]).item() >= 2


def test_huge_whole_numbers_are_numbers() -> None:
    for huge in (2**62, 2**63, 2**64, 10**30, -(2**63) - 1):
        for others in ([], [[1.5, 1]], [[-1, None]]):
            found = encode_rows(NUMERIC.features, NUMERIC.signature, [[huge, 0], *others])
            assert torch.equal(found, encoded(NUMERIC, [[float(huge), 0], *others]))


def test_numbers_beyond_float32_are_infinite() -> None:
    for model in (NUMERIC, COMPLETE):
        assert encoded(model, [[1e300, 0]])[0, 0] == torch.inf
        assert not model.predict(encoded(model, [[-1e308, 0]])).isfinite().any()


# ---- what is refused


@pytest.mark.parametrize(
    ("rows", "pointer", "words"),
    [
        ([], "/inputs", "no rows"),
        ([[1]], "/inputs/0", "1 values; the model takes 2: a, b"),
        ([[1, 0], [1, 0, 2]], "/inputs/1", "3 values"),
        ([[]], "/inputs/0", "0 values"),
        ([1, 2], "/inputs/0", "list of 2 values"),
        ([[1, 0], 5], "/inputs/1", "list of 2 values"),
        ([[1, 0], {"a": 1}], "/inputs/1", "list of 2 values"),
        ([{"a": 1}, [1, 0]], "/inputs/1", "must be one"),
        ([{"a": 1}, None], "/inputs/1", "must be one"),
        ([None], "/inputs/0", "list of 2 values"),
        (["ab"], "/inputs/0", "list of 2 values"),
        ([[[1, 0], [1, 0], [1, 0]]], "/inputs/0", "a list of lists; a row is one list of 2 values"),
    ],
)
def test_rows_that_do_not_fit(rows: list[Any], pointer: str, words: str) -> None:
    found = faults(NUMERIC, rows, ShapeMismatch)
    assert found[0][0] == pointer
    assert words in found[0][1]


@pytest.mark.parametrize(
    ("cell", "pointer", "words"),
    [
        (["x", 0], "/inputs/1/0", "'a' takes a number or null, not 'x'"),
        (["1", 0], "/inputs/1/0", "not '1'"),
        ([[1], 0], "/inputs/1/0", "not [1]"),
        ([{"v": 1}, 0], "/inputs/1/0", "not {'v': 1}"),
        ([10**400, 0], "/inputs/1/0", "…"),
        ([1, 5], "/inputs/1/1", "'b' takes true, false or null, not 5"),
        ([1, -1.0], "/inputs/1/1", "not -1.0"),
        ([1, "true"], "/inputs/1/1", "not 'true'"),
    ],
)
def test_cells_that_are_wrong(cell: list[Any], pointer: str, words: str) -> None:
    pointer_of_name = pointer.replace("/1/0", "/1/a").replace("/1/1", "/1/b")
    for rows, expected in [([[1, 0], cell], pointer), ([{}, dict(zip("ab", cell, strict=True))], pointer_of_name)]:
        found = faults(NUMERIC, rows)
        assert len(found) == 1
        assert found[0][0] == expected
        assert words in found[0][1]


@pytest.mark.parametrize(
    ("record", "pointer", "words"),
    [
        ({"a~b/c": "x"}, "/inputs/0/a~0b~1c", "a number"),
        ({"c": ["red"]}, "/inputs/0/c", "a text"),
        ({"t": 5}, "/inputs/0/t", "a time"),
        ({"t": "yesterday"}, "/inputs/0/t", "not 'yesterday'"),
        ({"t": "2026-02-30"}, "/inputs/0/t", "2026-01-31T12:00:00"),
        ({"t": ""}, "/inputs/0/t", "not ''"),
        ({"c": "x" * 10_000, "b": "x" * 10_000}, "/inputs/0/b", "…"),
    ],
)
def test_cells_of_every_kind(record: dict[str, Any], pointer: str, words: str) -> None:
    found = faults(TABULAR, [record])
    assert found[0][0] == pointer
    assert words in found[0][1]
    assert len(found[0][1]) < 200


def test_a_wrong_time_is_found_among_right_ones() -> None:
    rows = [{"t": "2026-01-31"}, {"t": "never"}, {}, {"t": "2026-13-01"}]
    assert [pointer for pointer, _ in faults(TABULAR, rows)] == ["/inputs/1/t", "/inputs/3/t"]


def test_faults_of_all_columns_are_told_together() -> None:
    rows = [{"a~b/c": "x", "b": 7}, {"c": {}, "t": False}]
    found = {pointer for pointer, _ in faults(TABULAR, rows)}
    assert found == {"/inputs/0/a~0b~1c", "/inputs/0/b", "/inputs/1/c", "/inputs/1/t"}


@pytest.mark.parametrize(
    "rows",
    [
        [["x", 0]] * 1000,
        [["x", "x"]] * 1000,
        [[1]] * 1000,
        [{"z": 1}] * 1000,
        [dict.fromkeys(map(str, range(1000)))],
        [{"a": "x"}] * 1000,
        [5] * 1000,
    ],
)
def test_more_than_enough_faults_are_not_told(rows: list[Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        encode_rows(NUMERIC.features, NUMERIC.signature, rows)
    assert len(caught.value.faults) == MAX_FAULTS


@pytest.mark.parametrize(
    ("record", "pointer", "words"),
    [
        ({"aa": 1}, "/inputs/0/aa", "did you mean 'a'?"),
        ({"A": 1}, "/inputs/0/A", "did you mean 'a'?"),
        ({"qqq": 1}, "/inputs/0/qqq", "there are: a, b"),
        ({"x/y~z": 1}, "/inputs/0/x~1y~0z", "x/y~z"),
        ({"": 1}, "/inputs/0/", "''"),
    ],
)
def test_unknown_columns_come_with_a_hint(record: dict[str, Any], pointer: str, words: str) -> None:
    found = faults(NUMERIC, [record], UnknownColumn)
    assert found[0][0] == pointer
    assert words in found[0][1]


def test_of_many_names_it_is_said_how_many_are_not_named() -> None:
    names = [f"c{place}" for place in range(23)]
    assert unknown_column("qqq", names).endswith("c18, c19 and 3 more")
    assert unknown_column("qqq", names[:20]).endswith("c18, c19")


def test_a_name_is_not_held_against_more_names_than_can_be_looked_at_in_no_time() -> None:
    names = [f"column {place}" for place in range(10_000)]
    assert "did you mean 'column 5'?" in unknown_column("colunm 5", names[:1000])
    assert "there are: column 0, " in unknown_column("colunm 5", names)
    assert "there are: " in unknown_column("a" * 1000, ["a" * 999])


# ---- models that take no missing values


def test_missing_values_are_refused_where_training_had_none() -> None:
    assert [pointer for pointer, _ in faults(COMPLETE, [[1, 0], [None, 1], [2, None]])] == [
        "/inputs/1/0",
        "/inputs/2/1",
    ]
    assert [pointer for pointer, _ in faults(COMPLETE, [{"a": 1, "b": 1}, {"b": 1}])] == ["/inputs/1/a"]
    found = faults(STRICT, [{"b": True, "c": "red", "t": "2026-01-01"}])
    assert found[0][0] == "/inputs/0/a~0b~1c"
    assert "missing" in found[0][1]
    assert [pointer for pointer, _ in faults(STRICT, [[1.0, True, None, "2026-01-01"]])] == ["/inputs/0/2"]
    encoded(STRICT, [[1.0, True, "never seen", "2026-01-01"]])


def test_only_the_first_missing_values_are_told() -> None:
    assert len(faults(COMPLETE, [[None, None]] * 1000)) == MAX_FAULTS


# ---- the fast way is the slow way


@given(st.lists(st.tuples(cells, st.sampled_from([None, True, 0])), min_size=1, max_size=6))
def test_a_matrix_is_encoded_as_a_look_at_every_cell_would(rows: list[tuple[Any, Any]]) -> None:
    lists = [list(row) for row in rows]
    frame = encode._frame_of_lists(NUMERIC.signature, lists, "/inputs")
    assert torch.equal(encoded(NUMERIC, lists), NUMERIC.features.transform(frame))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(anything, max_size=5))
def test_anything_else_is_refused_in_words(rows: list[Any]) -> None:
    for model in (NUMERIC, TABULAR, COMPLETE):
        found = answer_or_faults(model, rows)
        if isinstance(found, tuple):
            assert found
            assert all(fault.pointer.startswith("/inputs") and fault.detail for fault in found)
        else:
            assert found.shape == (len(rows), model.features.num_inputs)
            assert not found.isnan().any()


def answer_or_faults(model: Model, rows: list[Any]) -> torch.Tensor | tuple[Fault, ...]:
    try:
        return encode_rows(model.features, model.signature, rows)
    except InvalidInput as error:
        return error.faults
