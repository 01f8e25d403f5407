"""What is exported runs in onnxruntime and says the same; what can't be exported is named."""

import builtins
import json
from functools import partial
from math import prod
from typing import Any

import numpy as np
import onnxruntime
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidInput, Unavailable
from app.learning.features import CALENDAR
from app.learning.model import Model
from app.serving.calendar import calendar_parts
from app.serving.onnx_check import feed_of, sample_rows
from app.serving.onnx_export import export_onnx
from app.serving.signature import input_types, output_types
from tests.published import COLUMNS, DRAWN, columns_model, numbers_model
from tests.samples import untrained
from tests.unit.learning.test_network import EXAMPLES

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's exporter gives many, about itself

WORDS = pl.DataFrame(
    {f"x{place}": np.random.default_rng(place).integers(0, 9, 60) for place in range(8)} | {"y": range(60)}
)
TIMES = pl.DataFrame(
    {
        "x": [None if row % 7 == 0 else row * 0.1 for row in range(60)],
        "when": pl.Series([None if row % 9 == 0 else 10**15 + row * 7 * 10**12 for row in range(60)]).cast(
            pl.Datetime("us")
        ),
        "kept": [row % 2 == 0 for row in range(60)],
        "color": [("red", "blue")[row % 2] for row in range(60)],
        "paid": pl.Series([None if row % 5 == 0 else 10**15 + row**3 * 10**11 for row in range(60)]).cast(
            pl.Datetime("us")
        ),
        "y": [row * 0.3 for row in range(60)],
    }
)
FLAGS = COLUMNS.with_columns(kept=pl.col("kept").cast(pl.String), code=pl.Series([row % 3 for row in range(60)]))


def all_layers_of(shape: tuple[int, ...]) -> Model:
    """A network with every layer of the registry that has an example which takes rows of this shape, side by side."""
    examples = [fields for fields, taken, _ in EXAMPLES if taken == shape]
    num_codes = min((fields["num_embeddings"] for fields in examples if "num_embeddings" in fields), default=0)
    chance = np.random.default_rng(0)
    cells = (chance.integers(num_codes, size=60) if num_codes else chance.normal(size=60) for _ in range(prod(shape)))
    table = pl.DataFrame({f"x{place}": column for place, column in enumerate(cells)} | {"y": chance.normal(size=60)})
    branches = [[fields, {"type": "flatten"}] for fields in examples]
    return untrained(
        table,
        data={"positional": True},
        network={"layers": [{"type": "parallel", "branches": branches}], "input_shape": list(shape)},
        features=None if num_codes else {},
        **DRAWN,
    )


MODELS: dict[str, Any] = {
    "rows of numbers": numbers_model,
    "numbers as they are": lambda: numbers_model(features=None),
    "embedded categories": columns_model,
    "one-hot categories and boolean labels": lambda: columns_model("wet", features={"categorical": "one_hot"}),
    "not standardised, and rates": lambda: columns_model(
        "y", features={"standardize": False}, loss={"type": "poisson_nll"}
    ),
    "several targets": lambda: columns_model(["y", "z"]),
    "multilabel": lambda: columns_model(["wet", "cold"]),
    "multilabel of 0 and 1": lambda: untrained(
        COLUMNS.with_columns(pl.col("wet", "cold").cast(pl.Int64)), ["wet", "cold"], **DRAWN
    ),
    "whole-number labels": lambda: untrained(
        FLAGS, "code", data={"features": ["size", "kept"]}, task="multiclass", **DRAWN
    ),
    "times among others": lambda: untrained(TIMES, **DRAWN),
    "times with no place for gaps": lambda: untrained(TIMES.drop_nulls(), features={"missing": "error"}, **DRAWN),
    "layers after each other": lambda: untrained(
        WORDS,
        data={"positional": True},
        network={
            "layers": [
                {"type": "embedding", "num_embeddings": 10, "embedding_features": 8},
                {"type": "positional_embedding"},
                {"type": "transformer_encoder", "num_heads": 2, "feedforward_features": 16, "activation": "relu"},
                {"type": "residual", "layers": [{"type": "gelu", "approximate": "tanh"}, {"type": "dropout"}]},
                {"type": "self_attention", "num_heads": 2},
                {"type": "mean_over_sequence"},
            ]
        },
        features=None,
        **DRAWN,
    ),
} | {f"layers that take {list(shape)}": partial(all_layers_of, shape) for _, shape, _ in EXAMPLES}


@pytest.mark.parametrize("kind", MODELS)
def test_onnxruntime_says_the_same(kind: str) -> None:
    model: Model = MODELS[kind]()
    session = onnxruntime.InferenceSession(export_onnx(model, "m"), providers=["CPUExecutionProvider"])
    for types, values in ((input_types, session.get_inputs()), (output_types, session.get_outputs())):
        expected = [(entry.name, list(entry.shape[1:])) for entry in types(model.signature)]
        assert [(value.name, value.shape[1:]) for value in values] == expected
    frame = sample_rows(model, 37)
    found = session.run(None, feed_of(model, frame))
    expected_values = model.predict(model.features.transform(frame)).numpy()
    assert len(np.unique(expected_values, axis=0)) > 5, "what says the same of all rows proves nothing"
    scale = np.abs(expected_values).max()
    np.testing.assert_allclose(found[-1], expected_values, rtol=1e-4, atol=1e-4 * scale)
    if model.signature.task in ("binary", "multiclass"):
        assert model.signature.classes is not None
        labels = [model.signature.classes[code] for code in found[1].argmax(1)]
        assert found[0].ravel().tolist() == labels
    if model.signature.task == "multilabel":
        expected_type = {"BOOL": np.bool_, "INT64": np.int64}[output_types(model.signature)[0].datatype]
        assert found[0].dtype == expected_type
        assert (found[0] == (found[1] >= 0.5)).all()


def test_gaps_and_words_that_it_never_saw() -> None:
    """Rows by hand, to be sure that the sample that the export is checked with has no blind spot."""
    model = columns_model()
    session = onnxruntime.InferenceSession(export_onnx(model, "m"), providers=["CPUExecutionProvider"])
    frame = pl.DataFrame(
        {
            "size": [1.0, None, 1e9, 0.0],
            "count": [1.0, 2.0, 3.0, 4.0],
            "kept": [1.0, 0.0, 1.0, 0.0],
            "color": ["grün", None, "pink", "red"],
        }
    )
    expected = model.predict(model.features.transform(frame)).numpy()
    feed = {
        "size": np.array([[1.0], [np.nan], [1e9], [0.0]]),
        "count": np.array([[1.0], [2.0], [3.0], [4.0]]),
        "kept": np.array([[True], [False], [True], [False]]),
        "color": np.array([["grün"], [""], ["pink"], ["red"]], dtype=object),
    }
    np.testing.assert_allclose(session.run(["probabilities"], feed)[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("features", [{}, {"standardize": False}, None], ids=str)
def test_numbers_beyond_float32_are_no_missing_ones(features: dict[str, Any] | None) -> None:
    table = pl.DataFrame({"x": np.linspace(-1e6, 1e6, 60), "y": np.arange(60.0)})
    model = untrained(table, network={"hidden_features": []}, features=features, **DRAWN)
    session = onnxruntime.InferenceSession(export_onnx(model, "m"), providers=["CPUExecutionProvider"])
    cells = np.array([1e39, -1e40, 1e30, 1e308, 1e-320, -0.0])
    expected = model.predict(model.features.transform(pl.DataFrame({"x": cells}))).numpy()
    found = session.run(None, {"x": cells[:, None]})[0]
    assert np.isfinite(expected).any()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_log_of_a_probability_next_to_none_is_no_infinity() -> None:
    table = pl.DataFrame({"x": np.linspace(-1, 1, 60), "y": np.arange(60.0)})
    network = {"layers": [{"type": "log_sigmoid"}, {"type": "residual", "layers": [{"type": "log_sigmoid"}]}]}
    model = untrained(table, network=network, features=None, **DRAWN)
    before = model.predict(torch.tensor([[-1e4], [-200.0], [0.0], [200.0]]))
    session = onnxruntime.InferenceSession(export_onnx(model, "m"), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": np.array([[-1e4], [-200.0], [0.0], [200.0]])})[0]
    np.testing.assert_allclose(found, before.numpy(), rtol=1e-5)


def test_times_are_whole_numbers_and_the_file_says_so() -> None:
    """From NumPy's own, which keep what is missing as the file takes it."""
    model = untrained(TIMES, **DRAWN)
    session = onnxruntime.InferenceSession(export_onnx(model, "m"), providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["datetime_inputs"]) == ["when", "paid"]
    assert said["datetime_unit"].startswith("microseconds since 1970-01-01T00:00:00 UTC")
    when = np.array(["2024-02-29T23:59:59.999999", "1969-12-31T23:00", "NaT", "1582-01-01"], "datetime64[us]")
    rows = pl.DataFrame({"x": [1.0, 2.0, None, 4.0], "kept": [1.0, 0, 1, 0], "color": ["red"] * 4})
    frame = rows.with_columns(when=pl.Series(when), paid=pl.Series(when[::-1])).select(
        column.name for column in model.features.columns
    )
    feed = {
        "x": np.array([[1.0], [2.0], [np.nan], [4.0]]),
        "kept": np.array([[True], [False], [True], [False]]),
        "color": np.array([["red"]] * 4, dtype=object),
        "when": when.astype(np.int64)[:, None],
        "paid": when[::-1].astype(np.int64)[:, None],
    }
    expected = model.predict(model.features.transform(frame)).numpy()
    np.testing.assert_allclose(session.run(["predictions"], feed)[0], expected, rtol=1e-4)


@given(st.lists(st.integers(-(2**62), 2**62), min_size=1))
def test_the_calendar_is_that_of_the_features(moments: list[int]) -> None:
    found = calendar_parts(torch.tensor(moments)[:, None]).numpy()
    stamps = pl.Series(moments).cast(pl.Datetime("us")).dt
    for place, part in enumerate(CALENDAR):
        assert found[:, place].tolist() == getattr(stamps, part)().to_list(), part


def test_what_has_no_form_in_onnx() -> None:
    with pytest.raises(InvalidInput, match="'predictions' is the name of an output") as caught:
        export_onnx(untrained(COLUMNS.select("y", predictions="z")), "m")
    assert caught.value.code == "not_exportable"


def test_a_file_that_says_something_else_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    model = numbers_model()
    monkeypatch.setattr(Model, "predict", lambda self, inputs: self.targets.activate(self.network(inputs)) + 1)
    with pytest.raises(InvalidInput, match="differ from this service's by up to 1"):
        export_onnx(model, "m")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "onnxscript":
            raise ImportError("No module named 'onnxscript'", name=name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(Unavailable, match=r"pip install 'gradserve\[onnx\]'") as caught:
        export_onnx(numbers_model(), "m")
    assert caught.value.code == "extra_missing"
