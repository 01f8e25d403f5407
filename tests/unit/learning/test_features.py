"""Columns to tensors: fitted on the training rows, the same at predict time, the same after the disk."""

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.errors import BadData
from app.learning import features as features_module
from app.learning.features import MISSING, UNSEEN, Features, InputColumns, embedding_width, input_columns
from app.specs.table import Column
from app.specs.training import FeaturesSpec
from app.storage.tensors import read_tensors, write_tensors
from tests.samples import table_of

PLAIN = FeaturesSpec()
RAW = FeaturesSpec(standardize=False)
ONE_HOT = FeaturesSpec(categorical="one_hot")


def fit(frame: pl.DataFrame, spec: FeaturesSpec | None = PLAIN) -> Features:
    """Features of all columns, whose kinds are those that a stored table would have."""
    columns = tuple(Column(name=column.name, kind=column.kind) for column in table_of(frame).columns)
    return Features.fit(columns, [frame], spec)


def encode(frame: pl.DataFrame, spec: FeaturesSpec | None = PLAIN) -> list[list[float]]:
    return fit(frame, spec).transform(frame).tolist()


# ---- numbers


def test_measures_are_standardized() -> None:
    x = [1.0, 2.0, 3.0, 10.0]
    found = torch.tensor(encode(pl.DataFrame({"x": x})))[:, 0]
    expected = (torch.tensor(x) - 4.0) / np.std(x)
    torch.testing.assert_close(found, expected.float())


@pytest.mark.parametrize("unit", [1e-150, 1e-13, 1e30, 1e150])
def test_the_unit_of_a_measure_makes_no_difference(unit: float) -> None:
    x = [1.0, 2.0, 3.0, 10.0]
    assert encode(pl.DataFrame({"x": [value * unit for value in x]})) == encode(pl.DataFrame({"x": x}))


@pytest.mark.parametrize("largest", [1e200, 1.7976931348623157e308])
def test_a_column_without_a_deviation_in_float64_is_refused(largest: float) -> None:
    frame = pl.DataFrame({"t": [datetime(2026, 1, 1)] * 3, "x": [1.0, 2.0, 3.0], "z": [1.0, largest, largest]})
    with pytest.raises(BadData, match="column 'z' holds numbers so large"):
        fit(frame)


def test_large_offsets_keep_their_digits() -> None:
    years = [20260101.0 + i for i in range(5)]
    found = encode(pl.DataFrame({"x": years}))
    assert [row[0] for row in found] == pytest.approx([-(2**0.5), -(0.5**0.5), 0, 0.5**0.5, 2**0.5], rel=1e-6)


@pytest.mark.parametrize("spec", [RAW, None])
def test_numbers_can_stay_as_they_are(spec: FeaturesSpec | None) -> None:
    frame = pl.DataFrame({"x": [1.5, -2.0], "n": [3, 4], "b": [True, False]})
    assert encode(frame, spec) == [[1.5, 3.0, 1.0], [-2.0, 4.0, 0.0]]


@pytest.mark.parametrize("value", [0.0, 3.0, 0.1, 1e9 + 0.1, -1e-30])
def test_a_constant_column_is_zero_and_new_values_stay_small(value: float) -> None:
    features = fit(pl.DataFrame({"x": [value] * 7}))
    assert features.transform(pl.DataFrame({"x": [value]})).tolist() == [[pytest.approx(0.0, abs=1e-6)]]
    assert features.transform(pl.DataFrame({"x": [value + 1]})).item() == pytest.approx(1.0, abs=1e-6)


def test_missing_values_are_the_mean_and_have_a_flag() -> None:
    frame = pl.DataFrame({"x": [1.0, None, 3.0], "y": [5.0, 6.0, 7.0]})
    assert encode(frame, RAW) == [[1.0, 5.0, 0.0], [2.0, 6.0, 1.0], [3.0, 7.0, 0.0]]
    assert [row[0] for row in encode(frame)] == pytest.approx([-1.0, 0.0, 1.0])


def test_values_missing_only_later_are_the_mean_without_a_flag() -> None:
    features = fit(pl.DataFrame({"x": [1.0, 3.0]}), RAW)
    assert features.transform(pl.DataFrame({"x": [None]}, schema={"x": pl.Float64})).tolist() == [[2.0]]


def test_a_column_without_values_is_zero() -> None:
    frame = pl.DataFrame({"x": [None, None], "y": [1.0, 2.0]}, schema={"x": pl.Float64, "y": pl.Float64})
    found = torch.tensor(encode(frame))
    assert found.isfinite().all()
    assert found[:, 0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("spec", [None, FeaturesSpec(missing="error")])
def test_missing_values_can_be_refused(spec: FeaturesSpec | None) -> None:
    with pytest.raises(BadData, match="'x'"):
        fit(pl.DataFrame({"x": [1.0, None]}), spec)


def test_constants_are_those_of_the_training_rows() -> None:
    train, other = pl.DataFrame({"x": [0.0, 2.0], "c": ["a", "b"]}), pl.DataFrame({"x": [4.0], "c": ["z"]})
    assert fit(train).transform(other).tolist() == [[3.0, UNSEEN]]


@pytest.mark.parametrize("size", [1, 3, 5, 8])
def test_constants_are_the_same_from_parts_as_from_the_whole(size: int) -> None:
    x = [None, None, None, 1e9, 1e9 + 1, 1e9 + 3, None, 1e9 + 7]
    frame = pl.DataFrame(
        {"x": x, "y": [float(row**2) for row in range(8)], "c": ["b", None, "a", "c", "a", "a", "b", "d"]}
    )
    whole = fit(frame)
    found = Features.fit(whole.columns, frame.iter_slices(size), PLAIN)
    assert (found.flagged, found.vocabularies) == (whole.flagged, whole.vocabularies)
    for name, mean, std in zip("xy", found.mean, found.std, strict=True):
        values = frame[name].drop_nulls().to_numpy()
        assert (mean, std) == (pytest.approx(values.mean(), rel=1e-15), pytest.approx(values.std(), rel=1e-7))


# ---- categories


def test_categories_are_numbered_by_name() -> None:
    frame = pl.DataFrame({"c": ["pear", "apple", "fig", "apple"]})
    assert encode(frame) == [[4.0], [2.0], [3.0], [2.0]]
    assert encode(frame.reverse()) == [[2.0], [3.0], [2.0], [4.0]]


def test_unseen_and_missing_categories_have_places() -> None:
    features = fit(pl.DataFrame({"c": ["a", "b", None]}))
    later = pl.DataFrame({"c": ["b", None, "new", ""]})
    assert features.transform(later).flatten().tolist() == [3, MISSING, UNSEEN, UNSEEN]
    assert fit(pl.DataFrame({"c": ["a", "b"]})).transform(later).flatten().tolist() == [3, MISSING, UNSEEN, UNSEEN]


def test_words_have_the_same_codes_in_few_rows_as_in_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few, none goes through the vocabulary, which may be large."""
    words = [None, "new", *(f"word {number % 70}" for number in range(1000))]
    frame = pl.DataFrame({"c": words})
    features = fit(frame[2:])
    many = features.transform(frame)
    monkeypatch.setattr(pl, "Enum", None)
    assert torch.equal(torch.cat([features.transform(part) for part in frame.iter_slices(100)]), many)


def test_the_most_frequent_categories_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "MAX_VOCABULARY", 2)
    features = fit(pl.DataFrame({"c": ["z", "z", "m", "b", "b", "a"]}))
    assert features.vocabularies == {"c": ("b", "z")}
    features = fit(pl.DataFrame({"c": ["b", "a", "z", "z"]}))
    assert features.vocabularies == {"c": ("a", "z")}


def test_a_training_part_without_any_category() -> None:
    column = Column(name="c", kind="categorical")
    features = Features.fit([column], [pl.DataFrame({"c": [None, None]}, schema={"c": pl.String})], PLAIN)
    assert features.transform(pl.DataFrame({"c": ["a", None]})).flatten().tolist() == [UNSEEN, MISSING]


def test_one_hot_columns() -> None:
    front = fit(pl.DataFrame({"x": [1.0, 2.0], "c": ["a", "b"]}), ONE_HOT).front()
    encoded = torch.tensor([[0.5, 0], [0.5, 1], [0.5, 3]])
    assert front(encoded).tolist() == [[0.5, 1, 0, 0, 0], [0.5, 0, 1, 0, 0], [0.5, 0, 0, 0, 1]]
    assert not list(front.parameters())


def test_embeddings_are_looked_up() -> None:
    front = InputColumns(1, [4, 5], "embedding")
    for embedding in front.embeddings:
        torch.nn.init.normal_(embedding.weight)  # type: ignore[arg-type]
    found = front(torch.tensor([[0.5, 3, 4]]))
    expected = [torch.tensor([0.5]), front.embeddings[0].weight[3], front.embeddings[1].weight[4]]
    torch.testing.assert_close(found[0], torch.cat(expected))  # type: ignore[arg-type]


def test_what_was_never_trained_says_nothing() -> None:
    embedding = InputColumns(0, [500], "embedding").embeddings[0]
    assert (embedding.weight[[UNSEEN, MISSING]] == 0).all()  # type: ignore[index]
    assert (embedding.weight[2:] != 0).all()  # type: ignore[index]
    assert embedding.weight[2:].std().item() == pytest.approx(0.1, rel=0.05)  # type: ignore[index, operator]


@pytest.mark.parametrize(("num_codes", "width"), [(2, 2), (10, 6), (100, 21), (100_000, 50)])
def test_embeddings_grow_slowly(num_codes: int, width: int) -> None:
    assert embedding_width(num_codes) == width


# ---- datetimes


def test_datetimes_become_calendar_parts() -> None:
    frame = pl.DataFrame({"t": [datetime(2026, 1, 31, 12, 30, 15), None, datetime(2024, 2, 29)]})
    assert encode(frame, RAW) == [
        [2026, 1, 31, 6, 12, 30, 15, 0],
        [2025, 1.5, 30, 5, 6, 15, 7.5, 1],
        [2024, 2, 29, 4, 0, 0, 0, 0],
    ]


# ---- laws

MIXED = pl.DataFrame(
    {
        "x": [1.0, None, 3.0, 4.5],
        "n": [3, 4, 5, 7],
        "b": [True, False, None, True],
        "c": ["u", "v", None, "u"],
        "t": [datetime(2026, 1, 1), datetime(2026, 2, 1), None, datetime(2026, 2, 1, 5)],
    }
)
SPECS = [PLAIN, RAW, ONE_HOT]


@pytest.mark.parametrize("spec", SPECS)
def test_features_come_back_from_disk(spec: FeaturesSpec, tmp_path: Path) -> None:
    features = fit(MIXED, spec)
    tensors, config = features.export()
    write_tensors(tmp_path / "features", tensors)
    loaded = Features.load(read_tensors(tmp_path / "features")[0], config)
    assert torch.equal(loaded.transform(MIXED), features.transform(MIXED))
    assert loaded.front().state_dict().keys() == features.front().state_dict().keys()
    assert (loaded.columns, loaded.spec, loaded.num_inputs) == (features.columns, features.spec, features.num_inputs)


@pytest.mark.parametrize("spec", SPECS)
def test_the_width_is_as_the_profile_lets_expect(spec: FeaturesSpec) -> None:
    features = fit(MIXED, spec)
    front, num_inputs = input_columns(table_of(MIXED).columns, spec)
    assert num_inputs == features.num_inputs == features.transform(MIXED).shape[1]
    row = torch.empty((1, num_inputs), device="meta")
    assert front(row).shape == features.front()(row).shape


@pytest.mark.parametrize("spec", SPECS)
def test_rows_do_not_depend_on_each_other(spec: FeaturesSpec) -> None:
    features = fit(MIXED, spec)
    together = features.transform(MIXED)
    for index in range(MIXED.height):
        assert torch.equal(features.transform(MIXED[index : index + 1])[0], together[index])


cells = st.one_of(st.none(), st.floats(-1e6, 1e6), st.integers(-1000, 1000))


@given(
    train=st.lists(st.tuples(cells, cells, st.sampled_from([None, True, False])), min_size=1, max_size=8),
    later=st.lists(st.tuples(cells, cells, st.sampled_from([None, True, False])), min_size=1, max_size=8),
    spec=st.sampled_from([PLAIN, RAW]),
)
def test_a_matrix_is_encoded_as_a_frame_is(train: list[Any], later: list[Any], spec: FeaturesSpec) -> None:
    schema = {"x": pl.Float64(), "y": pl.Float64(), "b": pl.Boolean()}
    columns = [
        Column(name="x", kind="numeric"),
        Column(name="y", kind="numeric"),
        Column(name="b", kind="boolean"),
    ]
    features = Features.fit(columns, [pl.DataFrame(train, schema=schema, orient="row", strict=False)], spec)
    frame = pl.DataFrame(later, schema=schema, orient="row", strict=False)
    matrix = np.array([[np.nan if cell is None else float(cell) for cell in row] for row in later])
    assert features.all_measures
    assert torch.equal(features.transform_numbers(matrix), features.transform(frame))


@pytest.mark.parametrize("mean", [0.0, 1e6 / 3, -3e38, 1e-38])
@pytest.mark.parametrize("std", [1e-36, 1e-3, 1.0, 3e37])
def test_a_matrix_of_float32_loses_nothing(mean: float, std: float) -> None:
    """What float64 makes of the same numbers, gaps and all."""
    features = Features((Column(name="x", kind="numeric"),), PLAIN, np.array([mean]), np.array([std]))
    deviations = np.array([-2.0, -1e-3, 0.0, 1.0, 3.0])
    numbers = np.clip(mean + std * deviations, -3.4e38, 3.4e38)
    single = np.append(numbers, [np.nan, 3.4e38, 1e-40])[:, None].astype(np.float32)
    exact = features.transform_numbers(single.astype(np.float64))
    torch.testing.assert_close(features.transform_numbers(single), exact, rtol=3e-7, atol=1e-37)


def test_words_and_times_are_no_matrix() -> None:
    assert not fit(MIXED).all_measures
    assert not fit(MIXED.select("t")).all_measures
