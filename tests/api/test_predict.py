"""`POST /predict` and `/evaluate`: rows in, answers out, and pointers to whatever is wrong."""

import json
from typing import Any

import httpx
import pytest

from tests.api.service import pointers, problem, train

QUICK: dict[str, Any] = {"network": {"hidden_features": [4]}, "stop": {"max_epochs": 2}}
NUM_ROWS = 30
RECORDS = [
    {
        "size": None if i == 7 else i / 3,
        "color": ["red", "blue", None][i % 3],
        "sold": i % 2 == 0,
        "day": f"2026-01-{1 + i % 28:02d}",
        "weight": 1 + i % 4,
        "price": i * 0.5,
        "kind": ["low", "mid", "high"][i % 3],
    }
    for i in range(NUM_ROWS)
]
FEATURES = ["size", "color", "sold", "day"]


@pytest.fixture(scope="module", autouse=True)
def models(client: httpx.Client) -> None:
    """A model of each sort."""
    rows = [[i, i % 3] for i in range(NUM_ROWS)]
    models: dict[str, dict[str, Any]] = {
        "rows": {"inputs": rows, "targets": [i * 0.5 for i in range(NUM_ROWS)]},
        "letters": {"inputs": rows, "targets": ["abc"[i % 3] for i in range(NUM_ROWS)]},
        "numbers": {"inputs": rows, "targets": [[20, 10][i % 2] for i in range(NUM_ROWS)]},
        "flags": {"inputs": rows, "targets": [i % 2 == 0 for i in range(NUM_ROWS)]},
        "two": {"inputs": rows, "targets": [[i * 0.5, -i / 3] for i in range(NUM_ROWS)]},
        "labels": {"inputs": rows, "targets": [[i % 2, i % 3 == 0] for i in range(NUM_ROWS)]},
        "prices": {"records": RECORDS, "target": "price", "features": FEATURES},
        "kinds": {"records": RECORDS, "target": "kind", "features": FEATURES},
    }
    for name, data in models.items():
        task = {"task": "multiclass"} if name == "numbers" else {}
        train(client, {"model": name, "data": data, **QUICK, **task})
    strict = {"records": RECORDS[10:], "target": "price", "features": ["size", "weight"]}
    train(client, {"model": "strict", "data": strict, "features": None, **QUICK})
    train(client, {"model": "rows", "data": models["rows"], **QUICK, "seed": 1})
    client.put("/models/rows/aliases/champion", json={"version": "1"})


def predict(client: httpx.Client, name: str, inputs: Any, **more: Any) -> dict[str, Any]:
    answer = client.post("/predict", json={"model": name, "inputs": inputs, **more})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert found.pop("model") == name
    return found


def evaluate(client: httpx.Client, name: str, data: Any) -> httpx.Response:
    return client.post("/evaluate", json={"model": name, "data": data})


# ---- predict


def test_one_target_is_a_flat_list(client: httpx.Client) -> None:
    found = predict(client, "rows", [[1, 0], [2, 1], [3, 2]])
    assert set(found) == {"version", "predictions"}
    assert [type(value) for value in found["predictions"]] == [float] * 3


def test_several_targets_are_rows(client: httpx.Client) -> None:
    found = predict(client, "two", [[1, 0], [2, 1], [3, 2]])["predictions"]
    assert [len(row) for row in found] == [2, 2, 2]


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("letters", ["a", "b", "c"]),
        ("numbers", [10, 20]),
        ("flags", [False, True]),
        ("kinds", ["high", "low", "mid"]),
    ],
)
def test_labels_come_back_in_their_type(client: httpx.Client, name: str, classes: list[Any]) -> None:
    inputs = RECORDS[:9] if name == "kinds" else [[i, i % 3] for i in range(9)]
    found = predict(client, name, inputs)
    assert found["classes"] == classes
    assert [type(label) for label in found["classes"]] == [type(classes[0])] * len(classes)
    for label, row in zip(found["predictions"], found["probabilities"], strict=True):
        assert sum(row) == pytest.approx(1)
        assert label == classes[row.index(max(row))]
        assert type(label) is type(classes[0])


def test_several_labels_are_flags(client: httpx.Client) -> None:
    found = predict(client, "labels", [[1, 0], [2, 1]])
    assert found["classes"] == ["y0", "y1"]
    assert found["predictions"] == [[value >= 0.5 for value in row] for row in found["probabilities"]]
    assert [list(map(type, row)) for row in found["predictions"]] == [[int, bool]] * 2  # as they were given


def test_versions_and_aliases(client: httpx.Client) -> None:
    rows = [[5, 1]]
    newest, first = predict(client, "rows", rows), predict(client, "rows", rows, version="1")
    assert (newest["version"], first["version"]) == ("2", "1")
    assert newest["predictions"] != first["predictions"]
    assert predict(client, "rows", rows, version="champion") == first
    assert predict(client, "rows", rows, version=None) == newest


def test_rows_as_objects_in_any_order_and_with_gaps(client: httpx.Client) -> None:
    record = {"size": 1.5, "color": "red", "sold": True, "day": "2026-01-05"}
    expected = predict(client, "prices", [record])["predictions"]
    assert predict(client, "prices", [dict(reversed(record.items()))])["predictions"] == expected
    assert predict(client, "prices", [list(record.values())])["predictions"] == expected
    assert predict(client, "prices", [{**record, "price": 3, "weight": 1}])["predictions"] == expected
    assert predict(client, "prices", [{**record, "day": "2026-01-05T00:00:00Z"}])["predictions"] == expected
    gaps = [{}, {"size": None, "color": None, "sold": None, "day": None}, {"color": "never seen"}]
    found = predict(client, "prices", gaps)["predictions"]
    assert found[0] == found[1]
    assert all(isinstance(value, float) for value in found)


def test_a_large_request_is_answered_as_many_small_ones(client: httpx.Client) -> None:
    rows = [[i / 7, i % 5] for i in range(1000)]
    together = predict(client, "rows", rows)["predictions"]
    assert together[::100] == pytest.approx([predict(client, "rows", [row])["predictions"][0] for row in rows[::100]])


def test_numbers_beyond_all_bounds_give_null(client: httpx.Client) -> None:
    answer = client.post("/predict", json={"model": "rows", "inputs": [[1e300, 0], [1, 1]]})
    first, second = json.loads(answer.text, parse_constant=pytest.fail)["predictions"]
    assert first is None
    assert isinstance(second, float)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "nowhere", "inputs": [[1]]}, 404, "model_not_found"),
        ({"model": "rows", "version": "9", "inputs": [[1, 2]]}, 404, "version_not_found"),
        ({"model": "rows", "version": "best", "inputs": [[1, 2]]}, 404, "version_not_found"),
        ({"model": "rows", "inputs": [[1, 2]] * 1001}, 413, "too_large"),
    ],
)
def test_what_is_not_there_or_too_much(client: httpx.Client, body: Any, status: int, code: str) -> None:
    problem(client.post("/predict", json=body), status, code)


@pytest.mark.parametrize(
    ("name", "inputs", "code", "expected"),
    [
        ("rows", [], "shape_mismatch", ["/inputs"]),
        ("rows", [[1]], "shape_mismatch", ["/inputs/0"]),
        ("rows", [[1, 2], [1, 2, 3]], "shape_mismatch", ["/inputs/1"]),
        ("rows", [[1, "2"], ["x", 2]], "invalid_input", ["/inputs/1/0", "/inputs/0/1"]),
        ("rows", [[1, [2]]], "invalid_input", ["/inputs/0/1"]),
        ("rows", [{"x0": 1, "x9": 2}], "unknown_column", ["/inputs/0/x9"]),
        ("rows", 5, "invalid_input", ["/inputs"]),
        ("rows", {"x0": 1}, "invalid_input", ["/inputs"]),
        ("rows", None, "invalid_input", ["/inputs"]),
        ("prices", [{"size": "large"}], "invalid_input", ["/inputs/0/size"]),
        ("prices", [{"colour": "red"}], "unknown_column", ["/inputs/0/colour"]),
        ("prices", [{"day": 5}, {"sold": 2}], "invalid_input", ["/inputs/1/sold", "/inputs/0/day"]),
        ("strict", [[1, None]], "invalid_input", ["/inputs/0/1"]),
        ("strict", [{"size": 1}], "invalid_input", ["/inputs/0/weight"]),
    ],
)
def test_wrong_rows_are_told_where_they_are(
    client: httpx.Client, name: str, inputs: Any, code: str, expected: list[str]
) -> None:
    answer = client.post("/predict", json={"model": name, "inputs": inputs})
    assert sorted(pointers(answer, code=code)) == sorted(expected)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ([], ""),
        ({"inputs": [[1]]}, "/model"),
        ({"model": "rows"}, "/inputs"),
        ({"model": "rows", "inputs": [[1, 2]], "batch": 1}, "/batch"),
        ({"model": "../rows", "inputs": [[1, 2]]}, "/model"),
        ({"model": "rows", "inputs": [[1, 2]], "version": 1}, "/version"),
        ({"model": "rows", "inputs": [[1, 2]], "version": ""}, "/version"),
    ],
)
def test_wrong_requests(client: httpx.Client, body: Any, pointer: str) -> None:
    assert pointers(client.post("/predict", json=body)) == [pointer]


# ---- evaluate


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("rows", {"mae", "rmse", "r2"}),
        ("two", {"mae", "rmse", "r2"}),
        ("letters", {"accuracy", "f1_macro"}),
        ("flags", {"accuracy", "f1_macro", "roc_auc"}),
        ("labels", {"accuracy", "exact_match", "f1_macro"}),
    ],
)
def test_models_of_rows_are_measured(client: httpx.Client, name: str, metrics: set[str]) -> None:
    targets: dict[str, list[Any]] = {
        "rows": [1.5, 2.5, 4.0],
        "two": [[1, 2], [3, 4], [5, 7]],
        "letters": ["a", "c", "a"],
        "flags": [True, False, True],
        "labels": [[0, 1], [1, 0], [1, 1]],
    }
    answer = evaluate(client, name, {"inputs": [[1, 0], [2, 1], [3, 2]], "targets": targets[name]})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["num_rows"] == 3
    assert found["loss"] > 0
    assert set(found["metrics"]) == metrics


def test_metrics_are_those_of_the_predictions(client: httpx.Client) -> None:
    rows, targets = [[1, 0], [2, 1], [3, 2]], [1.5, 2.5, 4.0]
    predictions = predict(client, "rows", rows)["predictions"]
    found = evaluate(client, "rows", {"inputs": rows, "targets": targets}).json()
    errors = [abs(one - other) for one, other in zip(predictions, targets, strict=True)]
    assert found["metrics"]["mae"] == pytest.approx(sum(errors) / 3)


def test_records_and_datasets_are_measured_alike(client: httpx.Client) -> None:
    by_records = evaluate(client, "prices", {"records": RECORDS, "target": "price"}).json()
    lines = "\n".join(json.dumps(record) for record in RECORDS)
    assert client.put("/datasets/goods", content=lines).status_code in (200, 201)
    by_name = evaluate(client, "prices", {"dataset": "goods", "target": "price"}).json()
    assert by_name == by_records
    assert by_name["num_rows"] == NUM_ROWS


def test_targets_may_be_named_in_any_order(client: httpx.Client) -> None:
    rows, targets = [[1, 0], [2, 1]], [[1, 20], [3, 40]]
    names = ("x0", "x1", "y0", "y1")
    records = [dict(zip(names, (*row, *target), strict=True)) for row, target in zip(rows, targets, strict=True)]
    expected = evaluate(client, "two", {"inputs": rows, "targets": targets}).json()
    for target in (["y0", "y1"], ["y1", "y0"]):
        assert evaluate(client, "two", {"records": records, "target": target}).json() == expected
    assert pointers(evaluate(client, "two", {"records": records, "target": ["y0", "x0"]})) == ["/data/target"]


def test_weights_of_rows_count(client: httpx.Client) -> None:
    data = {"records": RECORDS, "target": "price"}
    plain = evaluate(client, "prices", data).json()
    weighted = evaluate(client, "prices", {**data, "sample_weight": "weight"}).json()
    assert weighted["loss"] != plain["loss"]
    also_a_feature = evaluate(client, "prices", {**data, "sample_weight": "size"})
    assert also_a_feature.status_code == 200, also_a_feature.text


def test_the_loss_is_that_of_the_validation(client: httpx.Client) -> None:
    """With all that weighs in it."""
    client.put("/datasets/held", content="\n".join(map(json.dumps, RECORDS[:13]))).raise_for_status()
    data = {"target": "kind", "features": FEATURES, "sample_weight": "weight"}
    loss = {"type": "cross_entropy", "class_weight": {"low": 5.0}, "label_smoothing": 0.1}
    spec = {"model": "weighted", "data": {"records": RECORDS, **data}, "validation": {"dataset": "held"}, "loss": loss}
    job = train(client, {**spec, **QUICK})
    found = evaluate(client, "weighted", {"dataset": "held", **data}).json()
    assert found["loss"] == pytest.approx(job["metrics"]["val_loss"], rel=1e-5)


def test_weights_are_relative_to_each_other(client: httpx.Client) -> None:
    losses = []
    for factor in (1, 1000):
        records = [{**row, "weight": factor * number} for number, row in enumerate(RECORDS)]
        answer = evaluate(client, "prices", {"records": records, "target": "price", "sample_weight": "weight"})
        losses.append(answer.json()["loss"])
    assert losses[0] == pytest.approx(losses[1])


def test_rows_that_are_left_must_have_a_weight(client: httpx.Client) -> None:
    records = [{**RECORDS[0], "weight": 0}, {**RECORDS[1], "weight": 2, "price": None}]
    answer = evaluate(client, "prices", {"records": records, "target": "price", "sample_weight": "weight"})
    assert pointers(answer) == ["/data/sample_weight"]


def test_rows_without_a_target_are_left_out(client: httpx.Client) -> None:
    records = [{**RECORDS[0], "price": None}, *RECORDS[1:4]]
    assert evaluate(client, "prices", {"records": records, "target": "price"}).json()["num_rows"] == 3
    empty = evaluate(client, "prices", {"records": [records[0]], "target": "price"})
    assert pointers(empty) == ["/data"]


def test_labels_that_read_alike_are_the_same(client: httpx.Client) -> None:
    rows = [[1, 0], [2, 1]]
    one = evaluate(client, "numbers", {"inputs": rows, "targets": [10, 20]}).json()
    assert evaluate(client, "numbers", {"inputs": rows, "targets": [10.0, 20.0]}).json() == one
    assert evaluate(client, "numbers", {"inputs": rows, "targets": ["10", "20"]}).json() == one


@pytest.mark.parametrize("sample_weight", [[1, -1], [0, 0], [1], ["a", "b"]])
def test_wrong_weights_are_refused(client: httpx.Client, sample_weight: list[Any]) -> None:
    data = {"inputs": [[1, 0], [2, 1]], "targets": [1.5, 2.5], "sample_weight": sample_weight}
    assert evaluate(client, "rows", data).status_code == 422


PRICE = {"target": "price"}


@pytest.mark.parametrize(
    ("name", "data", "pointer"),
    [
        ("rows", {"inputs": [[1]], "targets": [1]}, "/data/inputs"),
        ("rows", {"inputs": [[1, 2]], "targets": [[1, 2]]}, "/data/targets"),
        ("two", {"inputs": [[1, 2]], "targets": [1]}, "/data/targets"),
        ("rows", {"inputs": [[1, 2]], "targets": ["a"]}, "/data/targets"),
        ("rows", {"inputs": [[1, "x"]], "targets": [1]}, "/data/inputs/0/1"),
        ("letters", {"inputs": [[1, 2]], "targets": ["z"]}, "/data/targets"),
        ("letters", {"inputs": [[1, 2]], "targets": [1]}, "/data/targets"),
        ("flags", {"inputs": [[1, 2]], "targets": ["a"]}, "/data/targets"),
        ("labels", {"inputs": [[1, 2]], "targets": [[0, 7]]}, "/data/targets"),
        ("prices", {"records": RECORDS, "target": "weight"}, "/data/target"),
        ("prices", {"records": [{**RECORDS[0], "size": "large"}], **PRICE}, "/data/records/0/size"),
        ("prices", {"records": [{**RECORDS[0], "day": "someday"}], **PRICE}, "/data/records/0/day"),
        ("prices", {"records": [{**RECORDS[0], "day": 5}], **PRICE}, "/data/records/0/day"),
        ("prices", {"records": [{**RECORDS[0], "sold": "perhaps"}], **PRICE}, "/data/records/0/sold"),
        ("prices", {"records": [RECORDS[0], {**RECORDS[1], "sold": 7}], **PRICE}, "/data/records/1/sold"),
        ("prices", {"records": RECORDS, "sample_weight": "color", **PRICE}, "/data/sample_weight"),
        ("strict", {"records": [{**RECORDS[0], "size": None}], **PRICE}, "/data/records"),
        ("prices", {"records": [{**RECORDS[0], "price": "dear"}], **PRICE}, "/data/target"),
    ],
)
def test_data_that_do_not_fit_the_model(client: httpx.Client, name: str, data: Any, pointer: str) -> None:
    answer = evaluate(client, name, data)
    assert answer.status_code == 422, answer.text
    found = answer.json()
    problem(answer, 422, found["code"])
    assert [fault["pointer"] for fault in found["errors"]] == [pointer], found


def test_a_cell_that_makes_text_of_numbers_is_shown(client: httpx.Client) -> None:
    table = "size,color,sold,day,price\n" + "1.5,red,true,2026-01-31,7\n" * 3 + "?!,red,true,2026-01-31,7\n"
    assert client.put("/datasets/odd", content=table).status_code == 201
    found = problem(evaluate(client, "prices", {"dataset": "odd", **PRICE}), 422, "invalid_input")
    assert found["detail"].startswith(
        "'size' takes numbers, not text: of 4 values, all but 1 are numbers, and in row 4"
    )


@pytest.mark.parametrize(
    ("missing", "pointer"), [("size", "/data/records"), ("price", "/data/target"), ("weight", "/data/sample_weight")]
)
def test_columns_that_are_missing(client: httpx.Client, missing: str, pointer: str) -> None:
    records = [{key: value for key, value in record.items() if key != missing} for record in RECORDS]
    answer = evaluate(client, "prices", {"records": records, **PRICE, "sample_weight": "weight"})
    found = problem(answer, 422, "unknown_column")
    assert repr(missing) in found["detail"]
    assert [fault["pointer"] for fault in found["errors"]] == [pointer]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({"dataset": "nowhere", "target": "y"}, "dataset_not_found"),
        ({"digest": f"sha256:{'0' * 64}", "target": "y"}, "dataset_not_found"),
    ],
)
def test_data_that_are_not_there(client: httpx.Client, data: Any, code: str) -> None:
    problem(evaluate(client, "rows", data), 404, code)
    problem(evaluate(client, "nowhere", {"inputs": [[1]], "targets": [1]}), 404, "model_not_found")


def test_too_many_rows_to_measure(client: httpx.Client) -> None:
    data = {"inputs": [[1, 2]] * 1001, "targets": [1] * 1001}
    problem(evaluate(client, "rows", data), 413, "too_large")
