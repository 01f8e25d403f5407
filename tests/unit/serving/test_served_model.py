"""Answers and evaluations of a version in memory."""

import json
from typing import Any

import orjson
import polars as pl
import pytest
import torch

from app.learning.rows import Rows
from app.serving.served_model import ServedModel, overwrite
from app.serving.tabular_codec import predictions_frame
from tests.samples import untrained

FRAME = pl.DataFrame(
    {
        "x": [float(i) for i in range(12)],
        "y": [i * 0.5 + 10 for i in range(12)],
        "z": [i * 0.25 for i in range(12)],
        "k": [["u", "v", "w"][i % 3] for i in range(12)],
        "n": [[30, 10][i % 2] for i in range(12)],
        "f": [i % 2 == 0 for i in range(12)],
        "g": [i % 4 == 0 for i in range(12)],
        "i": [i % 2 for i in range(12)],
    }
)


def served(target: str | list[str], **spec: Any) -> ServedModel:
    model = untrained(
        FRAME, target, data={"features": ["x"]}, network={"hidden_features": [3]}, validation=None, **spec
    )
    return ServedModel("m", "7", model, 0)


def test_activations_write_over_what_nobody_else_looks_at() -> None:
    """Not over a network's input, nor over what a residual block still adds."""
    layers: list[dict[str, Any]] = [
        {"type": "dropout", "p": 0.5},
        {"type": "relu"},
        {"type": "linear", "out_features": 4},
        {"type": "leaky_relu"},
        {"type": "residual", "layers": [{"type": "silu"}, {"type": "linear", "out_features": 4}, {"type": "relu"}]},
        {"type": "batch_norm"},
        {"type": "elu"},
    ]
    model = untrained(FRAME.select("x", "y", "z"), "y", network={"layers": layers}, validation=None)
    network = model.network.eval()
    rows = torch.randn(9, 2)
    before, kept = network(rows), rows.clone()
    overwrite(network)
    assert [vars(module)["inplace"] for module in network.modules() if "inplace" in vars(module)] == [
        *(False, False, True),
        *(False, True),  # of the residual block
        True,
    ]
    with torch.inference_mode():
        assert torch.equal(network(rows), before)
    assert torch.equal(rows, kept)


def answered(model: ServedModel, values: list[list[float]]) -> dict[str, Any]:
    """As JSON has it."""
    said = model.answer(torch.tensor(values, dtype=torch.float64))
    found: dict[str, Any] = orjson.loads(orjson.dumps(said, option=orjson.OPT_SERIALIZE_NUMPY))
    assert (found.pop("model"), found.pop("version")) == ("m", "7")
    return found


def test_one_target_is_a_flat_list_and_several_are_rows() -> None:
    assert answered(served("y"), [[1.5], [float("nan")]]) == {"predictions": [1.5, None]}
    assert answered(served(["y", "z"]), [[1.5, float("inf")], [2, 3]]) == {"predictions": [[1.5, None], [2, 3]]}


@pytest.mark.parametrize(
    ("target", "spec", "classes"),
    [
        ("k", {}, ["u", "v", "w"]),
        ("f", {}, [False, True]),
        ("n", {"task": "binary"}, [10, 30]),
        ("y", {"task": "multiclass"}, [i * 0.5 + 10 for i in range(12)]),
    ],
)
def test_labels_come_back_in_their_type(target: str, spec: dict[str, Any], classes: list[Any]) -> None:
    num = len(classes)
    one_hot = torch.eye(num, dtype=torch.float64).tolist()
    found = answered(served(target, **spec), one_hot)
    assert found == {"predictions": classes, "classes": classes, "probabilities": one_hot}
    assert [type(label) for label in found["predictions"]] == [type(classes[0])] * num


def test_a_row_without_probabilities_has_no_label() -> None:
    """As where an input is beyond float32: the first class would be a guess that nobody has made."""
    nothing = [float("nan")] * 3
    assert answered(served("k"), [nothing, [0, 0, 1]])["predictions"] == [None, "w"]
    assert answered(served(["f", "g"]), [[0.5, float("nan")], [0, 1]])["predictions"] == [None, [False, True]]


def test_several_labels_are_flags() -> None:
    found = answered(served(["f", "g"]), [[0.5, 0.49], [0.0, 1.0]])
    assert found["predictions"] == [[True, False], [False, True]]
    assert found["classes"] == ["f", "g"]


def test_flags_are_of_the_type_they_were_given_in() -> None:
    found = answered(served(["i", "f"]), [[0.5, 0.49], [0.0, 1.0]])
    assert json.dumps(found["predictions"]) == "[[1, false], [0, true]]"
    frame = predictions_frame(served(["i", "f"]).model.signature, torch.tensor([[0.5, 0.49], [0.0, 1.0]]))
    assert frame.schema["prediction_i"] == pl.Int64
    assert frame.select(pl.col("^prediction.*$")).rows() == [(1, False), (0, True)]


@pytest.mark.parametrize("target", ["y", "k", "f"])
def test_the_loss_of_an_evaluation_is_that_of_training(target: str) -> None:
    model = served(target)
    features, targets = model.model.features, model.model.targets
    rows = Rows(features.transform(FRAME), targets.transform(FRAME))
    found = model.evaluate(rows, targets.truth(FRAME))
    assert found["num_rows"] == 12
    head = {"y": 1.0, "k": torch.tensor(3.0).log().item(), "f": torch.tensor(2.0).log().item()}[target]
    assert found["loss"] == pytest.approx(head, rel=1e-5)  # an output of zero, as networks start
    assert found["metrics"]


def test_regression_is_measured_in_the_targets_units() -> None:
    model = served("y")
    rows = Rows(model.model.features.transform(FRAME), model.model.targets.transform(FRAME))
    metrics = model.evaluate(rows, model.model.targets.truth(FRAME))["metrics"]
    y = FRAME["y"]
    assert metrics["rmse"] == pytest.approx(y.std(ddof=0))
    assert metrics["r2"] == pytest.approx(0, abs=1e-6)
