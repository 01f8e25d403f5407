"""From a table to rows: what is held out, what is left out, what weighs how much."""

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.errors import BadData
from app.learning import targets
from app.learning.model import assemble
from app.learning.network import count_parameters
from app.learning.plan import expected_network
from app.learning.prepare import folds_of_rows, held_out_rows, prepare
from app.specs.resolve import signature_of
from tests.samples import prepared, resolved, table_of

labels = st.lists(st.integers(0, 4), min_size=2, max_size=80)
fractions = st.floats(0.01, 0.9)
seeds = st.integers(0, 2**53)


@given(st.integers(2, 200), fractions, seeds)
def test_held_out_rows_are_as_many_as_asked(num_rows: int, fraction: float, seed: int) -> None:
    mask = held_out_rows(num_rows, fraction, None, seed)
    assert mask.sum() == min(num_rows - 1, max(1, round(num_rows * fraction)))
    assert (mask == held_out_rows(num_rows, fraction, None, seed)).all()


@given(labels, fractions, seeds)
def test_each_class_gives_its_share(of_rows: list[int], fraction: float, seed: int) -> None:
    codes = np.array(of_rows)
    mask = held_out_rows(len(codes), fraction, codes, seed)
    wanted = min(len(codes) - 1, max(1, round(len(codes) * fraction)))
    assert mask.sum() == wanted
    for code in set(of_rows):
        share = (codes == code).mean() * wanted
        assert abs(mask[codes == code].sum() - share) <= 1 + 1e-9


@given(labels, fractions, seeds, st.integers(1, 30))
def test_rows_are_drawn_the_same_some_at_a_time(of_rows: list[int], fraction: float, seed: int, at_once: int) -> None:
    codes = np.array(of_rows)
    whole = held_out_rows(len(codes), fraction, codes, seed), folds_of_rows(len(codes), 2, codes, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "ROWS_AT_ONCE", at_once)
        parts = held_out_rows(len(codes), fraction, codes, seed), folds_of_rows(len(codes), 2, codes, seed)
    np.testing.assert_array_equal(whole, parts)


@pytest.mark.parametrize(
    ("flags", "is_told"),
    [([[0, 1], [1, 0], [1, 0]], True), ([[0, 1], [1, 1], [1, 0]], False), ([[0, 1], [0, 0], [1, 0]], False)],
)
def test_labels_of_which_each_row_has_one_are_told(flags: list[list[int]], is_told: bool) -> None:
    frame = pl.DataFrame({"x": [1.0, 2.0, 3.0], "a": [a for a, _ in flags], "b": [b for _, b in flags]})
    spec = resolved(frame, ["a", "b"], {"features": ["x"]}, validation=None)
    assert spec.task == "multilabel"
    told = [warning for warning in prepared(spec, frame).warnings if warning.startswith("each row has one label")]
    assert len(told) == is_told


@pytest.mark.parametrize("target", ["y", "k"])
def test_rows_are_the_same_some_at_a_time(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = resolved(FRAME, target, {"features": ["x"], "sample_weight": "w"}, validation={"fraction": 0.3})
    whole = prepared(spec, FRAME)
    monkeypatch.setattr(targets, "ROWS_AT_ONCE", 4)
    parts = prepare(spec, signature_of(spec, table_of(FRAME)), list(FRAME.iter_slices(7)), None)
    assert whole.targets.signature == parts.targets.signature
    for one, other in ((whole.train, parts.train), (whole.validation, parts.validation)):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one.inputs, other.inputs, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(one.targets, other.targets, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(one.weights, other.weights, rtol=0, atol=0)
    torch.testing.assert_close(whole.truth, parts.truth, rtol=0, atol=0)


def test_seeds_hold_out_different_rows() -> None:
    masks = {tuple(held_out_rows(50, 0.2, None, seed)) for seed in range(20)}
    assert len(masks) == 20


@given(labels, st.integers(2, 10), seeds)
def test_folds_divide_the_rows_and_each_class(of_rows: list[int], num_folds: int, seed: int) -> None:
    codes = np.array(of_rows)
    if len(codes) < num_folds:
        with pytest.raises(BadData, match="folds"):
            folds_of_rows(len(codes), num_folds, codes, seed)
        return
    folds = folds_of_rows(len(codes), num_folds, codes, seed)
    for rows in (folds, *(folds[codes == code] for code in set(of_rows))):
        sizes = np.bincount(rows, minlength=num_folds)
        assert len(sizes) == num_folds
        assert sizes.max() - sizes.min() <= 1
    assert (folds == folds_of_rows(len(codes), num_folds, codes, seed)).all()


# ---- a whole table

NUM_ROWS = 50
FRAME = pl.DataFrame(
    {
        "x": [float(i) for i in range(NUM_ROWS)],
        "c": [f"word {i % 10}" for i in range(NUM_ROWS)],
        "w": [1.0 + i for i in range(NUM_ROWS)],
        "y": [i * 0.5 for i in range(NUM_ROWS)],
        "k": [["a", "b", "b", "b", "c"][i % 5] for i in range(NUM_ROWS)],
    }
)


def test_constants_are_fitted_on_the_training_rows() -> None:
    frame = FRAME.with_columns(c=pl.Series([f"word {i}" for i in range(10)] * 5))
    found = prepared(resolved(frame, data={"features": ["x", "c"]}, validation={"fraction": 0.2}), frame)
    assert found.validation is not None
    assert (len(found.train), len(found.validation)) == (40, 10)
    torch.testing.assert_close(found.train.inputs[:, 0].mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.train.targets.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    assert abs(found.validation.inputs[:, 0].mean().item()) > 1e-3


def test_a_word_of_the_held_out_rows_alone_is_unseen() -> None:
    frame = FRAME.with_columns(c=pl.Series([f"word {i}" for i in range(NUM_ROWS)])).head(20)
    spec = resolved(frame, data={"features": ["c"]}, validation={"fraction": 0.2})
    found = prepared(spec, frame)
    assert found.validation is not None
    assert (found.validation.inputs == 0).all()
    assert (found.train.inputs >= 2).all()


def test_every_row_is_in_one_part() -> None:
    spec = resolved(FRAME, data={"features": ["x"]}, features=None, validation={"fraction": 0.3})
    found = prepared(spec, FRAME)
    assert found.validation is not None
    rows = torch.cat([found.train.inputs, found.validation.inputs]).flatten()
    assert sorted(rows.tolist()) == FRAME["x"].to_list()
    assert found.truth.flatten().tolist() == [x / 2 for x in found.validation.inputs.flatten().tolist()]
    assert found.train.targets.flatten().tolist() == [x / 2 for x in found.train.inputs.flatten().tolist()]


def test_folds_hold_out_every_row_once() -> None:
    spec = resolved(FRAME, data={"features": ["x"]}, features=None, validation={"folds": 3})
    held_out = []
    for fold in range(3):
        found = prepared(spec, FRAME, fold=fold)
        assert found.validation is not None
        assert len(found.train) + len(found.validation) == NUM_ROWS
        held_out += found.validation.inputs.flatten().tolist()
    assert sorted(held_out) == FRAME["x"].to_list()
    everything = prepared(spec, FRAME, fold=None)
    assert everything.validation is None
    assert len(everything.train) == NUM_ROWS


def test_another_table_can_judge() -> None:
    spec = resolved(FRAME, data={"features": ["x"]}, features=None, validation={"dataset": "other"})
    found = prepared(spec, FRAME, FRAME.head(7))
    assert found.validation is not None
    assert (len(found.train), len(found.validation)) == (NUM_ROWS, 7)


def test_another_table_s_labels_are_the_classes_of_the_first() -> None:
    spec = resolved(FRAME, "k", {"features": ["x"]}, features=None, validation={"dataset": "other"})
    found = prepared(spec, FRAME, FRAME.reverse().head(2))  # "c", then "b"
    assert found.targets.signature.classes == ("a", "b", "c")
    assert found.truth.tolist() == [2, 1]
    assert found.validation is not None
    assert found.validation.targets.tolist() == [2, 1]
    with pytest.raises(BadData, match="'z'"):
        prepared(spec, FRAME, FRAME.head(2).with_columns(k=pl.lit("z")))


@pytest.mark.parametrize("features", [None, {"missing": "error"}])
def test_another_table_may_have_no_missing_values_where_none_are_allowed(features: object) -> None:
    spec = resolved(FRAME, data={"features": ["x"]}, features=features, validation={"dataset": "other"})
    gaps = FRAME.with_columns(x=pl.lit(None, pl.Float64))
    with pytest.raises(BadData, match="'x'"):
        prepared(spec, FRAME, gaps)


def test_rows_without_a_target_are_left_out_and_told_of() -> None:
    frame = FRAME.with_columns(y=pl.when(pl.col("x") < 5).then(None).otherwise(pl.col("y")))
    found = prepared(resolved(frame, data={"features": ["x"]}, validation=None), frame)
    assert len(found.train) == NUM_ROWS - 5
    assert found.warnings == ["5 of 50 rows have no y and are left out"]


@pytest.mark.parametrize(("metric", "is_told"), [("roc_auc", True), ("accuracy", False)])
def test_validation_rows_of_one_class_are_told_of_where_roc_auc_is_watched(metric: str, is_told: bool) -> None:
    frame = pl.DataFrame({"x": [0.5, 1.5] * 6, "y": ["no"] * 10 + ["yes"] * 2})
    spec = resolved(frame, stop={"metric": metric}, validation={"folds": 4})
    found = [prepared(spec, frame, fold=fold) for fold in range(4)]
    one_class = [len(fold.truth.unique()) == 1 for fold in found]
    assert set(one_class) == {True, False}
    assert [bool(fold.warnings) for fold in found] == [alone and is_told for alone in one_class]


@pytest.mark.parametrize(("metric", "is_told"), [("r2", True), ("rmse", False)])
def test_validation_rows_without_variance_are_told_of_where_r2_is_watched(metric: str, is_told: bool) -> None:
    frame = pl.DataFrame({"x": [0.5, 1.5, 2.5], "y": [1.5, 2.5, 3.5]})
    assert bool(prepared(resolved(frame, stop={"metric": metric}), frame).warnings) is is_told


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (["yes", "no", "Yes"], ["the labels 'Yes' and 'yes' are two classes, though only their case tells them apart"]),
        (["yes", "no", "maybe"], []),
        ([1, 2, 3], []),
    ],
)
def test_labels_that_only_their_case_tells_apart_are_told_of(labels: list[object], told: list[str]) -> None:
    frame = pl.DataFrame({"x": [0.5, 1.5, 2.5] * 10, "y": labels * 10})
    assert prepared(resolved(frame, task="multiclass"), frame).warnings == told


@pytest.mark.parametrize(
    ("num_rare", "num_rows", "validation", "is_told"),
    [
        (1, 200, {"fraction": 0.1}, True),
        (20, 200, {"fraction": 0.1}, False),
        (1, 30, {"fraction": 0.1}, False),
        (1, 200, {"folds": 5}, False),
    ],
)
def test_labels_that_no_validation_row_has_are_told_of(
    num_rare: int, num_rows: int, validation: object, is_told: bool
) -> None:
    frame = pl.DataFrame({"x": range(num_rows), "y": ["rare"] * num_rare + ["often"] * (num_rows - num_rare)})
    spec = resolved(frame, validation=validation)
    folds = [None] if "fraction" in str(validation) else range(5)
    warnings = [warning for fold in folds for warning in prepared(spec, frame, fold=fold).warnings]
    told = "no validation row is of 'rare', so that the metrics say nothing of that"
    assert [warning.startswith(told) for warning in warnings] == [True] * is_told


def test_a_table_without_targets_is_refused() -> None:
    spec = resolved(FRAME, data={"features": ["x"]})
    with pytest.raises(BadData, match="no row has y"):
        prepared(spec, FRAME.with_columns(y=pl.lit(None, pl.Float64)))


@pytest.mark.parametrize("fold", range(4))
def test_numbers_that_are_laid_out_are_as_many_in_every_fold(fold: int) -> None:
    """One row has a gap: where it is learnt from, a flag beside the numbers would have no place among them."""
    gap = pl.when(pl.int_range(20) == 3).then(None)
    frame = pl.DataFrame({name: [0.5 * row for row in range(20)] for name in "abcy"}).with_columns(
        gap.otherwise(pl.col("b")).alias("b")
    )
    network = {"input_shape": [3, 1], "layers": [{"type": "gru", "hidden_features": 2}]}
    spec = resolved(frame, network=network, validation={"folds": 4})
    expected, num_inputs = expected_network(spec, table_of(frame))
    found = prepared(spec, frame, fold=fold)
    assert found.features.num_inputs == num_inputs == 3
    assert count_parameters(assemble(spec, found.features, 1)) == count_parameters(expected)


# ---- weights


def test_weights_of_rows_and_classes_multiply() -> None:
    spec = resolved(
        FRAME, "k", {"features": ["x"], "sample_weight": "w"},
        validation=None, loss={"type": "cross_entropy", "class_weight": {"a": 3.0}},
    )  # fmt: skip
    weights = prepared(spec, FRAME).train.weights
    assert weights is not None
    products = np.array([(1.0 + i) * (3.0 if i % 5 == 0 else 1.0) for i in range(NUM_ROWS)])
    assert weights.tolist() == pytest.approx(products / products.mean())


def test_the_mean_weight_is_one_also_of_rows_that_are_held_out() -> None:
    found = prepared(resolved(FRAME, "k", {"features": ["x"], "sample_weight": "w"}), FRAME)
    for part in (found.train, found.validation):
        assert part is not None
        assert part.weights is not None
        assert part.weights.mean().item() == pytest.approx(1)


def test_balanced_classes() -> None:
    spec = resolved(FRAME, "k", {"features": ["x"]}, validation=None, loss={"type": "auto", "class_weight": "balanced"})
    weights = prepared(spec, FRAME).train.weights
    assert weights is not None
    assert [weights[i].item() for i in (0, 1, 4)] == pytest.approx([50 / 30, 50 / 90, 50 / 30])


def test_a_class_may_not_be_lost_with_its_weights() -> None:
    frame = FRAME.with_columns(w=pl.when(pl.col("k") == "b").then(pl.col("w")))
    for loss in ("binary_cross_entropy", "cross_entropy"):
        two = frame.filter(pl.col("k") != "c")
        spec = resolved(two, "k", {"features": ["x"], "sample_weight": "w"}, loss={"type": loss})
        with pytest.raises(BadData, match=r"same label in 'k': 'b'"):
            prepared(spec, two)


@pytest.mark.parametrize("head", [True, False])
def test_a_class_whose_rows_have_no_weight_is_one_all_the_same(head: bool) -> None:
    frame = FRAME.with_columns(w=pl.when(pl.col("k") != "b").then(pl.col("w")))
    network = {"layers": [] if head else [{"type": "linear", "out_features": 3}], "head": head}
    spec = resolved(frame, "k", {"features": ["x"], "sample_weight": "w"}, network=network)
    found = prepared(spec, frame)
    assert found.targets.classes == ("a", "b", "c")
    assert sorted(found.train.targets.unique().tolist()) == [0, 2]
    assemble(spec, found.features, found.targets.num_outputs)


def test_no_weights_are_none() -> None:
    assert prepared(resolved(FRAME, data={"features": ["x"]}), FRAME).train.weights is None


@pytest.mark.parametrize("bad", [-1.0, float("inf"), 1e300])
def test_bad_weights_are_refused(bad: float) -> None:
    spec = resolved(FRAME, data={"features": ["x"], "sample_weight": "w"}, validation=None)
    frame = FRAME.with_columns(w=pl.when(pl.col("x") == 3).then(bad).otherwise(pl.col("w")))
    with pytest.raises(BadData, match="'w'"):
        prepared(spec, frame)


def test_weights_must_not_all_be_zero() -> None:
    spec = resolved(FRAME, data={"features": ["x"], "sample_weight": "w"}, validation=None)
    with pytest.raises(BadData, match=f"0 in all {NUM_ROWS} rows to learn from"):
        prepared(spec, FRAME.with_columns(w=pl.lit(0.0)))


def test_rows_without_a_weight_are_left_out() -> None:
    frame = FRAME.with_columns(w=pl.when(pl.col("x") < 5).then(None).otherwise(pl.col("w")))
    found = prepared(resolved(frame, data={"features": ["x"], "sample_weight": "w"}, validation=None), frame)
    assert len(found.train) == NUM_ROWS - 5
