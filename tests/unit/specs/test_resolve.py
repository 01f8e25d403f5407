"""From an open spec to one with nothing left open."""

import random
from datetime import datetime
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidInput, UnknownColumn
from app.learning.plan import plan
from app.specs.network import DenseNetwork, LayeredNetwork
from app.specs.resolve import count_outputs, resolve, signature_of
from app.specs.table import ColumnProfile, StoredData, Table
from app.specs.training import TrainingSpec
from tests.samples import DIGEST, posted, resolved, table_of

NUM_ROWS = 100
rng = random.Random(0)
COLUMNS: dict[str, list[Any]] = {
    "x": [rng.gauss(0, 1) for _ in range(NUM_ROWS)],
    "gaps": [None if i % 7 == 0 else rng.gauss(5, 2) for i in range(NUM_ROWS)],
    "color": [["red", "green", "blue"][i % 3] for i in range(NUM_ROWS)],
    "note": [f"the note number {i}" for i in range(NUM_ROWS)],
    "seen": [datetime(2026, 1, 1 + i % 28, i % 24) for i in range(NUM_ROWS)],
    "empty": [None] * NUM_ROWS,
    "weight": [1.0 + i for i in range(NUM_ROWS)],
    "amount": [i / 3 for i in range(NUM_ROWS)],
    "answer": [["yes", "no"][i % 2] for i in range(NUM_ROWS)],
    "flag": [i % 2 == 0 for i in range(NUM_ROWS)],
    "bit": [i % 2 for i in range(NUM_ROWS)],
    "grade": [i % 5 for i in range(NUM_ROWS)],
    "sign": [1 - 2 * (i % 2) for i in range(NUM_ROWS)],
    "half": [(i % 4) / 2 for i in range(NUM_ROWS)],
    "count": list(range(NUM_ROWS)),
    "same": [3] * NUM_ROWS,
}
FRAME = pl.DataFrame(COLUMNS, schema_overrides={"empty": pl.Float64})
TABLE = table_of(FRAME)


def settle(target: str | list[str] = "amount", **spec: Any) -> tuple[TrainingSpec, list[str]]:
    data = spec.pop("data", {"features": ["x"]})
    return resolve(posted(target, data, **spec), TABLE)


def fault_at(pointer: str, target: str | list[str] = "amount", **spec: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        settle(target, **spec)
    assert caught.value.faults[0].pointer == pointer
    assert caught.value.faults[0].detail == caught.value.detail
    return caught.value


# ---- task and loss


@pytest.mark.parametrize(
    ("target", "asked", "task", "loss", "num_outputs"),
    [
        ("amount", {}, "regression", "mse", 1),
        ("half", {}, "regression", "mse", 1),
        ("answer", {}, "binary", "binary_cross_entropy", 1),
        ("color", {}, "multiclass", "cross_entropy", 3),
        ("flag", {}, "binary", "binary_cross_entropy", 1),
        ("bit", {}, "binary", "binary_cross_entropy", 1),
        ("grade", {}, "multiclass", "cross_entropy", 5),
        ("count", {}, "regression", "mse", 1),
        (["flag", "bit"], {}, "multilabel", "binary_cross_entropy", 2),
        (["amount", "count", "flag"], {}, "regression", "mse", 3),
        (["bit", "sign"], {}, "regression", "mse", 2),
        ("sign", {}, "binary", "binary_cross_entropy", 1),
        ("bit", {"loss": {"type": "auto", "class_weight": "balanced"}}, "binary", "binary_cross_entropy", 1),
        ("bit", {"loss": {"type": "mse"}}, "regression", "mse", 1),
        ("grade", {"loss": {"type": "poisson_nll"}}, "regression", "poisson_nll", 1),
        (["flag", "bit"], {"loss": {"type": "huber"}}, "regression", "huber", 2),
        ("half", {"loss": {"type": "cross_entropy"}}, "multiclass", "cross_entropy", 4),
        ("count", {"loss": {"type": "cross_entropy"}}, "multiclass", "cross_entropy", 100),
        ("flag", {"loss": {"type": "cross_entropy"}}, "binary", "cross_entropy", 2),
        ("grade", {"task": "regression"}, "regression", "mse", 1),
        ("count", {"task": "multiclass"}, "multiclass", "cross_entropy", 100),
        ("flag", {"task": "multilabel"}, "multilabel", "binary_cross_entropy", 1),
        ("flag", {"task": "multiclass"}, "multiclass", "cross_entropy", 2),
    ],
)
def test_task_and_loss_follow_from_the_target(
    target: str | list[str], asked: dict[str, Any], task: str, loss: str, num_outputs: int
) -> None:
    spec, _ = settle(target, **asked)
    assert (spec.task, spec.loss.type, count_outputs(spec, TABLE)) == (task, loss, num_outputs)


def test_a_label_for_every_row_is_warned_of() -> None:
    def told(labels: list[str]) -> list[str]:
        return resolve(posted("y"), table_of(pl.DataFrame({"y": labels, "x": [1.5] * len(labels)})))[1]

    assert told(["a", "b", "c"]) == ["target 'y' has another label in every row; a class is learned from several"]
    assert told(["a", "b", "b"]) == told(["a", "b"]) == []


def test_a_target_that_never_changes_is_warned_of() -> None:
    table = table_of(pl.DataFrame({"x": [1.5, 2.5, 3.5], "y": [2.5] * 3, "wet": [1, 0, 1], "cold": [0, 0, 0]}))
    said = "has the same value in every row, which leaves nothing to learn"
    assert resolve(posted("y", {"features": ["x"]}), table)[1] == [f"target 'y' {said}"]
    spec, warnings = resolve(posted(["wet", "cold"], {"features": ["x"]}), table)
    assert (spec.task, warnings) == ("multilabel", [f"target 'cold' {said}"])


def test_whole_numbers_taken_as_classes_are_warned_of() -> None:
    def told(target: str, **spec: Any) -> list[str]:
        return settle(target, validation=None, **spec)[1]

    assert "grade" in told("grade")[0]
    assert told("bit") == []
    assert told("grade", task="multiclass") == []
    assert told("grade", loss={"type": "cross_entropy"}) == []


def test_few_rows_make_whole_numbers_quantities() -> None:
    grades = pl.DataFrame({"x": range(49), "y": [i % 5 for i in range(49)]})
    assert resolved(grades).task == "regression"
    assert resolved(pl.concat([grades, grades.head(1)])).task == "multiclass"


def test_a_loss_that_does_not_fit_comes_with_those_that_do() -> None:
    said = fault_at("/loss/type", ["flag", "bit"], task="multilabel", loss={"type": "mse"}).detail
    assert said == "mse does not fit the task multilabel; use binary_cross_entropy"


# ---- faults


@pytest.mark.parametrize(
    ("pointer", "words", "target", "spec"),
    [
        ("/data/target", "'count'", "cuont", {}),
        ("/data/target", "amount", "zzz", {}),
        ("/data/features", "'color'", "amount", {"data": {"features": ["x", "colour"]}}),
        ("/data/sample_weight", "'weight'", "amount", {"data": {"sample_weight": "wieght"}}),
    ],
)
def test_unknown_columns_come_with_what_was_perhaps_meant(
    pointer: str, words: str, target: str, spec: dict[str, Any]
) -> None:
    error = fault_at(pointer, target, **spec)
    assert isinstance(error, UnknownColumn)
    assert words in error.detail


def test_of_many_unknown_columns_the_first_are_told() -> None:
    error = fault_at("/data/features", data={"features": [f"x{number}" for number in range(10_000)]})
    assert [fault.detail.split(";")[0] for fault in error.faults] == [
        f"there is no column 'x{number}'" for number in range(20)
    ]


@pytest.mark.parametrize(
    ("pointer", "words", "target", "spec"),
    [
        ("/data/features/1", "text", "amount", {"data": {"features": ["x", "note"]}}),
        ("/data/features/1", "target", "amount", {"data": {"features": ["x", "amount"]}}),
        ("/data/features/0", "weight", "amount", {"data": {"features": ["weight"], "sample_weight": "weight"}}),
        ("/data/features/1", "twice", "amount", {"data": {"features": ["x", "x"]}}),
        ("/data/target/1", "twice", ["flag", "flag"], {}),
        ("/data/sample_weight", "target", "amount", {"data": {"features": ["x"], "sample_weight": "amount"}}),
        ("/data/sample_weight", "number", "amount", {"data": {"features": ["x"], "sample_weight": "color"}}),
        ("/data/target", "empty", "empty", {}),
        ("/data/target", "text", "note", {}),
        ("/data/target", "datetime", "seen", {}),
        ("/data/target", "the same value in every row; multiclass", "same", {"task": "multiclass"}),
        ("/data/target", "exactly 2", "color", {"task": "binary"}),
        ("/data/target", "numbers", "color", {"task": "regression"}),
        ("/data/target", "numbers", ["amount", "color"], {}),
        ("/data/target", "several targets are all numbers, or all 0/1", ["flag", "answer"], {}),
        ("/data/target", "0/1", ["flag", "amount"], {"task": "multilabel"}),
        ("/data/target", "multilabel", ["flag", "bit"], {"task": "binary"}),
        ("/features", "'gaps'", "amount", {"data": {"features": ["gaps"]}, "features": None}),
        ("/features", "'gaps'", "amount", {"data": {"features": ["gaps"]}, "features": {"missing": "error"}}),
        ("/features", "'color'", "amount", {"data": {"features": ["color"]}, "features": None}),
        ("/data/ignored_columns", "did you mean 'note'?", "amount", {"data": {"ignored_columns": ["Note"]}}),
        ("/data/ignored_columns/1", "'amount' is also", "amount", {"data": {"ignored_columns": ["note", "amount"]}}),
        ("/data/ignored_columns/0", "'x' is also", "amount", {"data": {"ignored_columns": ["x"], "features": ["x"]}}),
        ("/loss/type", "mse or mae", "amount", {"task": "regression", "loss": {"type": "cross_entropy"}}),
        ("/loss/type", "cross_entropy", "color", {"loss": {"type": "binary_cross_entropy"}}),
        ("/loss/type", "binary_cross_entropy", ["flag", "bit"], {"task": "multilabel", "loss": {"type": "mse"}}),
        ("/loss/type", "not negative", "x", {"data": {"features": ["bit"]}, "loss": {"type": "poisson_nll"}}),
        ("/loss/type", "'sign' begins at -1", ["count", "sign"], {"loss": {"type": "poisson_nll"}}),
        ("/loss/class_weight", "classification", "amount", {"loss": {"type": "auto", "class_weight": "balanced"}}),
        ("/loss/class_weight", "one target", ["flag", "bit"], {"loss": {"type": "auto", "class_weight": "balanced"}}),
        ("/loss/class_weight", "'9' is no class; the classes are 0, 1", "bit",
         {"loss": {"type": "auto", "class_weight": {"1": 2.0, "9": 2.0}}}),
        ("/loss/class_weight", "'blu' is no class", "color",
         {"loss": {"type": "cross_entropy", "class_weight": {"blu": 2.0}}}),
        ("/descent/batch_size", "mini_batch", "amount", {"descent": {"variant": "full_batch", "batch_size": 8}}),
        ("/descent/accumulate_steps", "one gradient", "amount",
         {"descent": {"variant": "full_batch", "accumulate_steps": 2}}),
        ("/mixup", "one row", "amount", {"mixup": 0.2, "descent": {"variant": "stochastic"}}),
        ("/mixup", "one row", "amount", {"mixup": 0.2, "descent": {"batch_size": 1, "accumulate_steps": 8}}),
        ("/stop/min_grad_norm", "clipped to a norm of 0.5", "amount",
         {"descent": {"max_grad_norm": 0.5}, "stop": {"min_grad_norm": 0.5}}),
        ("/schedule/type", "max_steps", "amount", {"schedule": {"type": "cosine"}, "stop": {"max_seconds": 1.0}}),
        ("/schedule/type", "max_steps", "amount", {"schedule": {"type": "linear"}, "stop": {"max_seconds": 1.0}}),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(pointer: str, words: str, target: Any, spec: dict[str, Any]) -> None:
    assert words in fault_at(pointer, target, **spec).detail


@pytest.mark.parametrize(("patience", "is_told"), [(4, True), (5, True), (6, False), (None, False)])
def test_a_rate_that_never_falls_is_told_of(patience: int | None, is_told: bool) -> None:
    _, warnings = settle(schedule={"type": "plateau", "patience": 5}, stop={"patience": patience}, validation=None)
    assert [warning for warning in warnings if "schedule.patience would wait for 5" in warning] == warnings
    assert bool(warnings) is is_told


@pytest.mark.parametrize(
    ("warmup_steps", "stop", "is_told"),
    [
        (31, {"max_epochs": 10}, True),
        (30, {"max_epochs": 10}, False),
        (30, {"max_epochs": 10, "max_steps": 29}, True),
        (10**6, {"max_seconds": 1.0}, False),
    ],
)
def test_a_warm_up_that_never_ends_is_told_of(warmup_steps: int, stop: dict[str, Any], is_told: bool) -> None:
    """90 rows are learnt from."""
    spec, _ = settle(stop=stop, schedule={"type": "constant", "warmup_steps": warmup_steps})
    _, _, warnings = plan(spec, TABLE, device="cpu", max_parameters=10**6)
    assert [warning for warning in warnings if f"rises for the first {warmup_steps}" in warning] == warnings
    assert bool(warnings) is is_told


@pytest.mark.parametrize(
    ("schedule", "num_epochs", "is_told"),
    [
        ({"type": "step", "every_epochs": 5}, 5, True),
        ({"type": "step", "every_epochs": 5}, 6, False),
        ({"type": "plateau", "patience": 5}, 6, True),
        ({"type": "plateau", "patience": 5}, 7, False),
    ],
)
def test_a_run_that_ends_before_its_rate_falls_is_told_of(
    schedule: dict[str, Any], num_epochs: int, is_told: bool
) -> None:
    spec, _ = settle(stop={"max_epochs": num_epochs}, schedule=schedule)
    _, _, warnings = plan(spec, TABLE, device="cpu", max_parameters=10**6)
    assert [warning for warning in warnings if f"has {num_epochs} epoch(s) at most" in warning] == warnings
    assert bool(warnings) is is_told


@pytest.mark.parametrize(("accumulate_steps", "is_told"), [(3, False), (4, True)])
def test_an_epoch_of_fewer_gradients_than_an_update_takes_is_told_of(accumulate_steps: int, is_told: bool) -> None:
    """90 rows are learnt from: two gradients of 40, and one of 10."""
    spec, _ = settle(descent={"batch_size": 40, "accumulate_steps": accumulate_steps})
    _, _, warnings = plan(spec, TABLE, device="cpu", max_parameters=10**6)
    assert [warning for warning in warnings if "an epoch has 3 gradient(s)" in warning] == warnings
    assert bool(warnings) is is_told


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"stop": {"metric": "r2", "target_loss": 0.9}}, "the run does not wait for r2"),
        ({"stop": {"target_loss": 0.9}}, None),
        ({"freeze": ["layers.0"]}, "keeps the random weights that it begins with"),
        ({"freeze": ["layers.0"], "warm_start": {"model": "m"}}, None),
    ],
)
def test_what_is_allowed_and_perhaps_not_meant_is_told(fields: dict[str, Any], told: str | None) -> None:
    _, warnings = settle("amount", validation={"fraction": 0.5}, **fields)
    _, as_before = settle("amount", validation={"fraction": 0.5})
    assert [warning for warning in warnings if warning not in as_before] == [
        warning for warning in warnings if told is not None and told in warning
    ]
    assert len(warnings) == len(as_before) + (told is not None)


@pytest.mark.parametrize("sampling", ["every_row", "class_balanced"])
def test_classes_that_are_balanced_twice_are_told(sampling: str) -> None:
    loss = {"type": "cross_entropy", "class_weight": "balanced"}
    _, warnings = settle("answer", loss=loss, descent={"sampling": sampling})
    told = [warning for warning in warnings if "both balance the classes" in warning]
    assert len(told) == (sampling == "class_balanced")


@pytest.mark.parametrize(
    ("shape", "layer", "is_told"),
    [
        ([28, 28, 1], "conv2d", True),
        ([8, 6, 3], "conv2d", True),
        ([1, 28, 28], "conv2d", False),
        ([3, 2, 2], "conv2d", False),
        ([28, 28, 1], "flatten", False),
        ([28, 1], "conv1d", False),
        ([16, 4, 4], "conv2d", False),
    ],
)
def test_pictures_whose_channels_come_last_are_told(shape: list[int], layer: str, is_told: bool) -> None:
    """As other libraries have them."""
    first = {"type": layer} | ({"out_channels": 2} if layer.startswith("conv") else {})
    _, warnings = settle("amount", network={"input_shape": shape, "layers": [first, {"type": "flatten"}]})
    said = f"pictures of {shape[-1]} are {[shape[-1], *shape[:-1]]}"
    assert any(said in warning for warning in warnings) is is_told


CONV = {"type": "conv1d", "out_channels": 2}
LSTM = {"type": "lstm", "hidden_features": 2, "output": "sequence"}
RELU, TRANSPOSE = {"type": "relu"}, {"type": "transpose"}


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ([LSTM, CONV], ["conv1d at /network/layers/1 takes [channels, length], and what comes to it is [length, "]),
        ([LSTM, TRANSPOSE, CONV], []),
        ([LSTM, RELU, {"type": "layer_norm"}, {"type": "dropout"}, {"type": "global_avg_pool"}], ["global_avg_pool"]),
        ([{"type": "self_attention", "num_heads": 1}, {"type": "max_pool1d"}], ["max_pool1d at /network/layers/1"]),
        ([CONV, RELU, LSTM], ["lstm at /network/layers/2 takes [length, features], and what comes to it is [chann"]),
        ([CONV, {"type": "max_pool1d"}, TRANSPOSE, LSTM, {"type": "last_place"}], []),
        ([CONV, {"type": "max_over_sequence"}], ["max_over_sequence at /network/layers/1"]),
        ([CONV, TRANSPOSE, TRANSPOSE, LSTM], ["lstm at"]),
        ([CONV, {"type": "reshape", "shape": [4, 2]}, LSTM], []),
        ([CONV, {"type": "linear", "out_features": 2}, LSTM], []),
        ([TRANSPOSE, CONV, {"type": "global_avg_pool"}], []),
        ([LSTM, {**LSTM, "output": "last"}], []),
        ([LSTM, {"type": "residual", "layers": [RELU, CONV]}, LSTM],
         ["conv1d at /network/layers/1/layers/1", "lstm at"]),
        ([LSTM, {"type": "parallel", "branches": [[CONV], []]}, CONV], ["conv1d at /network/layers/1/branches/0/0"]),
        ([{"type": "parallel", "branches": [[CONV], [CONV]]}, LSTM], ["lstm at /network/layers/1"]),
    ],
)  # fmt: skip
def test_axes_in_the_order_of_another_layer_are_told(layers: list[dict[str, Any]], told: list[str]) -> None:
    spec, warnings = settle("amount", network={"input_shape": [1, 1], "layers": layers}, validation={"fraction": 0.5})
    assert [warning.startswith(words) for warning, words in zip(warnings, told, strict=True)] == [True] * len(told)
    assert all(warning.endswith("put transpose between") for warning in warnings)
    assert resolve(spec, TABLE)[1] == warnings


def test_of_many_axes_in_another_order_the_first_are_told() -> None:
    _, warnings = settle("amount", network={"input_shape": [1, 1], "layers": [LSTM, CONV] * 20}, validation=None)
    assert [f"/network/layers/{index + 1} " in warning for index, warning in enumerate(warnings)] == [True] * 20


def test_words_that_are_convolved_are_told() -> None:
    words = {"type": "embedding", "num_embeddings": 5, "embedding_features": 2}
    _, warnings = settle("amount", network={"layers": [words, CONV]}, data={"features": ["grade"]})
    assert any(warning.startswith("conv1d at /network/layers/1 takes [channels, length]") for warning in warnings)


def test_stochastic_descent_sees_one_row() -> None:
    assert settle(descent={"variant": "stochastic"})[0].descent.batch_size == 1


def test_a_column_alone_is_nothing_to_learn_from() -> None:
    with pytest.raises(InvalidInput, match="no column is left"):
        resolve(posted("y"), table_of(pl.DataFrame({"y": [1.0, 2.0]})))


def test_where_all_columns_are_left_out_it_is_said_why() -> None:
    table = pl.DataFrame({"y": range(50), "review": [f"sentence {row}" for row in range(50)]})
    with pytest.raises(InvalidInput, match="no column is left to learn from; column 'review' is free text"):
        resolve(posted("y"), table_of(table))


# ---- columns


def test_features_are_all_columns_that_can_be() -> None:
    spec, warnings = settle("amount", data={"sample_weight": "weight"})
    assert isinstance(spec.data, StoredData)
    assert spec.data.features == (
        "x",
        "gaps",
        "color",
        "seen",
        "answer",
        "flag",
        "bit",
        "grade",
        "sign",
        "half",
        "count",
        "same",
    )
    assert any("'note'" in warning for warning in warnings)
    assert any("'empty'" in warning for warning in warnings)
    signature = signature_of(spec, TABLE)
    assert [column.name for column in signature.inputs] == list(spec.data.features)
    assert signature.ignored == ("note", "empty", "weight")


def test_ignored_columns_are_left_out_without_a_word() -> None:
    ignored = [name for name in COLUMNS if name not in ("x", "amount", "color")]
    spec, warnings = settle("amount", data={"ignored_columns": ignored}, validation=None)
    assert isinstance(spec.data, StoredData)
    assert spec.data.features == ("x", "color")
    assert warnings == []
    assert set(signature_of(spec, TABLE).ignored) == set(ignored)
    assert resolve(spec, TABLE)[0] == spec  # a resolved spec may be sent again


@pytest.mark.parametrize(
    ("values", "is_told"),
    [
        (range(1, 21), True),
        ([float(number) for number in reversed(range(7, 30))], True),
        ([number for number in range(60) if number % 3], True),  # as a random part of the rows is
        (range(1, 20), False),
        (range(0, 40, 2), False),
        ([*range(1, 20), 19], False),
        ([*range(1, 20), None], False),
        ([number + 0.5 for number in range(20)], False),
    ],
)
def test_a_column_that_numbers_the_rows_is_told(values: Any, is_told: bool) -> None:
    frame = pl.DataFrame({"id": list(values)}).with_columns(y=pl.int_range(pl.len()) ** 0.5, x=pl.lit(1.5))

    def settled(frame: pl.DataFrame, **data: Any) -> tuple[TrainingSpec, list[str]]:
        return resolve(posted(data=data, validation=None), table_of(frame))

    spec, warnings = settled(frame)
    assert isinstance(spec.data, StoredData)
    assert spec.data.features == ("id", "x")
    known = frame["id"].drop_nulls().to_list()
    low, high = int(min(known)), int(max(known))
    assert [f"'id' numbers the rows, from {low} to {high}," in warning for warning in warnings] == [True] * is_told
    assert settled(frame, features=["id", "x"])[1] == []
    assert settled(frame, ignored_columns=["id"])[1] == []
    assert settled(frame.drop("x"))[1] == []  # it is all that there is to learn from


@pytest.mark.parametrize(
    ("names", "is_told"),
    [
        (["5.1", "3.5", "setosa"], True),
        (["5.1", "setosa", "3.5"], True),
        (["2", "3", "y"], False),  # as pandas names columns
        (["5.1", "900.5", "y"], False),  # as spectra are named by wavelengths, which are no values
        (["5.1", "length", "y"], False),
        (["5.1", "a", "y"], False),
    ],
)
def test_names_that_look_like_a_row_of_values_are_told(names: list[str], is_told: bool) -> None:
    values: dict[str, Any] = {name: [1.5, 4.0, 8.0] * 10 for name in names}
    values |= {name: ["u", "v", "w"] * 10 for name in ("setosa", "a", "y") if name in names}
    frame = pl.DataFrame({name: values[name] for name in names})
    _, warnings = resolve(posted(names[-1]), table_of(frame))
    assert [warning for warning in warnings if "row of values" in warning] == [
        f"the columns' names ({names[0]}, {names[1]}, …) look like a row of values; if the file has no header, "
        "upload it with Content-Type: text/csv; header=absent"
    ] * is_told


def test_what_text_may_have_been_meant_as_is_said_where_it_matters() -> None:
    text = {
        "x": [1.5, 2.5] * 15,
        "time": [1704067200000, 1704070800000] * 15,
        "few": ["1,234", "12"] * 15,
        "many": [f"{row}%" for row in range(30)],
    }
    table = table_of(pl.DataFrame(text))
    _, warnings = resolve(posted("x", validation=None), table)
    assert [warning.partition(": ")[0] for warning in warnings] == [
        "column 'time' is taken as numbers",
        "column 'few' is taken as categories",
        "column 'many' is free text (30 distinct values) and is left out",
    ]
    assert all("look like" in warning for warning in warnings)
    for task in ("regression", "multiclass"):
        with pytest.raises(InvalidInput, match="values such as '0%' look like numbers"):
            resolve(posted("many", task=task), table)
    _, warnings = resolve(posted("few", {"features": ["x"]}, validation=None), table)
    assert [warning.partition(": ")[0] for warning in warnings] == ["target 'few' is taken as classes"]


# ---- network, stop, validation


@pytest.mark.parametrize(
    ("num_rows", "asked", "is_told"),
    [
        (20, {}, True),
        (194, {}, True),
        (195, {}, False),
        (19, {}, False),  # a toy
        (20, {"validation": {"fraction": 0.1}}, False),  # somebody's choice
        (20, {"validation": {"folds": 5}}, False),
    ],
)
def test_few_rows_of_validation_that_nobody_asked_for_are_told_of(
    num_rows: int, asked: dict[str, Any], is_told: bool
) -> None:
    _, warnings = resolve(
        posted(**asked), table_of(pl.DataFrame({"x": [1.5, 2.5] * 100, "y": [1.5, 2.5] * 100})[:num_rows])
    )
    said = f"{round(num_rows / 10)} of {num_rows} rows are held out for validation, too few to go by much"
    assert [warning.partition(":")[0] for warning in warnings] == [said] * is_told


@pytest.mark.parametrize(
    ("network", "types"),
    [
        ({}, ["linear", "relu", "linear", "relu", "linear"]),
        ({"hidden_features": []}, ["linear"]),
        ({"hidden_features": [3], "activation": "gelu", "dropout": 0.5}, ["linear", "gelu", "dropout", "linear"]),
        ({"hidden_features": [3], "normalization": "batch_norm"}, ["linear", "batch_norm", "relu", "linear"]),
        ({"layers": [{"type": "tanh"}]}, ["tanh", "linear"]),
        ({"layers": []}, ["linear"]),
        ({"layers": [{"type": "linear", "out_features": 1}], "head": False}, ["linear"]),
    ],
)
def test_the_output_layer_is_added(network: dict[str, Any], types: list[str]) -> None:
    found = settle(network=network)[0].network
    assert isinstance(found, LayeredNetwork)
    assert [layer.type for layer in found.layers] == types
    assert found.head is False


EMBEDDING = {"type": "embedding", "num_embeddings": 5, "embedding_features": 2}
FLAT = [EMBEDDING, {"type": "flatten"}]
GRADES: dict[str, Any] = {"data": {"features": ["grade", "bit"]}}


@pytest.mark.parametrize(
    "layers",
    [
        FLAT,
        [{"type": "reshape", "shape": [2, 1]}, {"type": "transpose"}, {"type": "flatten"}, *FLAT],
        [{"type": "parallel", "branches": [[{"type": "linear", "out_features": 4}], FLAT]}],
        [{"type": "residual", "layers": FLAT}],
    ],
)
def test_what_comes_to_an_embedding_is_whole_numbers_as_they_are(layers: list[dict[str, Any]]) -> None:
    spec, _ = settle(network={"layers": layers}, **GRADES)
    assert spec.features is not None
    assert spec.features.standardize == "target"
    assert fault_at("/mixup", network={"layers": layers}, mixup=0.5, **GRADES)
    assert fault_at("/features/standardize", network={"layers": layers}, features={"standardize": True}, **GRADES)


@pytest.mark.parametrize(
    ("pointer", "words", "layers"),
    [
        ("/1", "own whole numbers", [{"type": "linear", "out_features": 2}, *FLAT]),
        ("/1", "own whole numbers", [EMBEDDING, EMBEDDING]),
        ("/1/layers/0", "own whole numbers", [{"type": "relu"}, {"type": "residual", "layers": FLAT}]),
        ("/0/branches/1/0", "'grade' goes from 0 to 4",
         [{"type": "parallel", "branches": [FLAT, [{**EMBEDDING, "num_embeddings": 4}, {"type": "flatten"}]]}]),
    ],
)  # fmt: skip
def test_what_is_no_place_in_an_embedding_is_refused(pointer: str, words: str, layers: list[dict[str, Any]]) -> None:
    assert words in fault_at(f"/network/layers{pointer}", network={"layers": layers}, **GRADES).detail


def test_layers_are_counted_wherever_they_are() -> None:
    def nested(num: int) -> dict[str, Any]:
        inner = {"type": "parallel", "branches": [[{"type": "relu"}] * num], "merge": "sum"}
        return {"layers": [{"type": "residual", "layers": [inner]}] * 100}

    settle(network=nested(97))  # each block is that many and two, and the head is one more
    assert "10000" in fault_at("/network/layers", network=nested(98)).detail


def test_a_resolved_network_is_a_spec_however_many_layers_its_form_stands_for() -> None:
    dense = {"hidden_features": [1] * 1000, "normalization": "batch_norm", "dropout": 0.1}
    for network, num_layers in ((dense, 4001), ({"layers": [{"type": "relu"}] * 1000}, 1001)):
        found = settle(network=network)[0]
        assert isinstance(found.network, LayeredNetwork)
        assert len(found.network.layers) == num_layers
        assert TrainingSpec.model_validate(found.model_dump(mode="json")) == found


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "celu", "gelu", "softplus", "prelu", "silu"])
def test_every_activation_has_a_layer(activation: str) -> None:
    found = settle(network={"hidden_features": [3], "activation": activation})[0].network
    assert isinstance(found, LayeredNetwork)
    assert found.layers[1].type == activation


@pytest.mark.parametrize(
    ("spec", "start"),
    [
        ({}, "zeros"),
        ({"network": {"hidden_features": []}}, None),
        ({"init": {"weight": "normal"}}, None),
    ],
)
def test_a_net_starts_with_a_zero_output_unless_told_how(spec: dict[str, Any], start: str | None) -> None:
    found = settle(**spec)[0].network
    assert isinstance(found, LayeredNetwork)
    assert found.layers[-1].model_dump()["init"] == start


@pytest.mark.parametrize(
    ("stop", "validation", "max_epochs", "restore_best"),
    [
        ({}, {"fraction": 0.1}, 100, True),
        ({}, None, 100, False),
        ({"patience": 3}, None, 100, True),
        ({"patience": 3, "restore_best": False}, {"fraction": 0.1}, 100, False),
        ({"max_steps": 5}, None, None, False),
        ({"max_seconds": 5.0}, None, None, False),
        ({"max_steps": 5, "max_epochs": 7}, None, 7, False),
    ],
)
def test_stop_has_an_end(stop: dict[str, Any], validation: Any, max_epochs: int | None, restore_best: bool) -> None:
    spec = settle(stop=stop, validation=validation)[0]
    assert (spec.stop.max_epochs, spec.stop.restore_best) == (max_epochs, restore_best)


def test_one_row_is_too_few_to_hold_some_out() -> None:
    spec, warnings = resolve(posted(), table_of(pl.DataFrame({"x": [1.0], "y": [2.5]})))
    assert spec.validation is None
    assert spec.stop.restore_best is False
    assert "too few" in warnings[0]


# ---- the law: nothing is left open, and resolving twice changes nothing

networks = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={
            "hidden_features": st.lists(st.integers(1, 9), max_size=3),
            "activation": st.sampled_from(["relu", "gelu", "tanh", "prelu"]),
            "dropout": st.sampled_from([0.0, 0.5]),
            "normalization": st.sampled_from([None, "batch_norm", "layer_norm"]),
        },
    ),
    st.fixed_dictionaries(
        {"layers": st.lists(st.sampled_from([{"type": "relu"}, {"type": "linear", "out_features": 3}]))}
    ),
)
descents = st.one_of(
    st.just({"variant": "full_batch"}),
    st.just({"variant": "stochastic"}),
    st.fixed_dictionaries({}, optional={"batch_size": st.integers(1, 200), "accumulate_steps": st.integers(1, 4)}),
)
stops = st.fixed_dictionaries(
    {},
    optional={
        "max_epochs": st.integers(1, 9),
        "max_steps": st.integers(1, 9),
        "max_seconds": st.just(5.0),
        "patience": st.integers(1, 9),
        "restore_best": st.booleans(),
    },
)
schedules = st.sampled_from([{"type": name} for name in ("constant", "step", "exponential")])


def is_normed_by_batch(body: dict[str, Any]) -> bool:
    return body.get("network", {}).get("normalization") == "batch_norm"


def has_one_row_a_gradient(body: dict[str, Any]) -> bool:
    descent = body.get("descent", {})
    return descent.get("variant") == "stochastic" or descent.get("batch_size") == 1


TARGETS = ["amount", "answer", "color", "flag", "bit", "grade", "count"]
bodies = st.fixed_dictionaries(
    {"target": st.sampled_from([*TARGETS, ["flag", "bit"], ["x", "count"]])},
    optional={
        "network": networks,
        "descent": descents,
        "stop": stops,
        "schedule": schedules,
        "validation": st.sampled_from([None, {"fraction": 0.5}]),
        "features": st.sampled_from([{}, {"standardize": False, "categorical": "one_hot"}]),
        "init": st.sampled_from([{}, {"weight": "normal"}]),
        "seed": st.integers(0, 2**53 - 1),
    },
).filter(lambda body: not (is_normed_by_batch(body) and has_one_row_a_gradient(body)))  # fmt: skip


@given(bodies)
def test_resolved_means_nothing_is_left_open_but_what_a_long_run_measures(body: dict[str, Any]) -> None:
    spec, _ = settle(**{"data": {"features": ["weight", "seen"]}, **body})
    settled, facts, _ = plan(spec, TABLE, device="auto", max_parameters=10**6)
    assert settled.task != "auto"
    assert settled.loss.type != "auto"
    one_step = settled.model_copy(update={"stop": settled.stop.model_copy(update={"max_steps": 1})})
    assert settled.engine in ("eager", "auto")
    assert plan(one_step, TABLE, device="auto", max_parameters=10**6)[0].engine == "eager"
    assert settled.device in ("cpu", "cuda:0")
    assert settled.num_threads is not None
    assert settled.stop.restore_best is not None
    assert (settled.stop.max_epochs, settled.stop.max_steps, settled.stop.max_seconds) != (None, None, None)
    assert (settled.descent.batch_size is None) == (settled.descent.variant == "full_batch")
    assert isinstance(settled.network, LayeredNetwork)
    assert settled.network.head is False
    assert isinstance(settled.data, StoredData)
    assert settled.data.digest == DIGEST
    assert settled.data.features
    assert facts.num_parameters > 0


@given(bodies)
def test_resolving_twice_changes_nothing(body: dict[str, Any]) -> None:
    spec, _ = settle(**{"data": {"features": ["weight", "seen"]}, **body})
    settled, facts, told = plan(spec, TABLE, device="auto", max_parameters=10**6)
    read_back = TrainingSpec.model_validate_json(settled.model_dump_json())
    assert read_back == settled
    again, warnings = resolve(TrainingSpec.model_validate(settled.model_dump(mode="json")), TABLE)
    assert again == settled
    assert warnings == []
    assert plan(again, TABLE, device="auto", max_parameters=10**6) == (settled, facts, told)


def test_dense_and_layered_networks_are_told_apart() -> None:
    assert isinstance(posted(network={"hidden_features": []}).network, DenseNetwork)
    assert isinstance(posted(network={"layers": []}).network, LayeredNetwork)


def test_a_table_finds_its_columns() -> None:
    column = ColumnProfile(name="a", kind="numeric", num_missing=0, num_unique=1)
    table = Table(digest=DIGEST, num_rows=1, columns=(column,))
    assert table.column("a") is column
    assert table.column("b") is None
