"""What a request may say: the examples, the defaults of api.md, and a pointer to whatever is wrong."""

import re
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from app.api import examples, problems
from app.api.evaluate import EvaluateRequest
from app.api.meant import OF_DATA, OF_LAYERS
from app.api.predict import PredictRequest
from app.api.problems import faults_of
from app.errors import Fault
from app.specs.alias import Alias
from app.specs.base import Spec
from app.specs.layers import LAYER_SPECS
from app.specs.losses import CrossEntropyLoss
from app.specs.table import InputsData, RecordsData, StoredData
from app.specs.training import TrainingSpec

INPUTS = {"inputs": [[1]], "targets": [1]}
RECORDS = {"records": [{"x": 1, "y": 2}], "target": "y"}


def faults(body: Any, kind: type[Spec] = TrainingSpec) -> list[Fault]:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    return faults_of([item | {"loc": ("body", *item["loc"])} for item in caught.value.errors()], body, kind)


def training(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "data": INPUTS, **fields}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (kind, example["value"])
        for kind, group in [
            (TrainingSpec, examples.TRAIN),
            (PredictRequest, examples.PREDICT),
            (EvaluateRequest, examples.EVALUATE),
            (Alias, examples.ALIAS),
        ]
        for example in group.values()
    ],
)
def test_examples_are_valid(kind: type[Spec], body: dict[str, Any]) -> None:
    kind.model_validate(body)


def test_defaults_are_those_of_the_contract() -> None:
    spec = TrainingSpec.model_validate(training()).model_dump(mode="json")
    assert spec["task"] == "auto"
    assert spec["network"] == {"hidden_features": [64, 64], "activation": "relu", "dropout": 0.0, "normalization": None}
    assert spec["loss"] == {"type": "auto", "class_weight": None}
    assert spec["optimizer"]["type"] == "adamw"
    assert spec["optimizer"]["learning_rate"] == 0.001
    descent = {"variant": "mini_batch", "shuffle": True, "accumulate_steps": 1, "max_grad_norm": None}
    assert descent.items() <= spec["descent"].items()
    assert spec["schedule"] == {"type": "constant", "warmup_steps": 0}
    open_ends = ("max_steps", "max_seconds", "patience", "target_loss", "min_grad_norm")
    assert [spec["stop"][name] for name in open_ends] == [None] * len(open_ends)
    assert spec["stop"]["min_delta"] == 0.0
    assert spec["validation"] == {"fraction": 0.1}
    assert spec["features"] == {"standardize": True, "missing": "impute", "categorical": "embedding"}
    assert (spec["init"]["weight"], spec["init"]["bias"]) == ("kaiming_uniform", "zeros")
    assert (spec["device"], spec["precision"], spec["engine"], spec["seed"]) == ("auto", "float32", "auto", 0)
    assert (spec["warm_start"], spec["tags"], spec["description"]) == (None, {}, "")


LAYERS = [
    {"type": "linear", "out_features": 2},
    {"type": "residual", "layers": [{"type": "dropout", "p": 0.5, "q": 1}]},
]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (training(q=1), "/q"),
        (training(data=INPUTS | {"q": 1}), "/data/q"),
        (training(data=RECORDS | {"q": 1}), "/data/q"),
        (training(data={"dataset": "d", "target": "y", "q": 1}), "/data/q"),
        (training(network={"q": 1}), "/network/q"),
        (training(network={"layers": [], "q": 1}), "/network/q"),
        (training(network={"layers": LAYERS}), "/network/layers/1/layers/0/q"),
        (training(loss={"type": "huber", "q": 1}), "/loss/q"),
        (training(loss={"type": "auto", "q": 1}), "/loss/q"),
        (training(optimizer={"type": "sgd", "q": 1.0}), "/optimizer/q"),
        (training(descent={"q": 1}), "/descent/q"),
        (training(schedule={"type": "cosine", "q": 1}), "/schedule/q"),
        (training(stop={"q": 1}), "/stop/q"),
        (training(validation={"fraction": 0.1, "q": 1}), "/validation/q"),
        (training(validation={"dataset": "d", "q": 1}), "/validation/q"),
        (training(validation={"folds": 2, "q": 1}), "/validation/q"),
        (training(validation={"q": 1}), "/validation/q"),
        (training(features={"q": 1}), "/features/q"),
        (training(init={"q": 1}), "/init/q"),
        (training(warm_start={"model": "m", "q": 1}), "/warm_start/q"),
        (training(**{"a/b~c": 1}), "/a~1b~0c"),
    ],
)
def test_unknown_fields_are_refused_where_they_are(body: Any, pointer: str) -> None:
    found = faults(body)[0]
    assert found.pointer == pointer
    assert found.detail.startswith("there is no such field; there are '")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            training(optimizer={"type": "sgd", "rate": 1.0}),
            "there are 'type', 'learning_rate', 'momentum', 'dampening', 'nesterov', 'weight_decay'",
        ),
        (training(optimizer={"type": "adam", "learningrate": 1.0}), "did you mean 'learning_rate'?"),
        (training(optimizer={"type": "adam", "lr": 1.0}), "did you mean 'learning_rate'?"),
        (training(features={"cat": "one_hot"}), "did you mean 'categorical'?"),
        (
            training(stop={"max": 3}),
            "there are 'max_epochs', 'max_steps', 'max_seconds', 'metric', 'patience', "
            "'min_delta', 'target_loss', 'min_grad_norm', 'restore_best'",
        ),
        (training(network={"layers": [{"type": "gelu", "units": 3}]}), "there are 'type', 'approximate'"),
        (
            training(network={"layers": [{"type": "residual", "layers": [{"type": "relu", "slope": 1}]}]}),
            "there are 'type'",
        ),
        (training(validation={"q": 1}), "there are 'fraction', 'dataset', 'digest', 'folds'"),
        (training(stop={"epochs": 1}), "did you mean 'max_epochs'?"),
        (training(learning_rate=0.1), "did you mean 'optimizer.learning_rate'?"),
        (training(hidden_features=[8]), "did you mean 'network.hidden_features'?"),
        (training(patience=3), "did you mean 'schedule.patience' or 'stop.patience'?"),
        (training(epochs=3), "did you mean 'stop.max_epochs'?"),
        (training(optimiser={"type": "sgd"}), "did you mean 'optimizer'?"),
        (training(stop={"MAX_EPOCHS": 1}), "did you mean 'max_epochs'?"),
        (training(MAX_EPOCHS=1), "did you mean 'stop.max_epochs'?"),
    ],
)
def test_an_unknown_field_comes_with_those_that_there_are(body: Any, words: str) -> None:
    assert faults(body)[0].detail == f"there is no such field; {words}"


@pytest.mark.parametrize(
    ("body", "pointer", "words"),
    [
        (training(validation={"folds": 5, "fraction": 0.1}), "/validation/fraction", ""),
        (
            training(data={"records": [{}], "target": "y", "dataset": "d"}),
            "/data/dataset",
            ", but with 'digest', 'target', 'features', 'ignored_columns', 'sample_weight', 'positional'",
        ),
        (
            training(network={"layers": [], "hidden_features": [8]}),
            "/network/hidden_features",
            ", but with 'activation', 'dropout', 'normalization'",
        ),
        (
            training(network={"hidden_features": [8], "input_shape": [1, 8, 8]}),
            "/network/input_shape",
            ", but with 'layers', 'head'",
        ),
    ],
)
def test_a_field_of_another_form_is_said_to_be_out_of_place(body: Any, pointer: str, words: str) -> None:
    assert faults(body) == [Fault(pointer, f"this does not go with the fields beside it{words}")]


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (
            training(warm_start={"model": "m", "version": 1}),
            Fault("/warm_start/version", "this must be a string, in quotes"),
        ),
        (
            training(data={"dataset": "d", "target": "y", "features": []}),
            Fault("/data/features", "this must have at least 1 item(s)"),
        ),
        (
            training(descent={}, schedule={"warmup_steps": 5}),
            Fault(
                "/schedule",
                'this needs a "type"; there are constant, cosine, linear, step, exponential, one_cycle, plateau',
            ),
        ),
        (
            training(device="gpu"),
            Fault("/device", "a device is auto, cpu, cuda, or one of several cards: cuda:0, cuda:1, …"),
        ),
    ],
)
def test_faults_speak_of_json_and_not_of_python(body: Any, fault: Fault) -> None:
    assert faults(body) == [fault]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"data": INPUTS}, "/model"),
        ({"model": "m"}, "/data"),
        (training(data={"inputs": [[1]]}), "/data/targets"),
        (training(data={"records": [{}]}), "/data/target"),
        (training(data={"dataset": "d"}), "/data/target"),
        (training(network={"layers": [{"type": "linear"}]}), "/network/layers/0/out_features"),
        (training(warm_start={}), "/warm_start/model"),
    ],
)
def test_missing_fields_are_named(body: Any, pointer: str) -> None:
    assert faults(body) == [Fault(pointer, f"{pointer.rpartition('/')[2]!r} is required")]


@pytest.mark.parametrize(
    ("body", "pointer", "words"),
    [
        (5, "", "object"),
        ([], "", "object"),
        (training(data=5), "/data", "object"),
        (training(data=[]), "/data", "object"),
        (training(validation=0.2), "/validation", "object; it may have 'fraction', 'dataset', 'digest', 'folds'"),
        (training(network=[64]), "/network", "object; it may have 'hidden_features', "),
        (training(network={"layers": 5}), "/network/layers", "array"),
        (training(network={"layers": [5]}), "/network/layers/0", "object"),
        (training(network={"layers": [{"out_features": 5}]}), "/network/layers/0", '"type"'),
        (training(network={"layers": [{"type": "linaer"}]}), "/network/layers/0/type", "'linear'"),
        (training(network={"hidden_features": [0]}), "/network/hidden_features/0", "1"),
        (training(network={"hidden_features": [64.0]}), "/network/hidden_features/0", "integer"),
        (training(loss="mse"), "/loss", 'object with a "type"'),
        (training(task="classification"), "/task", "'auto', 'regression', 'binary', 'multiclass' or 'multilabel'"),
        (training(network={"activation": "ReLU"}), "/network/activation", "; did you mean 'relu'?"),
        (training(stop={"metric": "acc"}), "/stop/metric", "; did you mean 'accuracy'?"),
        (training(network={"hidden_features": 64}), "/network/hidden_features", "array, as in [64]"),
        (training(network={"hidden_features": 10**30}), "/network/hidden_features", "array, as in [1000"),
        (training(data={"dataset": "d", "target": "y", "features": "a"}), "/data/features", 'array, as in ["a"]'),
        (training(loss={"type": "mes"}), "/loss/type", "'mse'"),
        (training(optimizer={"learning_rate": 0.1}), "/optimizer", '"type"'),
        (training(optimizer={"type": "adam", "learning_rate": 0}), "/optimizer/learning_rate", "0"),
        (training(optimizer={"type": "adam", "beta2": 1}), "/optimizer/beta2", "1"),
        (training(optimizer={"type": "sgd", "nesterov": True}), "/optimizer", "momentum"),
        (training(descent={"variant": "stochastic", "batch_size": 5}), "/descent", "mini_batch"),
        (training(optimizer={"type": "adam", "weight_decay": 1e39}), "/optimizer/weight_decay", "or equal to 1000"),
        (training(network={"layers": [{"type": "celu", "alpha": 1e-39}]}), "/network/layers/0/alpha", "equal to 0.00"),
        (training(loss={"type": "huber", "delta": 1e39}), "/loss/delta", "or equal to 1000"),
        (training(init={"std": 1e39}), "/init/std", "or equal to 1000"),
        (training(descent={"accumulate_steps": 0}), "/descent/accumulate_steps", "1"),
        (training(stop={"max_epochs": 0}), "/stop/max_epochs", "1"),
        (training(validation={"fraction": 1.0}), "/validation/fraction", "0.9"),
        (training(num_threads=1025), "/num_threads", "1024"),
        (training(seed=-1), "/seed", "0"),
        (training(seed=True), "/seed", "integer"),
        (training(device="gpu"), "/device", "cuda"),
        (training(model="../etc"), "/model", "a-z"),
        (training(tags={"a": 1}), "/tags/a", "string"),
        (training(loss={"type": "cross_entropy", "class_weight": 5}), "/loss/class_weight", "'balanced' or an object"),
        (training(optimizer={"type": "sgd", "learning_rate": float("nan")}), "/optimizer/learning_rate", "finite"),
    ],
)  # fmt: skip
def test_wrong_values_are_told_with_what_would_be_right(body: Any, pointer: str, words: str) -> None:
    found = faults(body)
    assert found[0].pointer == pointer
    assert words in found[0].detail


def test_what_is_missing_is_what_an_unknown_field_was_meant_to_be() -> None:
    layers = [{"type": "linear", "units": 3}]
    said = Fault("/network/layers/0/units", "there is no such field; did you mean 'out_features'?")
    assert faults(training(network={"layers": layers}))[1:] == [said]
    spec = {"data": INPUTS, "optimiser": {"type": "sgd"}}
    assert faults(spec)[1:] == [Fault("/optimiser", "there is no such field; did you mean 'optimizer'?")]


def layered(**fields: Any) -> dict[str, Any]:
    return training(network={"layers": [fields]})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (layered(type="conv1d", out_channels=2, in_channels=1), "it is inferred; leave it out"),
        (layered(type="linear", out_features=2, in_features=1), "it is inferred; leave it out"),
        (layered(type="lstm", hidden_features=2, input_size=1), "it is inferred; leave it out"),
        (layered(type="embedding", num_embeddings=2, embedding_features=2, input_dim=1),
         "there are 'type', 'num_embeddings', 'embedding_features'"),
        (layered(type="linear", out_features=2, out_feature=1), "there are 'type', 'out_features', 'bias', 'init'"),
        (layered(type="lstm", hidden_features=2, return_sequences=True),
         'gru and lstm have "output": "sequence" for that'),
        (layered(type="lstm", hidden_features=2, batch_first=True), "it is always so; leave it out"),
        (layered(type="dropout", rate=0.5), "dropout has 'p' for that"),
        (training(optimizer={"type": "sgd", "learning_rate": 0.1, "lr": 0.1}),
         "there are 'type', 'learning_rate', 'momentum', 'dampening', 'nesterov', 'weight_decay'"),
        (training(in_features=5), "did you mean 'features'?"),
        (training(network={"layers": [], "layered": 5}), "did you mean 'layers'?"),
    ],
)  # fmt: skip
def test_what_is_given_already_or_goes_without_saying_was_not_meant(body: Any, words: str) -> None:
    assert [fault.detail for fault in faults(body)] == [f"there is no such field; {words}"]


def test_of_several_that_are_missing_the_nearest_was_meant() -> None:
    found = faults(layered(type="embedding", features=3, embedding_dim=3, num_words=2, size=3))
    assert [fault.detail.partition("; ")[2].partition("', ")[0] for fault in found if "/0/" in fault.pointer][2:] == [
        "did you mean 'embedding_features'?",
        "did you mean 'embedding_features'?",
        "there are 'type",
        "there are 'type",
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Dense", "did you mean 'linear'?"),
        ("softmax", "the loss 'cross_entropy' takes logits; leave it out"),
        ("AdaptiveAvgPool2d", "did you mean 'global_avg_pool'?"),
        ("GlobalAveragePooling2D", "did you mean 'global_avg_pool'?"),
        ("conv_transpose2d", "nor is there one of its kind"),
        ("MaxPooling2D", "did you mean 'max_pool2d'?"),
    ],
)
def test_layers_of_other_libraries_are_known(name: str, words: str) -> None:
    assert faults(layered(type=name)) == [Fault("/network/layers/0/type", f"there is no type {name!r}; {words}")]
    elsewhere = faults(training(loss={"type": name}))[0].detail
    assert elsewhere.startswith(f"there is no type {name!r}; ")
    assert words not in elsewhere


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("columns", "rows are 'records', or 'inputs' and 'targets', or a 'dataset'"),
        ("X", "rows are 'records', or 'inputs' and 'targets', or a 'dataset'"),
        ("labels", "did you mean 'target', or 'targets'?"),
        ("weights_column", "did you mean 'sample_weight'?"),
    ],
)
def test_what_others_call_the_parts_of_data_is_known(name: str, words: str) -> None:
    found = faults(training(data={"records": [{"x": 1, "y": 2}], "target": "y", name: []}))
    assert found == [Fault(f"/data/{name}", f"there is no such field; {words}")]
    data_fields = {field for spec in (StoredData, RecordsData, InputsData) for field in spec.model_fields}
    assert set(re.findall("'(.+?)'", words)) <= data_fields
    assert not data_fields.intersection(OF_DATA)


def test_words_for_other_libraries_names_say_what_there_is() -> None:
    fields = {name: field for spec in LAYER_SPECS for name, field in spec.model_fields.items()}
    types = {name for spec in LAYER_SPECS for name in get_args(spec.model_fields["type"].annotation)}
    there_are = {*fields, *types, *get_args(fields["output"].annotation), CrossEntropyLoss.model_fields["type"].default}
    assert {name for words in OF_LAYERS.values() for name in re.findall("['\"](.+?)['\"]", words)} <= there_are
    assert not there_are.intersection(OF_LAYERS)


@pytest.mark.parametrize("block", [{"type": "residual", "layers": [{}]}, {"type": "parallel", "branches": [[{}]]}])
def test_a_list_of_wrong_things_is_not_said_to_be_too_short(block: Any) -> None:
    assert len(faults(training(network={"layers": [block]}))) == 1
    assert "at least 1 item" in faults(training(network={"layers": [{"type": "residual", "layers": []}]}))[0].detail


def test_a_body_of_many_faults_is_answered_with_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """To look for what was meant by each would hold up everyone."""
    looked: list[str] = []
    monkeypatch.setattr(problems, "no_such_field", lambda name, *_, **__: looked.append(name) or name)
    assert len(faults(training(**{f"q{number}": 1 for number in range(1000)}))) == problems.MAX_FAULTS
    assert len(looked) == problems.MAX_FAULTS


def test_one_thing_or_another_is_one_fault() -> None:
    found = faults(training(optimizer={"type": "sgd", "learning_rate": "fast"}))
    assert found == [Fault("/optimizer/learning_rate", "this must be a valid number or 'auto'")]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("padding", "SAME", "'same' or 'valid' or a valid integer; did you mean 'same'?"),
        ("padding", [1, 1], "'same' or 'valid' or a valid integer, one for all axes"),
        ("kernel_size", [3, 3], "a valid integer, one for all axes"),
        ("kernel_size", "3", "a valid integer"),
        ("out_channels", [3, 3], "a valid integer"),
    ],
)
def test_one_number_or_a_word_is_what_a_convolution_takes(field: str, value: Any, words: str) -> None:
    body = layered(**{"type": "conv2d", "out_channels": 2, field: value})
    assert faults(body) == [Fault(f"/network/layers/0/{field}", f"this must be {words}")]


def test_padding_that_keeps_lengths_goes_without_a_stride() -> None:
    found = faults(layered(type="conv1d", out_channels=2, stride=2))
    assert found[0].detail.endswith("give the padding as a number, such as (kernel_size - 1) // 2")


def test_nothing_is_told_that_would_be_wrong_too() -> None:
    assert faults(training(freeze=True)) == [Fault("/freeze", "this must be an array")]
    assert faults(training(tags=["a"])) == [Fault("/tags", "this must be an object")]


def test_an_object_of_the_user_s_own_names_needs_no_type() -> None:
    (fault,) = faults(training(loss={"type": "cross_entropy", "class_weight": 5}))
    assert "type" not in fault.detail


def test_a_fault_names_the_class_of_no_python_object() -> None:
    details = " ".join(fault.detail for fault in faults(training(data=5, network=7, loss="x", features=[], init=0)))
    assert "instance" not in details
    assert "Data" not in details
