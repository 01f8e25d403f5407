"""The Open Inference Protocol: what is said of models, and what happens to requests that are not in order."""

import gzip
import json
import resource
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.api import v2, v2_extensions, v2_infer, v2_repository
from tests.api.serving_app import serving, serving_app
from tests.published import columns_model, numbers_model, publish

INFER = "/v2/models/numbers/infer"
ROWS = np.array([[0.5, 1.0], [2.0, 3.0]], np.float32)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("serving")
    publish(root / "models", "numbers", numbers_model())
    publish(root / "models", "columns", columns_model())
    return root


@pytest.fixture(scope="module")
def client(root: Path) -> Iterator[httpx.Client]:
    app = serving_app(
        root,
        v2.router,
        v2_repository.router,
        v2_infer.router,
        v2_extensions.router,
        max_body_bytes=2**20,
        max_rows=1000,
    )
    with serving(app) as client:
        yield client


def numbers(data: Any = None, **changes: Any) -> dict[str, Any]:
    return {
        "name": "inputs",
        "shape": [2, 2],
        "datatype": "FP32",
        "data": ROWS.ravel().tolist() if data is None else data,
    } | changes


def binary(body: dict[str, Any], *blobs: bytes, length: int | str | None = None) -> dict[str, Any]:
    """A request whose tensors follow its JSON."""
    head = json.dumps(body).encode()
    header = {v2_infer.HEADER_LENGTH: str(len(head) if length is None else length)}
    return {"content": b"".join([head, *blobs]), "headers": header}


def binary_numbers(size: Any = 16, **changes: Any) -> dict[str, Any]:
    item = numbers(**changes)
    del item["data"]
    return {"inputs": [item | {"parameters": {"binary_data_size": size}}]}


def refusal(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of an answer that is an error in both protocols' words."""
    problem = answer.json()
    assert 400 <= answer.status_code < 500, problem
    assert problem["error"] == problem["detail"]
    return answer.status_code, problem["code"]


def test_tensors_of_a_model_of_numbers(client: httpx.Client) -> None:
    assert client.get("/v2/models/numbers").json() == {
        "name": "numbers",
        "versions": ["1"],
        "platform": "pytorch_safetensors",
        "inputs": [{"name": "inputs", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "predictions", "datatype": "FP64", "shape": [-1, 1]}],
    }


def test_tensors_of_a_model_with_columns(client: httpx.Client) -> None:
    said = client.get("/v2/models/columns/versions/1").json()
    assert [(item["name"], item["datatype"], item["shape"]) for item in said["inputs"] + said["outputs"]] == [
        ("size", "FP64", [-1, 1]),
        ("count", "FP64", [-1, 1]),
        ("kept", "BOOL", [-1, 1]),
        ("color", "BYTES", [-1, 1]),
        ("predictions", "BYTES", [-1, 1]),
        ("probabilities", "FP64", [-1, 3]),
    ]


def test_json_and_binary_give_the_same(client: httpx.Client) -> None:
    body = {"id": "seven", "parameters": {"mine": 5}, "inputs": [numbers()]}
    answer = client.post(INFER, content=json.dumps(body))  # with no Content-Type
    assert answer.status_code == 200
    said = answer.json()
    assert (said["id"], said["parameters"]) == ("seven", {"mine": 5})
    assert (said["model_name"], said["model_version"]) == ("numbers", "1")
    (output,) = said["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("predictions", "FP64", [2, 1])

    request = binary_numbers() | {"parameters": {"binary_data_output": True}}
    packed = client.post(INFER, **binary(request, ROWS.tobytes()))
    assert packed.headers["content-type"] == "application/octet-stream"
    values = np.frombuffer(packed.content[int(packed.headers[v2_infer.HEADER_LENGTH]) :])
    np.testing.assert_array_equal(values, output["data"])


def test_a_target_may_stand_before_the_rows(client: httpx.Client) -> None:
    """It is let pass, as in a table that has it."""
    target = {"name": "y", "shape": [2, 1], "datatype": "FP32", "data": [1, 2]}
    said = client.post(INFER, json={"inputs": [target, numbers()]})
    assert (said.status_code, said.json()) == (200, client.post(INFER, json={"inputs": [numbers()]}).json())
    wrong = client.post(INFER, json={"inputs": [target, numbers(shape=[1, 4])]}).json()
    assert wrong["errors"][0]["pointer"] == "/inputs/1/shape"


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_both_ways(client: httpx.Client, encoding: str) -> None:
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    plain = binary(binary_numbers(), ROWS.tobytes())
    packed = {
        "content": pack(plain["content"]),
        "headers": plain["headers"] | {"Content-Encoding": encoding, "Accept-Encoding": encoding},
    }
    answer = client.post(INFER, **packed)
    assert answer.headers["content-encoding"] == encoding
    without = client.post(INFER, **plain | {"headers": plain["headers"] | {"Accept-Encoding": "identity"}})
    assert "content-encoding" not in without.headers
    assert answer.json() == without.json()


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "BOOL"])
def test_numbers_of_any_datatype(client: httpx.Client, datatype: str) -> None:
    ones = [[True, True]] if datatype == "BOOL" else [[1, 1]]
    answer = client.post(INFER, json={"inputs": [numbers(ones, shape=[1, 2], datatype=datatype)]}).json()
    expected = client.post(INFER, json={"inputs": [numbers([1, 1], shape=[1, 2])]}).json()
    assert answer == expected


COLUMNS: list[dict[str, Any]] = [
    {"name": "size", "shape": [2, 1], "datatype": "FP64", "data": [1.5, None]},
    {"name": "count", "shape": [2], "datatype": "INT32", "data": [3, 4]},
    {"name": "kept", "shape": [2, 1], "datatype": "BOOL", "data": [[True], [False]]},
    {"name": "color", "shape": [2, 1], "datatype": "BYTES", "data": ["grün", ""]},
]


def test_columns(client: httpx.Client) -> None:
    outputs = client.post("/v2/models/columns/infer", json={"inputs": COLUMNS}).json()["outputs"]
    labels, probabilities = outputs[0]["data"], np.reshape(outputs[1]["data"], outputs[1]["shape"])
    assert outputs[0]["datatype"] == "BYTES"
    assert labels == [("Adelie", "Chinstrap", "Gentoo")[index] for index in probabilities.argmax(1)]
    np.testing.assert_allclose(probabilities.sum(1), 1)
    as_null = [*COLUMNS[:3], COLUMNS[3] | {"data": ["grün", None]}]
    assert client.post("/v2/models/columns/infer", json={"inputs": as_null}).json()["outputs"] == outputs


def test_classification(client: httpx.Client) -> None:
    wanted = [{"name": "probabilities", "parameters": {"classification": 2}}]
    (output,) = client.post("/v2/models/columns/infer", json={"inputs": COLUMNS, "outputs": wanted}).json()["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    value, index, label = output["data"][0].split(":")
    assert 0.33 < float(value) <= 1
    assert label == ("Adelie", "Chinstrap", "Gentoo")[int(index)]


@pytest.mark.parametrize(
    ("model", "inputs", "code"),
    [
        ("numbers", [numbers(shape=[2, 3])], "shape_mismatch"),
        ("numbers", [numbers(shape=[1, 4])], "shape_mismatch"),
        ("numbers", [numbers(shape=[4])], "shape_mismatch"),
        ("numbers", [numbers([], shape=[0, 2])], "shape_mismatch"),
        ("numbers", [numbers(shape=[-1, 2])], "invalid_input"),
        ("numbers", [numbers(shape=[2**61, 2**61])], "too_large"),
        ("numbers", [numbers(shape=[2, 2**61])], "shape_mismatch"),
        ("numbers", [numbers(shape=[2**70, 2])], "invalid_input"),
        ("numbers", [numbers(shape=[])], "invalid_input"),
        ("numbers", [numbers(shape="2,2")], "invalid_input"),
        ("numbers", [numbers(shape=[2000, 2], data=[0.0] * 4000)], "too_large"),
        ("numbers", [numbers(datatype="FP12")], "invalid_input"),
        ("numbers", [numbers(["a", "b", "c", "d"], datatype="BYTES")], "invalid_input"),
        ("numbers", [numbers(name="input")], "unknown_column"),
        ("numbers", [numbers(), numbers()], "invalid_input"),
        ("numbers", [numbers(parameters={"binary_data_size": 16})], "invalid_input"),
        ("numbers", [numbers(parameters={"shared_memory_region": "x"})], "invalid_input"),
        ("numbers", [], "invalid_input"),
        ("columns", COLUMNS[:3], "invalid_input"),
        ("columns", [*COLUMNS, numbers()], "unknown_column"),
        ("columns", [numbers()], "unknown_column"),
        ("columns", [*COLUMNS[:3], COLUMNS[3] | {"shape": [1, 1], "data": ["red"]}], "shape_mismatch"),
        ("columns", [*COLUMNS[:3], COLUMNS[3] | {"shape": [1, 2]}], "shape_mismatch"),
        ("columns", [COLUMNS[0] | {"datatype": "BYTES", "data": ["1", "2"]}, *COLUMNS[1:]], "invalid_input"),
        ("columns", [*COLUMNS[:2], COLUMNS[2] | {"datatype": "INT8", "data": [2, 1]}, COLUMNS[3]], "invalid_input"),
    ],
)
def test_inputs_that_do_not_fit(client: httpx.Client, model: str, inputs: list[Any], code: str) -> None:
    assert refusal(client.post(f"/v2/models/{model}/infer", json={"inputs": inputs}))[1] == code


def test_a_matrix_for_a_model_of_more_than_numbers_is_told_what_there_is(client: httpx.Client) -> None:
    answer = client.post("/v2/models/columns/infer", json={"inputs": [numbers()]})
    wanted = ", ".join(column["name"] for column in COLUMNS)
    assert (
        answer.json()["error"]
        == f"'inputs' is for models of numbers alone; this one takes a tensor for each of {wanted}"
    )


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (binary(binary_numbers(), ROWS.tobytes(), length=-1), 400, "unparseable"),
        (binary(binary_numbers(), ROWS.tobytes(), length=10**6), 400, "unparseable"),
        (binary(binary_numbers(), ROWS.tobytes(), length="9" * 5000), 400, "unparseable"),
        (binary(binary_numbers(), ROWS.tobytes(), length="ten"), 400, "unparseable"),
        (binary(binary_numbers(), ROWS.tobytes(), length=5), 400, "unparseable"),
        (binary(binary_numbers(), ROWS.tobytes()[:-1]), 422, "shape_mismatch"),
        (binary(binary_numbers(), ROWS.tobytes() + b"\0"), 422, "invalid_input"),
        (binary(binary_numbers(15), ROWS.tobytes()), 422, "shape_mismatch"),
        (binary(binary_numbers(-1), ROWS.tobytes()), 422, "invalid_input"),
        (binary(binary_numbers(2**60), ROWS.tobytes()), 422, "shape_mismatch"),
        (binary(binary_numbers("16"), ROWS.tobytes()), 422, "invalid_input"),
        (binary(binary_numbers(True), ROWS.tobytes()), 422, "invalid_input"),
        (binary(binary_numbers(shape=[2**40, 2**40]), ROWS.tobytes()), 413, "too_large"),
        (binary(binary_numbers(shape=[2, 2**60]), ROWS.tobytes()), 422, "shape_mismatch"),
        ({"content": b""}, 400, "unparseable"),
        ({"content": b"[]"}, 422, "invalid_input"),
        ({"content": b"{"}, 400, "unparseable"),
        ({"json": {"inputs": [numbers()], "outputs": [{"name": "nope"}]}}, 422, "invalid_input"),
        (
            {
                "json": {
                    "inputs": [numbers()],
                    "outputs": [{"name": "predictions", "parameters": {"classification": 1}}],
                }
            },
            422,
            "invalid_input",
        ),
        ({"content": b"x", "headers": {"Content-Encoding": "gzip"}}, 400, "unparseable"),
        ({"content": b"x", "headers": {"Content-Encoding": "br"}}, 415, "unsupported_media_type"),
        ({"content": gzip.compress(b"{}")[:-4], "headers": {"Content-Encoding": "gzip"}}, 400, "unparseable"),
        ({"content": gzip.compress(bytes(2**26)), "headers": {"Content-Encoding": "gzip"}}, 413, "too_large"),
        ({"content": zlib.compress(bytes(2**26)), "headers": {"Content-Encoding": "deflate"}}, 413, "too_large"),
        ({"content": iter([bytes(2**20), b"1"])}, 413, "too_large"),
    ],
)
def test_bodies_that_lie(client: httpx.Client, request_: dict[str, Any], status: int, code: str) -> None:
    assert refusal(client.post(INFER, **request_)) == (status, code)


def test_a_bomb_takes_no_memory(client: httpx.Client) -> None:
    bomb = gzip.compress(bytes(2**29))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refusal(client.post(INFER, content=bomb, headers={"Content-Encoding": "gzip"}))[0] == 413
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**15, "kilobytes"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/nope", 404),
        ("GET", "/v2/models/nope/config", 404),
        ("GET", "/v2/models/nope/ready", 404),
        ("GET", "/v2/models/numbers/versions/9", 404),
        ("GET", "/v2/models/numbers/versions/9/ready", 404),
        ("POST", "/v2/models/nope/infer", 404),
        ("POST", "/v2/models/NO!/infer", 422),
        ("POST", "/v2/repository/models/nope/load", 404),
        ("POST", "/v2/repository/models/nope/unload", 404),
        ("GET", "/v2/nothing", 404),
        ("DELETE", "/v2", 405),
        ("POST", "/v2/logging", 422),
        ("POST", "/v2/systemsharedmemory/region/x/register", 422),
    ],
)
def test_what_is_not_there(client: httpx.Client, method: str, path: str, status: int) -> None:
    assert refusal(client.request(method, path))[0] == status


def test_a_timeout_is_kept(client: httpx.Client) -> None:
    answer = client.post(INFER, json={"inputs": [numbers()], "parameters": {"timeout": 1}})
    assert refusal(answer) == (429, "deadline_exceeded")
    assert int(answer.headers["retry-after"]) >= 1
    for timeout in (0, 10**7):
        assert client.post(INFER, json={"inputs": [numbers()], "parameters": {"timeout": timeout}}).status_code == 200
    for timeout in (-1, "soon", 1.5):
        answer = client.post(INFER, json={"inputs": [numbers()], "parameters": {"timeout": timeout}})
        assert refusal(answer) == (422, "invalid_input")


def test_keys(root: Path) -> None:
    app = serving_app(root, v2.router, v2_repository.router, v2_infer.router, keys="reader:read,asker:predict")
    with serving(app) as client:
        assert client.get("/v2/health/live").status_code == 200
        assert refusal(client.get("/v2/models/numbers")) == (401, "unauthenticated")
        body = {"inputs": [numbers()]}
        assert refusal(client.post(INFER, json=body, headers={"Authorization": "Bearer reader"})) == (403, "forbidden")
        assert client.post(INFER, json=body, headers={"Authorization": "Bearer asker"}).status_code == 200
