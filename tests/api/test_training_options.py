"""Every layer, and what a run can be told beyond the basics: asked for over HTTP, trained, and used."""

import json
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load

from app.api.ahead import SMALL_BYTES
from tests.api.service import pointers, problem, train
from tests.unit.learning.test_network import EXAMPLES, Shape

RNG = np.random.default_rng(0)
WORDS = RNG.integers(0, 9, (90, 6))
SEQUENCES = {"inputs": WORDS.tolist(), "targets": [float(row.sum()) for row in WORDS]}
POINTS = RNG.standard_normal((90, 3))
CLASSES = [{"a": a, "b": b, "k": "up" if a > b else "down"} for a, b, _ in POINTS.tolist()]
CLASSIFIED = {"records": CLASSES, "target": "k"}
MEASURED = {"inputs": POINTS.tolist(), "targets": (POINTS[:, 0] * 2 - POINTS[:, 1]).tolist()}
SMALL: dict[str, Any] = {"network": {"hidden_features": [8]}, "stop": {"max_epochs": 3}}
EMBEDDING = {"type": "embedding", "num_embeddings": 9, "embedding_features": 6}


def body(data: Any = MEASURED, **fields: Any) -> dict[str, Any]:
    return {"model": "options", "data": data, **SMALL, **fields}


def layered(*layers: dict[str, Any], input_shape: Any = None, **fields: Any) -> dict[str, Any]:
    network = {"layers": layers, "input_shape": input_shape}
    return body(SEQUENCES, network=network, **fields)


# ---- layers


@pytest.mark.parametrize(("fields", "shape", "out"), EXAMPLES)
def test_every_layer_can_be_asked_for(client: httpx.Client, fields: dict[str, Any], shape: Shape, out: Shape) -> None:
    data = {"inputs": RNG.integers(0, 9, (9, int(np.prod(shape)))).tolist(), "targets": [i + 0.5 for i in range(9)]}
    network = {"layers": [fields, {"type": "flatten"}], "input_shape": shape}
    answer = client.post("/train", params={"dry_run": "true"}, json=body(data, network=network))
    assert answer.status_code == 200, answer.text
    assert answer.json()["spec"]["network"]["layers"][-1]["out_features"] == 1


PLACES = {"type": "positional_embedding"}
NETS: dict[str, list[dict[str, Any]]] = {
    "gru": [EMBEDDING, {"type": "gru", "hidden_features": 8}],
    "lstm": [EMBEDDING, {"type": "lstm", "hidden_features": 8, "bidirectional": True}],
    "attention": [EMBEDDING, PLACES, {"type": "self_attention", "num_heads": 2}, {"type": "mean_over_sequence"}],
    "transformer": [EMBEDDING, PLACES, {"type": "transformer_encoder", "num_heads": 2}, {"type": "last_place"}],
    "conv1d": [EMBEDDING, {"type": "transpose"}, {"type": "conv1d", "out_channels": 5}, {"type": "global_max_pool"}],
    "blocks": [
        EMBEDDING,
        {"type": "flatten"},
        {"type": "parallel", "branches": [[{"type": "linear", "out_features": 4}], [{"type": "rms_norm"}]]},
        {"type": "residual", "layers": [{"type": "linear", "out_features": 7}, {"type": "gelu"}]},
    ],
}


@pytest.fixture(scope="module")
def words(client: httpx.Client) -> httpx.Client:
    """The service, with a model that begins with an embedding."""
    train(client, layered(EMBEDDING, {"type": "flatten"}, stop={"max_epochs": 1}) | {"model": "words"})
    return client


@pytest.mark.parametrize("layers", NETS.values(), ids=NETS)
def test_nets_of_whole_numbers_learn_and_predict(client: httpx.Client, layers: list[dict[str, Any]]) -> None:
    rate = {"type": "adam", "learning_rate": 0.02}
    job = train(client, layered(*layers, input_shape=[6], stop={"max_epochs": 30}, optimizer=rate))
    assert job["spec"]["features"]["standardize"] == "target"
    assert job["metrics"]["val_r2"] > 0.3, job["metrics"]  # the mean of the targets has 0
    answer = client.post("/predict", json={"model": "options", "inputs": [[8] * 6, [0] * 6]}).json()
    assert answer["predictions"][0] > answer["predictions"][1] + 5


@pytest.mark.parametrize(
    ("spec", "pointer", "got", "wants"),
    [
        (layered(EMBEDDING), "/network/layers/0", "[6, 6]", "takes a flat one: flatten or pool"),
        (layered(EMBEDDING, {"type": "self_attention"}), "/network/layers/1", "6 features", "4 heads"),
        (layered({"type": "conv2d", "out_channels": 2}), "/network/layers/0", "[6]", "[channels, height, width]"),
        (layered(EMBEDDING, {"type": "group_norm", "num_groups": 4}), "/network/layers/1", "6 channels", "4 groups"),
        (layered({"type": "relu"}, input_shape=[2, 2]), "/network/input_shape", "a row has 6", "4 numbers"),
        (layered({**EMBEDDING, "num_embeddings": 5}), "/network/layers/0", "0 to 8", "0 to 4"),
    ],
)
def test_what_does_not_fit_is_told_with_what_it_got_and_wants(
    client: httpx.Client, spec: Any, pointer: str, got: str, wants: str
) -> None:
    answer = client.post("/train", json=spec)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert got in answer.json()["detail"]
    assert wants in answer.json()["detail"]


def test_a_layer_that_makes_too_much_of_a_row_is_refused(client: httpx.Client) -> None:
    """A few parameters, and 30 GB of numbers for each row: predicting one would end the service."""
    grow = {"type": "conv2d", "out_channels": 500, "kernel_size": 1, "padding": 1000}
    spec = layered(grow, grow, {"type": "flatten"}, input_shape=[1, 2, 3])
    assert pointers(client.post("/train", json=spec)) == ["/network/layers/0"]


@pytest.mark.parametrize("inputs", [[[0.5] * 6, [1] * 6], [[-1] * 6, [1] * 6], [[None] * 6, [1] * 6]])
def test_an_embedding_takes_whole_numbers_that_have_a_place(client: httpx.Client, inputs: Any) -> None:
    spec = layered(EMBEDDING, {"type": "flatten"}) | {"data": {"inputs": inputs, "targets": [0.5, 1.5]}}
    assert pointers(client.post("/train", json=spec)) == ["/network/layers/0"]


CSV = {"Content-Type": "text/csv"}
ROWS = [[0] * 6, [1, 2, 9, 4, 5, 6]]
TENSOR = {"name": "inputs", "shape": [2, 6], "datatype": "INT64", "data": ROWS}
LARGE = json.dumps({"model": "words", "inputs": ROWS}) + " " * SMALL_BYTES
TABLE = "x0,x1,x2,x3,x4,x5\n0,0,0,0,0,0\n1,2,9,4,5,6\n"


@pytest.mark.parametrize(
    ("path", "sent", "pointer"),
    [
        ("/predict", {"json": {"model": "words", "inputs": ROWS}}, "/inputs/1/2"),
        ("/predict", {"content": LARGE, "headers": {"Content-Type": "application/json"}}, "/inputs/1/2"),
        ("/predict", {"json": {"model": "words", "inputs": [{"x2": 9} | {f"x{i}": 1 for i in (0, 1, 3, 4, 5)}]}},
         "/inputs/0/x2"),
        ("/predict?model=words", {"content": TABLE, "headers": CSV}, "/1/x2"),
        ("/invocations?model=words", {"json": {"instances": ROWS}}, "/instances/1/2"),
        ("/v2/models/words/infer", {"json": {"inputs": [TENSOR]}}, "/inputs/0/data/1/2"),
        ("/evaluate", {"json": {"model": "words", "data": {"inputs": ROWS, "targets": [1, 2]}}}, "/data/inputs"),
    ],
)  # fmt: skip
def test_a_number_that_an_embedding_has_no_place_for_is_refused_in_predictions_too(
    path: str, sent: dict[str, Any], pointer: str, words: httpx.Client
) -> None:
    answer = words.post(path, **sent)
    assert pointers(answer) == [pointer]
    assert answer.json()["detail"] == "'x2' is 9; the network's embedding takes whole numbers from 0 to 8"


@pytest.mark.parametrize(("cell", "said"), [(None, "missing"), (2.5, "2.5"), (-1, "-1"), (1e300, "1e+300")])
def test_what_is_no_whole_number_has_no_place_in_an_embedding(words: httpx.Client, cell: Any, said: str) -> None:
    answer = words.post("/predict", json={"model": "words", "inputs": [[cell, 0, 8, 0, 0, 0]]})
    assert pointers(answer) == ["/inputs/0/0"]
    assert f"'x0' is {said};" in answer.json()["detail"]


def test_a_dataset_to_judge_by_has_numbers_that_an_embedding_has_a_place_for(words: httpx.Client) -> None:
    for name, last in (("learnt", 8), ("judged", 9)):
        words.put(f"/datasets/{name}", content=f"a,y\n1,1.5\n2,2.5\n{last},3\n").raise_for_status()
    data = {"dataset": "learnt", "target": "y"}
    spec = layered(EMBEDDING, {"type": "flatten"}) | {"data": data, "validation": {"dataset": "judged"}}
    answer = words.post("/train", json=spec)
    assert pointers(answer) == ["/validation"]
    assert "whole numbers from 0 to 8, and 'a' goes from 1 to 9" in answer.json()["detail"]


def test_an_embedding_of_scaled_numbers_is_refused(client: httpx.Client) -> None:
    spec = layered(EMBEDDING, {"type": "flatten"}, features={"standardize": True})
    assert pointers(client.post("/train", json=spec)) == ["/features/standardize"]


# ---- how it is learnt


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": {"type": "one_cycle"}, "optimizer": {"type": "sgd", "learning_rate": "auto", "momentum": 0.9}},
        {"schedule": {"type": "plateau", "patience": 1}, "stop": {"max_epochs": 3, "patience": 2, "metric": "r2"}},
        {"mixup": 0.3, "ema_decay": 0.9, "descent": {"batch_size": 8, "accumulate_steps": 2, "max_grad_norm": 1.0}},
        {"activation_checkpointing": True, "precision": "bfloat16"},
    ],
)
def test_options_go_together(client: httpx.Client, options: dict[str, Any]) -> None:
    job = train(client, body(**options))
    assert job["metrics"]["val_loss"] < 1.5
    rates = [row["learning_rate"] for row in client.get(f"/jobs/{job['id']}/history").json()["data"]]
    assert all(0 < rate <= 1 for rate in rates)


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro", "roc_auc"])
def test_any_metric_can_stop_a_run(client: httpx.Client, metric: str) -> None:
    """The published version is the best epoch's by that metric."""
    stop = {"max_epochs": 60, "patience": 4, "metric": metric}
    job = train(client, body(CLASSIFIED, stop=stop, optimizer={"type": "adam", "learning_rate": 0.02}))
    history = client.get(f"/jobs/{job['id']}/history").json()["data"]
    best = max(row[f"val_{metric}"] for row in history)
    assert job["stop_reason"] == "patience"
    assert job["metrics"][f"val_{metric}"] == pytest.approx(best)
    assert len(history) == 4 + next(i for i, row in enumerate(history, 1) if row[f"val_{metric}"] == best)


def test_classes_balanced_smoothed_and_mixed(client: httpx.Client) -> None:
    rare = [row for row in CLASSES if row["k"] == "up"] + [row for row in CLASSES if row["k"] == "down"][:4]
    spec = body(
        {"records": rare, "target": "k"},
        loss={"type": "cross_entropy", "label_smoothing": 0.1},
        descent={"sampling": "class_balanced", "batch_size": 8},
        mixup=0.2,
        stop={"max_epochs": 40, "metric": "f1_macro"},
        validation={"fraction": 0.3},
    )
    assert train(client, spec)["metrics"]["val_f1_macro"] > 0.7


def test_folds_that_start_from_a_model(client: httpx.Client) -> None:
    """Each fold goes on from the weights."""
    rate = {"type": "adam", "learning_rate": 0.02}
    train(client, body(stop={"max_epochs": 30}, optimizer=rate) | {"model": "start"})
    spec = body(validation={"folds": 3}, warm_start={"model": "start"}, stop={"max_epochs": 2}, ema_decay=0.9)
    job = train(client, spec)
    assert [fold["num_epochs"] for fold in job["metrics"]["folds"]] == [2, 2, 2]
    cold = train(client, body(validation={"folds": 3}, stop={"max_epochs": 2}))
    pairs = zip(job["metrics"]["folds"], cold["metrics"]["folds"], strict=True)
    assert all(warm["val_loss"] < other["val_loss"] / 2 for warm, other in pairs)


def test_frozen_layers_keep_their_weights(client: httpx.Client) -> None:
    train(client, body() | {"model": "frozen"})
    train(client, body(warm_start={"model": "frozen"}, freeze=["layers.0"], ema_decay=0.5) | {"model": "frozen"})
    one, two = (client.get(f"/models/frozen/versions/{version}/files/model.safetensors").content for version in "12")
    assert one != two
    assert _first_layer(one) == _first_layer(two)


def _first_layer(file: bytes) -> bytes:
    return load(file)["network.layers.0.weight"].tobytes()


def test_what_a_cpu_can_not_do_is_refused(client: httpx.Client) -> None:
    problem(client.post("/train", json=body(precision="tf32", device="cpu")), 422, "invalid_input")
