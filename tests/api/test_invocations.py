"""MLflow's forms of a request, against what `/predict` says of the same rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api import invocations, predict
from tests.api.serving_app import serving, serving_app
from tests.published import columns_model, numbers_model, publish

RECORDS = [
    {"size": 1.5, "count": 3, "kept": True, "color": "grün"},
    {"size": None, "count": 1, "kept": False, "color": None},
]
NAMES = list(RECORDS[0])
DATA = [list(record.values()) for record in RECORDS]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    root = tmp_path_factory.mktemp("serving")
    publish(root / "models", "numbers", numbers_model())
    publish(root / "models", "columns", columns_model())
    publish(root / "models", "pairs", columns_model(["y", "z"]))
    app = serving_app(root, predict.router, invocations.router, max_rows=100)
    with serving(app) as client:
        yield client


def invoke(client: httpx.Client, body: dict[str, Any], model: str = "columns") -> Any:
    answer = client.post("/invocations", params={"model": model}, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json().keys() == {"predictions"}
    return answer.json()["predictions"]


def predicted(client: httpx.Client, inputs: list[Any], model: str = "columns") -> Any:
    return client.post("/predict", json={"model": model, "inputs": inputs}).json()["predictions"]


@pytest.mark.parametrize("model", ["columns", "pairs"])
@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": NAMES, "data": DATA, "index": [0, 1]}},
        {"dataframe_split": {"columns": NAMES[::-1], "data": [row[::-1] for row in DATA]}},
        {"dataframe_split": {"data": DATA}},
        {"dataframe_records": RECORDS},
        {"instances": RECORDS, "params": {"any": 1}},
        {"instances": DATA},
        {"inputs": DATA},
        {"inputs": {name: [record[name] for record in RECORDS] for name in NAMES}},
        {"inputs": {name: [[record[name]] for record in RECORDS] for name in NAMES}},
    ],
)
def test_forms(client: httpx.Client, body: dict[str, Any], model: str) -> None:
    assert invoke(client, body, model) == predicted(client, RECORDS, model)


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2], [3, 4]]}},
        {"dataframe_records": [{"a": 1, "b": 2}, {"b": 4, "a": 3}]},
        {"instances": [[1, 2], [3, 4]]},
        {"inputs": {"a": [1, 3], "b": [2, 4]}},
    ],
)
def test_plain_numbers_come_in_their_order(client: httpx.Client, body: dict[str, Any]) -> None:
    said = predicted(client, [[1, 2], [3, 4]], "numbers")
    assert said[0] != pytest.approx(said[1], rel=1e-3)
    assert invoke(client, body, "numbers") == pytest.approx(said, rel=1e-6)  # small requests are computed otherwise


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["x1", "x0"], "data": [[2, 1], [4, 3]]}},
        {"dataframe_records": [{"x1": 2, "x0": 1}, {"x0": 3, "x1": 4}]},
        {"inputs": {"x1": [2, 4], "x0": [1, 3]}},
    ],
)
def test_the_model_s_own_names_count_more_than_their_order(client: httpx.Client, body: dict[str, Any]) -> None:
    said = predicted(client, [[1, 2], [3, 4]], "numbers")
    assert invoke(client, body, "numbers") == pytest.approx(said, rel=1e-6)


def test_two_columns_of_one_name_are_refused(client: httpx.Client) -> None:
    body = {"dataframe_split": {"columns": ["size", "size"], "data": [[1, 2]]}}
    answer = client.post("/invocations", params={"model": "columns"}, json=body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/dataframe_split/columns")


def test_single_values_are_one_row(client: httpx.Client) -> None:
    assert invoke(client, {"inputs": RECORDS[0]}) == predicted(client, RECORDS[:1])


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, ""),
        ({"instances": DATA, "inputs": DATA}, ""),
        ({"instances": []}, "/instances"),
        ({"instances": [[1]]}, "/instances/0"),
        ({"instances": [1, 2]}, "/instances/0"),
        ({"dataframe_records": [{"size": "big"}]}, "/dataframe_records/0/size"),
        ({"dataframe_records": [{"weight": 1}]}, "/dataframe_records/0/weight"),
        ({"dataframe_split": {"columns": NAMES, "data": [[1]]}}, "/dataframe_split/data/0"),
        ({"dataframe_split": {"columns": NAMES}}, "/dataframe_split/data"),
        ({"inputs": {"size": [1, 2], "count": [1]}}, "/inputs"),
        ({"rows": DATA}, "/rows"),
    ],
)
def test_faults_are_where_they_are(client: httpx.Client, body: dict[str, Any], pointer: str) -> None:
    answer = client.post("/invocations", params={"model": "columns"}, json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer


def test_too_many_rows(client: httpx.Client) -> None:
    answer = client.post("/invocations", params={"model": "numbers"}, json={"instances": [[1, 2]] * 101})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_which_model(client: httpx.Client, tmp_path: Path) -> None:
    several = client.post("/invocations", json={"instances": DATA})
    assert (several.status_code, several.json()["detail"]) == (
        422,
        "say which model with ?model=; there are columns, numbers, pairs",
    )
    with serving(serving_app(tmp_path, invocations.router)) as other:
        assert other.post("/invocations", json={"instances": DATA}).json()["code"] == "model_not_found"
        publish(tmp_path / "models", "only", columns_model())
        assert len(other.post("/invocations", json={"instances": DATA}).json()["predictions"]) == len(DATA)


def test_ping(client: httpx.Client) -> None:
    assert client.get("/ping").status_code == 200
