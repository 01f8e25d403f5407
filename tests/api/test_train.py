"""`POST /train`: every form of a body, and what a client is told."""

import gzip
import json
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load

from app.api.examples import RECORDS, SEED
from tests.api.service import finished, pointers, problem, service, train

QUICK: dict[str, Any] = {"network": {"hidden_features": [4]}, "stop": {"max_epochs": 2}}
NUMBERS = {"inputs": [[i, i % 3] for i in range(20)], "targets": [i * 0.5 for i in range(20)]}
ENDLESS: dict[str, Any] = {"model": "endless", "data": NUMBERS, "stop": {"max_seconds": 600}}


def body(name: str = "quick", **fields: Any) -> dict[str, Any]:
    return {"model": name, "data": NUMBERS, **QUICK, **fields}


def dry_run(client: httpx.Client, spec: Any) -> dict[str, Any]:
    answer = client.post("/train", params={"dry_run": "true"}, json=spec)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


# ---- the job


def test_a_job_is_accepted_and_succeeds(client: httpx.Client) -> None:
    answer = client.post("/train", json=body())
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/jobs/{job['id']}" == job["links"]["self"]
    assert job["state"] in ("queued", "running")
    assert (job["terminal"], job["model"], job["version"], job["error"]) == (False, "quick", None, None)
    job = finished(client, job["id"])
    assert (job["state"], job["terminal"], job["stop_reason"]) == ("succeeded", True, "max_epochs")
    assert set(job["metrics"]) == {"train_loss", "val_loss", "val_mae", "val_rmse", "val_r2", "best_epoch"}
    assert (job["progress"]["epoch"], job["progress"]["num_epochs"], job["progress"]["fraction"]) == (2, 2, 1.0)
    assert datetime.fromisoformat(job["created_at"]) <= datetime.fromisoformat(job["started_at"])
    assert datetime.fromisoformat(job["started_at"]) <= datetime.fromisoformat(job["finished_at"])
    version = client.get(job["links"]["model"]).json()
    assert (version["job_id"], version["metrics"]) == (job["id"], job["metrics"])
    assert datetime.fromisoformat(job["started_at"]) <= datetime.fromisoformat(version["created_at"])
    assert [row["epoch"] for row in client.get(job["links"]["history"]).json()["data"]] == [1, 2]
    types = [event["type"] for event in client.get(job["links"]["events"]).json()["data"]]
    assert types.count("metrics") == 2
    assert types[0] == types[-1] == "state"


@pytest.mark.parametrize("prefer", ["wait=60", "respond-async, wait=60", "Wait = 60"])
def test_a_client_can_wait_for_the_end(client: httpx.Client, prefer: str) -> None:
    answer = client.post("/train", json=body(), headers={"Prefer": prefer})
    assert answer.status_code == 200
    assert answer.json()["state"] == "succeeded"
    assert answer.headers["location"] == answer.json()["links"]["self"]


@pytest.mark.parametrize(
    "prefer", ["", "wait", "wait=", "wait=-1", "wait=ten", "wait=1e3", "return=minimal", "wait=0", b"wait=\xb2"]
)
def test_other_preferences_are_ignored(client: httpx.Client, prefer: str | bytes) -> None:
    answer = client.post("/train", json=body(), headers={"Prefer": prefer})
    assert answer.status_code == 202
    finished(client, answer.json()["id"])


def test_a_wait_that_is_too_short_is_answered_202(client: httpx.Client) -> None:
    answer = client.post("/train", json=ENDLESS, headers={"Prefer": "wait=1"})
    assert answer.status_code == 202
    assert client.post(f"/jobs/{answer.json()['id']}/cancel").status_code == 202
    assert finished(client, answer.json()["id"])["state"] == "cancelled"


def test_versions_are_counted(client: httpx.Client) -> None:
    assert [train(client, body("counted"))["version"] for _ in range(3)] == ["1", "2", "3"]


def test_the_same_spec_gives_the_same_model(client: httpx.Client) -> None:
    spec = body("twice", network={"hidden_features": [4], "dropout": 0.5})
    one, other = train(client, spec), train(client, spec)
    assert one["metrics"] == other["metrics"]
    files = [client.get(f"/models/twice/versions/{v}/files/model.safetensors").content for v in ("1", "2")]
    assert files[0] == files[1]


def test_a_run_that_diverges_fails_with_a_sentence(client: httpx.Client) -> None:
    spec = body(optimizer={"type": "sgd", "learning_rate": 1e6}, stop={"max_epochs": 500}, features=None)
    answer = client.post("/train", json=spec, headers={"Prefer": "wait=60"})
    assert answer.status_code == 200
    job = answer.json()
    assert (job["state"], job["version"], job["error"]["code"]) == ("failed", None, "diverged")
    assert "learning_rate" in job["error"]["detail"]


def test_what_was_assumed_is_said(client: httpx.Client) -> None:
    data = {"inputs": [[i] for i in range(60)], "targets": [i % 4 for i in range(60)]}
    assert any("classes" in warning for warning in train(client, body(data=data))["warnings"])
    assert train(client, body(data=data, task="multiclass", validation=None))["warnings"] == []


# ---- dry run


def test_a_dry_run_tells_and_queues_nothing(client: httpx.Client) -> None:
    before = client.get("/jobs").json()["data"]
    found = dry_run(client, body("never"))
    assert set(found) == {"spec", "num_parameters", "memory_bytes", "seconds_per_epoch", "warnings"}
    assert found["num_parameters"] == 2 * 4 + 4 + 4 * 1 + 1
    assert found["memory_bytes"] > 0
    assert found["seconds_per_epoch"] > 0
    assert client.get("/jobs").json()["data"] == before
    problem(client.get("/models/never"), 404, "model_not_found")


@pytest.mark.parametrize(
    ("spec", "engine"),
    [
        ({"stop": {"max_steps": 1_000}}, "eager"),
        ({"stop": {"max_steps": 10**7}}, "auto"),  # the run will measure
        ({"stop": {"max_steps": 10**7}, "precision": "bfloat16"}, "eager"),
        ({"stop": {"max_steps": 10}, "engine": "compiled"}, "compiled"),
        ({"stop": {"max_steps": 10**7}, "engine": "eager"}, "eager"),
    ],
)
def test_the_engine_of_a_dry_run(client: httpx.Client, spec: dict[str, Any], engine: str) -> None:
    assert dry_run(client, SEED | spec)["spec"]["engine"] == engine


def test_what_would_not_fit_is_refused_with_the_figure(client: httpx.Client) -> None:
    before = client.get("/jobs").json()["data"]
    attention = {"type": "transformer_encoder", "num_heads": 64, "dropout": 0.1, "num_layers": 8}
    layers = [{"type": "embedding", "num_embeddings": 2, "embedding_features": 64}, attention, {"type": "last_place"}]
    far = {"inputs": [[0] * 4096] * 10, "targets": list(range(10))}
    spec = {"model": "far", "data": far, "network": {"layers": layers, "input_shape": [4096]}}
    for query in ("", "?dry_run=true"):
        found = problem(client.post(f"/train{query}", json=spec), 413, "would_not_fit")
        needed, there = map(float, re.findall(r"([\d.]+) GiB", found["detail"]))
        assert needed > 300
        assert needed > there
    assert client.get("/jobs").json()["data"] == before


def test_a_resolved_spec_is_a_request_again(client: httpx.Client) -> None:
    for spec in (SEED, RECORDS, body(), body(stop={"patience": 3}, descent={"variant": "stochastic"})):
        resolved = dry_run(client, spec)["spec"]
        again = dry_run(client, resolved)
        assert again["spec"] == resolved
        assert again["warnings"] == []


def test_a_finished_job_can_be_run_again_from_its_spec(client: httpx.Client) -> None:
    job = train(client, RECORDS | QUICK)
    again = train(client, job["spec"])
    assert again["spec"] == job["spec"]
    assert again["metrics"] == job["metrics"]


# ---- idempotency


def test_a_key_makes_one_job_of_two_requests(client: httpx.Client) -> None:
    headers = {"Idempotency-Key": "the same"}
    first = client.post("/train", json=body(), headers=headers)
    again = client.post("/train", json=body(), headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    other = client.post("/train", json=body(seed=1), headers=headers)
    assert "the same" in problem(other, 422, "idempotency_key_reused")["detail"]
    assert finished(client, first.json()["id"])["state"] == "succeeded"
    late = client.post("/train", json=body(), headers=headers | {"Prefer": "wait=60"})
    assert (late.status_code, late.json()["id"]) == (200, first.json()["id"])
    assert client.post("/train", json=body(), headers={"Idempotency-Key": "another"}).json()["id"] != late.json()["id"]


# ---- data


@pytest.mark.parametrize(
    ("columns", "leak"),
    [
        ({"sort": list("abc") * 20, "kind": ["x", "y", "z"] * 20, "n": list(range(60))}, "sort"),
        ({"number": [0, 1, 2] * 20, "kind": ["x", "y", None] * 20, "n": [0, 1] * 30}, None),
        ({"number": [0, 1, 2, 0] * 15, "kind": ["x", "y", "z", "y"] * 15}, None),
        ({"number": [0, 1] * 24, "kind": ["x", "y"] * 24}, None),
        ({"copy": [i / 4 for i in range(60)], "n": [-i / 4 for i in range(60)], "kind": [i / 4 for i in range(60)]},
         "copy"),
    ],
)  # fmt: skip
def test_a_column_that_is_the_target_under_another_name_is_warned_of(
    client: httpx.Client, columns: dict[str, list[Any]], leak: str | None
) -> None:
    data = {"records": pl.DataFrame(columns).to_dicts(), "target": "kind"}
    warnings = train(client, body("leak", data=data, validation=None))["warnings"]
    said = f"column {leak!r} tells 'kind' exactly: name it in data.ignored_columns, unless it will be known"
    assert [warning.startswith(said) for warning in warnings if "exactly" in warning] == ([True] if leak else [])


@pytest.mark.parametrize("asked", [{}, {"validation": {"fraction": 0.1}}, {"validation": {"folds": 5}}])
def test_a_default_validation_by_few_rows_is_warned_of(client: httpx.Client, asked: dict[str, Any]) -> None:
    told = dry_run(client, body(data={"inputs": [[i % 7] for i in range(60)], "targets": list(range(60))}) | asked)
    said = "6 of 60 rows are held out for validation, too few to go by much"
    assert [warning.startswith(said) for warning in told["warnings"]] == [True] * (not asked)


EVEN = {"inputs": [[i % 7] for i in range(100)], "targets": ["yes" if i % 2 else "no" for i in range(100)]}
RARE = {"inputs": [[i % 7] for i in range(100)], "targets": ["yes" if i % 10 == 5 else "no" for i in range(100)]}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"validation": {"fraction": 0.5}}, "the model takes all validation rows for 'no', so that its accuracy is "
         "only the share of these: try descent.sampling class_balanced, which lets rare labels count, or more epochs "
         "or another optimizer.learning_rate"),
        ({"validation": {"folds": 2}}, "the model takes all validation rows for 'no'"),
        ({"validation": {"fraction": 0.5}, "loss": {"type": "auto", "class_weight": {"no": 9}}},
         "the model takes all validation rows for 'no', so that its accuracy is only the share of these: try more"),
        ({"validation": {"fraction": 0.5}, "data": EVEN},
         "the model takes all validation rows for 'no', so that its accuracy is only the share of these: try more"),
    ],
)  # fmt: skip
def test_a_model_that_says_one_label_of_all_rows_is_warned_of(
    client: httpx.Client, fields: dict[str, Any], told: str
) -> None:
    (warning,) = train(client, body("rare", **{"data": RARE, **fields}))["warnings"]
    assert warning.startswith(told)


def test_a_model_that_tells_labels_apart_is_not_warned_of(client: httpx.Client) -> None:
    """Nor one that misses the only rows of a label that there are to judge by."""
    told_apart = RARE | {"inputs": [[i % 10 == 5] for i in range(100)]}
    optimizer = {"type": "adam", "learning_rate": 0.1}
    for data, fraction in ((told_apart, 0.5), (RARE, 0.1)):
        assert (
            train(client, body("rare", data=data, validation={"fraction": fraction}, optimizer=optimizer))["warnings"]
            == []
        )


@pytest.mark.parametrize(("rate", "is_told"), [(1e-9, True), (0.01, False)])
@pytest.mark.parametrize("validation", [{"fraction": 0.5}, {"folds": 2}])
def test_a_regression_that_has_learnt_nothing_is_warned_of(
    client: httpx.Client, rate: float, is_told: bool, validation: dict[str, Any]
) -> None:
    data = {"inputs": [[i] for i in range(100)], "targets": [i * 0.5 for i in range(100)]}
    optimizer = {"type": "adam", "learning_rate": rate}
    spec = body("flat", data=data, validation=validation, optimizer=optimizer, stop={"max_epochs": 15})
    said = "on the validation rows the model is no better than the mean of the target (r2 "
    warnings = train(client, spec)["warnings"]
    assert [warning for warning in warnings if warning.startswith(said)] == warnings
    assert bool(warnings) is is_told


def test_text_labels(client: httpx.Client) -> None:
    data = {"inputs": [[i] for i in range(30)], "targets": ["abc"[i % 3] for i in range(30)]}
    job = train(client, body("abc", data=data))
    assert job["spec"]["task"] == "multiclass"
    assert client.get("/models/abc").json()["newest"]["signature"]["classes"] == ["a", "b", "c"]


def test_several_targets(client: httpx.Client) -> None:
    data = {"inputs": [[i] for i in range(20)], "targets": [[i * 0.5, -i / 3] for i in range(20)]}
    job = train(client, body("two-targets", data=data))
    assert job["spec"]["data"]["target"] == ["y0", "y1"]


def test_weights_and_gaps(client: httpx.Client) -> None:
    data = {
        "inputs": [[None if i == 3 else i, i % 2 == 0] for i in range(20)],
        "targets": [i * 0.5 for i in range(20)],
        "sample_weight": [i % 3 for i in range(20)],
    }
    assert train(client, body(data=data))["spec"]["data"]["sample_weight"] == "sample_weight"


def test_a_dataset_and_another_to_judge_by(client: httpx.Client) -> None:
    csv = "size,color,price\n" + "".join(f"{i},{['red', 'blue'][i % 2]},{i * 1.5}\n" for i in range(40))
    assert client.put("/datasets/cars", content=csv).status_code == 201
    assert client.put("/datasets/more-cars", content=csv).status_code == 201
    data = {"dataset": "cars", "target": "price"}
    job = train(client, body("cars", data=data, validation={"dataset": "more-cars"}))
    assert job["spec"]["data"]["features"] == ["size", "color"]
    assert job["spec"]["data"]["digest"] == client.get("/datasets/cars").json()["digest"]
    assert "val_r2" in job["metrics"]
    said = "the validation dataset is the table that is learnt from: its metrics say nothing of rows that are new"
    assert said in job["warnings"], "as both are the same bytes"
    assert client.put("/datasets/more-cars", content=f"{csv}40,red,60\n").status_code == 200
    again = train(client, body("cars", data=data, validation={"dataset": "more-cars"}))
    assert said not in again["warnings"]


@pytest.mark.parametrize(
    ("columns", "detail"),
    [
        ({"colour": ["red"]}, "in the validation dataset there is no column 'color'; did you mean 'colour'?"),
        (
            {"color": ["red"], "size": ["1 m"]},
            "'size' is categorical in the validation dataset, and numeric in the table that is learnt from",
        ),
        (
            {"color": ["red"], "price": ["cheap"]},
            "'price' is categorical in the validation dataset, and numeric in the table that is learnt from",
        ),
        ({"color": ["red"], "price": [""]}, "'price' is empty in the validation dataset"),
        (
            {"color": ["red"], "sold": ["never"]},
            "'sold' is categorical in the validation dataset, and datetime in the table that is learnt from",
        ),
    ],
)
def test_a_dataset_to_judge_by_has_columns_that_fit(
    client: httpx.Client, columns: dict[str, list[str]], detail: str
) -> None:
    cars = pl.DataFrame({"size": [1, 2], "color": ["red", "blue"], "sold": ["2026-01-01", None], "price": [3, 4]})
    other = cars.drop("color").head(1).with_columns(**{name: pl.Series(values) for name, values in columns.items()})
    client.put("/datasets/cars", content=cars.write_csv()).raise_for_status()
    client.put("/datasets/other-cars", content=other.write_csv()).raise_for_status()
    spec = body("cars", data={"dataset": "cars", "target": "price"}, validation={"dataset": "other-cars"})
    answer = client.post("/train", json=spec)
    assert answer.status_code == 422
    assert answer.json()["errors"] == [{"pointer": "/validation", "detail": detail}]


@pytest.mark.parametrize("features", [None, {"missing": "error"}, {"missing": "impute"}])
def test_a_dataset_to_judge_by_has_gaps_only_where_they_may_be(
    client: httpx.Client, features: dict[str, str] | None
) -> None:
    client.put("/datasets/whole", content="x,y\n1,2\n2,4\n3,6\n").raise_for_status()
    client.put("/datasets/gaps", content="x,y\n1,2\n,4\n,\n").raise_for_status()
    spec = body("gaps", data={"dataset": "whole", "target": "y"}, validation={"dataset": "gaps"}, features=features)
    if features == {"missing": "impute"}:
        assert "val_r2" in train(client, spec)["metrics"]
        return
    answer = client.post("/train", json=spec)
    assert pointers(answer) == ["/validation"]
    assert "'x' has 1 missing value in the validation dataset; impute" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("learnt", "judged", "detail"),
    [
        (["1", "0"], ["true", "false"], "the label true in the validation dataset, and in the table that is learnt "
         "from only 1, 0: write labels alike in both, and leave out rows of any other"),
        (["true", "false"], ["1", "0"], "the label 1 in the validation dataset, and in the table"),
        (["yes", "no"], ["yes", "maybe"], "the label maybe in the validation dataset, and in the table"),
        (["yes", "no"], ["1", "0"], "the label 1 in the validation dataset, and in the table"),
    ],
)  # fmt: skip
def test_a_dataset_to_judge_by_has_labels_that_are_learnt(
    client: httpx.Client, learnt: list[str], judged: list[str], detail: str
) -> None:
    for name, labels in (("learnt", learnt), ("judged", judged)):
        rows = [f"{number},{label}" for number, label in enumerate(labels * 10)]
        client.put(f"/datasets/{name}", content="\n".join(["x,y", *rows])).raise_for_status()
    spec = body("flags", data={"dataset": "learnt", "target": "y"}, validation={"dataset": "judged"})
    answer = client.post("/train", json=spec)
    assert pointers(answer) == ["/validation"]
    assert detail in answer.json()["detail"]


@pytest.mark.parametrize(
    ("learnt", "read"),
    [
        (["True", "False", "unknown"], ["True", "False"]),
        (["007", "10", "x"], ["007", "10"]),
        (["1.10", "1.2", "2.0.1"], ["1.10", "1.2"]),
        (["1", "20", "3.5", "x"], ["1", "20", "3.5"]),
        (["9007199254740992", "9007199254740993", "x"], ["9007199254740992", "9007199254740993"]),
    ],
)
def test_categories_of_which_a_file_has_only_numbers_or_flags_are_those_that_were_learnt(
    client: httpx.Client, learnt: list[str], read: list[str]
) -> None:
    for name, words in (("words", learnt), ("read", read)):
        rows = [f"{word},{learnt.index(word)}" for word in words * 20]
        client.put(f"/datasets/{name}", content="\n".join(["k,y", *rows])).raise_for_status()
    data, judged = {"dataset": "words", "target": "y"}, {"dataset": "read"}
    learns = {"stop": {"max_epochs": 60}, "task": "regression", "optimizer": {"type": "adam", "learning_rate": 0.03}}
    job = train(client, body("words", data=data, validation=judged, **learns))
    evaluated = client.post("/evaluate", json={"model": "words", "data": data | judged}).json()
    assert job["metrics"]["val_mae"] == pytest.approx(evaluated["metrics"]["mae"])
    assert evaluated["metrics"]["mae"] < 0.1


def test_categories_that_read_alike_are_told(client: httpx.Client) -> None:
    client.put("/datasets/words", content="k,y\n" + "1.1,1\n1.10,2\nx,3\n" * 8).raise_for_status()
    client.put("/datasets/read", content="k,y\n" + "1.1,1\n" * 8).raise_for_status()
    data, judged = {"dataset": "words", "target": "y"}, {"dataset": "read"}
    train(client, body("words", data=data))
    told = "column 'k' was learnt as text and was read as numbers or flags here, by which '1.1' and '1.10' are the same"
    evaluated = client.post("/evaluate", json={"model": "words", "data": data | judged})
    assert pointers(evaluated) == ["/data"]
    assert told in evaluated.json()["detail"]
    answer = client.post("/train", json=body("judged", data=data, validation=judged))
    assert told in finished(client, answer.json()["id"])["error"]["detail"]


def test_a_dataset_to_judge_by_has_flags_for_labels_of_which_each_row_has_any_number(client: httpx.Client) -> None:
    for name, flag in (("learnt", 1), ("judged", 3)):
        client.put(f"/datasets/{name}", content=f"x,p,q\n1,{flag},0\n2,0,1\n3,{flag},1\n").raise_for_status()
    spec = body("flags", data={"dataset": "learnt", "target": ["p", "q"]}, validation={"dataset": "judged"})
    answer = client.post("/train", json=spec)
    assert pointers(answer) == ["/validation"]
    assert "'p' must hold only 0/1 or true/false" in answer.json()["detail"]


@pytest.mark.parametrize("judged", [["2", "2.0"], ["a", "b"]])
def test_labels_that_are_written_otherwise_or_are_too_many_to_list_are_not_refused(
    client: httpx.Client, judged: list[str]
) -> None:
    learnt = ["1", "2", "3"] if judged[0] == "2" else list("cdefghab")
    for name, labels in (("many", learnt), ("some", judged)):
        rows = [f"{number},{label}" for number, label in enumerate(labels * 10)]
        client.put(f"/datasets/{name}", content="\n".join(["x,y", *rows])).raise_for_status()
    data = {"dataset": "many", "target": "y"}
    train(client, body("many", data=data, validation={"dataset": "some"}, stop={"max_epochs": 1}))


def test_a_dataset_to_judge_by_may_have_other_words_flags_and_empty_columns(client: httpx.Client) -> None:
    cars = pl.DataFrame({"size": [1, 2], "color": ["red", "blue"], "new": [True, False], "price": [3, 4]})
    other = pl.DataFrame({"new": [7], "color": [5], "size": [None], "price": [2.5]})
    client.put("/datasets/cars", content=cars.write_csv()).raise_for_status()
    client.put("/datasets/other-cars", content=other.write_csv()).raise_for_status()
    data, stop = {"dataset": "cars", "target": "price"}, {"max_epochs": 1}
    train(client, body("cars", data=data, validation={"dataset": "other-cars"}, stop=stop, task="regression"))


def test_tags_and_a_description_are_kept(client: httpx.Client) -> None:
    job = train(client, body("tagged", tags={"team": "birds"}, description="the first try ✓"))
    assert (job["spec"]["tags"], job["spec"]["description"]) == ({"team": "birds"}, "the first try ✓")
    assert client.get("/models/tagged").json()["newest"]["spec"]["tags"] == {"team": "birds"}


def test_a_cross_validated_model_is_a_model(client: httpx.Client) -> None:
    job = train(client, body("folded", validation={"folds": 3}))
    assert len(job["metrics"]["folds"]) == 3
    assert "val_loss_std" in job["metrics"]
    newest = client.get("/models/folded").json()["newest"]
    assert newest["metrics"] == job["metrics"]
    assert client.get("/models").status_code == 200
    assert client.get("/models/folded/versions").status_code == 200


@pytest.mark.parametrize("num_rows", [2, 3, 4, 5])
def test_few_rows_can_be_cross_validated(client: httpx.Client, num_rows: int) -> None:
    data = {"inputs": [[i] for i in range(num_rows)], "targets": [i + 0.5 for i in range(num_rows)]}
    job = train(client, body("few", data=data, validation={"folds": 2}))
    assert len(job["metrics"]["folds"]) == 2


@pytest.mark.parametrize("num_rows", [1, 2, 3])
def test_very_few_rows_are_enough(client: httpx.Client, num_rows: int) -> None:
    data = {"inputs": [[i] for i in range(num_rows)], "targets": [i + 0.5 for i in range(num_rows)]}
    train(client, body("few", data=data))


def test_going_on_from_a_models_weights(client: httpx.Client) -> None:
    spec = body("warm", validation=None, stop={"max_epochs": 30})
    first = train(client, spec)
    again = train(client, spec | {"warm_start": {"model": "warm"}, "stop": {"max_epochs": 1}})
    assert again["spec"]["warm_start"] == {"model": "warm", "version": "1"}
    assert again["metrics"]["train_loss"] < first["metrics"]["train_loss"] * 1.05


def month(name: str, rows: list[list[Any]], target: str = "y", **fields: Any) -> dict[str, Any]:
    records = [dict(zip(("x", "p", "q", "y"), row, strict=True)) for row in rows * 10]
    return body(name, data={"records": records, "target": target, "features": ["x", "p"]}, validation=None, **fields)


def predicted(client: httpx.Client, model: str, rows: list[list[Any]]) -> Any:
    answer = client.post("/predict", json={"model": model, "inputs": rows}).raise_for_status().json()
    return {name: value for name, value in answer.items() if name != "model"}


LAST_MONTH = [["a", 1, 2.5, "no"], ["b", None, 0.5, "yes"], ["a", 3, 1.5, "no"]]
NEXT_MONTH = [["b", 7, 12.5, "no"], ["new", None, 10.5, "yes"], ["a", 5, 11.5, "yes"]]


@pytest.mark.parametrize("target", ["y", "q"])
def test_a_run_begins_with_what_the_version_predicts(client: httpx.Client, target: str) -> None:
    """On rows of other scales and with words that are new; what is left out of the spec is the version's."""
    more: dict[str, Any] = {"network": {"hidden_features": [5]}, "features": {"categorical": "one_hot"}}
    train(client, month(f"from-{target}", LAST_MONTH, target, **more))
    spec = month(f"to-{target}", NEXT_MONTH, target, optimizer={"type": "sgd", "learning_rate": 1e-30})
    del spec["network"]
    after = train(client, {**spec, "warm_start": {"model": f"from-{target}"}})
    assert after["spec"]["features"]["categorical"] == "one_hot"
    assert len(after["spec"]["network"]["layers"]) == 3
    rows = [[None, 1e3], *(row[:2] for row in [*LAST_MONTH, *NEXT_MONTH])]
    assert predicted(client, f"to-{target}", rows) == predicted(client, f"from-{target}", rows)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (LAST_MONTH, []),
        ([["b", 1, 2, "no"], ["a", None, 2, "yes"], ["b", None, 3, "no"]], []),
        (NEXT_MONTH, ["warm_start: categories of 'x' that are new to the version share one place: 'new'"]),
    ],
)
def test_categories_that_a_version_does_not_know_are_told(
    client: httpx.Client, rows: list[list[Any]], told: list[str]
) -> None:
    train(client, month("known", LAST_MONTH))
    assert train(client, month("news", rows, warm_start={"model": "known"}))["warnings"] == told


def test_columns_that_are_left_out_are_the_version_s(client: httpx.Client) -> None:
    """Next month's table has them in another order, and one that is new."""
    first = month("columns", LAST_MONTH)
    del first["data"]["features"]
    before = train(client, first)
    news = [{"z": 1, **dict(reversed(row.items()))} for row in first["data"]["records"]]
    spec = first | {"data": {"records": news, "target": "y"}, "warm_start": {"model": "columns"}}
    again = train(client, spec)
    assert before["spec"]["data"]["features"] == again["spec"]["data"]["features"] == ["x", "p", "q"]
    assert again["warnings"] == ["warm_start: columns that are new to the version are left out: z"]
    assert train(client, spec | {"data": spec["data"] | {"ignored_columns": ["z"]}})["warnings"] == []
    for row in news:
        row["P"] = row.pop("p")
    answer = client.post("/train", json=spec)
    assert problem(answer, 422, "unknown_column")["errors"][0]["pointer"] == "/warm_start"
    assert "takes 'p': there is no column 'p'" in answer.json()["detail"]
    for row in news:
        row["p"] = str(row.pop("P"))
    answer = client.post("/train", json=spec)
    assert pointers(answer) == ["/warm_start"]
    assert "takes 'p' as numeric; here it is categorical" in answer.json()["detail"]


def test_gaps_that_a_version_did_not_have_are_told(client: httpx.Client) -> None:
    train(client, month("whole", [["a", 1, 2, "no"], ["b", 2, 2, "yes"]]))
    found = train(client, month("gaps", LAST_MONTH, warm_start={"model": "whole"}))
    assert found["warnings"] == [
        "warm_start: 'p' has gaps, which it had not for the version; they are taken for its mean"
    ]


def test_a_label_that_a_version_does_not_know_is_refused(client: httpx.Client) -> None:
    train(client, month("yes-or-no", LAST_MONTH))
    rows = [["a", 1, 2, "yes"], ["b", 2, 2, "never"]]
    answer = client.post("/train", json=month("others", rows, warm_start={"model": "yes-or-no"}))
    assert pointers(answer) == ["/warm_start"]
    assert "'y' has the label 'never', and version 1 of 'yes-or-no' knows 2: 'no', 'yes'" in answer.json()["detail"]
    assert "under another name the column is learnt anew" in answer.json()["detail"]


def test_a_label_that_a_version_does_not_know_and_the_profile_does_not_show_fails_the_run(
    client: httpx.Client,
) -> None:
    labels = [f"label {number}" for number in range(10)]
    train(client, month("many", [["a", 1, 2, label] for label in labels]))
    rows = [["a", 1, 2, label] for label in [*labels[:9], "never"]]
    answer = client.post("/train", json=month("others", rows, warm_start={"model": "many"}))
    job = finished(client, answer.json()["id"])
    assert (job["state"], job["error"]["code"]) == ("failed", "bad_data")
    assert "the label 'never' is none of the 10 classes" in job["error"]["detail"]


def test_a_number_that_a_version_does_not_know_is_refused_wherever_it_stands(client: httpx.Client) -> None:
    train(client, month("ten-digits", [["a", 1, 2, digit] for digit in range(10)], task="multiclass"))
    rows = [["a", 1, 2, digit] for digit in [*range(9), 12]]
    answer = client.post("/train", json=month("ten-digits", rows, warm_start={"model": "ten-digits"}))
    assert pointers(answer) == ["/warm_start"]
    assert "'y' has the label 12, and version 1 of 'ten-digits' knows 10: 0, 1" in answer.json()["detail"]


def test_rows_that_are_left_out_may_have_any_label_and_any_gap(client: httpx.Client) -> None:
    client.put("/datasets/learnt", content="x,w,y\n1,1,a\n2,1,b\n3,1,a\n4,1,b\n").raise_for_status()
    client.put("/datasets/others", content="x,w,y\n1,1,a\n,,c\n3,1,b\n").raise_for_status()
    more = {"features": {"missing": "error"}, "task": "binary"}
    data = {"dataset": "learnt", "target": "y", "sample_weight": "w"}
    train(client, body("kept", data=data, validation={"dataset": "others"}, **more))
    again = body("again", data=data | {"dataset": "others"}, validation=None, warm_start={"model": "kept"})
    client.put("/datasets/others", content="x,w,y\n1,1,a\n2,,c\n3,1,b\n").raise_for_status()
    assert "1 of 3 rows" in str(train(client, again)["warnings"])


@pytest.mark.parametrize(("weights", "held"), [([1, -0.5, 2], "begins at -0.5"), ([0, 0, 0], "is 0 in all rows")])
def test_weights_are_not_negative_nor_all_nothing(client: httpx.Client, weights: list[float], held: str) -> None:
    rows = [{"x": number, "w": weight, "y": number} for number, weight in enumerate(weights)]
    data = {"records": rows, "target": "y", "sample_weight": "w"}
    answer = client.post("/train", json=body("weights", data=data))
    assert pointers(answer) == ["/data/sample_weight"]
    assert answer.json()["detail"] == f"weights are not negative, nor 0 in all rows, and 'w' {held}"


@pytest.mark.parametrize("seen", [["a", "b"], ["c"]])
def test_a_run_that_goes_on_may_lack_classes_of_its_version(client: httpx.Client, seen: list[str]) -> None:
    def spec(labels: list[str], **more: Any) -> dict[str, Any]:
        return month("some", [["u", number, 0, label] for number, label in enumerate(labels)], **more)

    loss = {"type": "cross_entropy", "label_smoothing": 0.1}
    train(client, spec(["a", "b", "c"], loss=loss))
    after = train(client, spec(seen, warm_start={"model": "some"}))
    assert (after["spec"]["task"], after["spec"]["loss"]["label_smoothing"]) == ("multiclass", 0.1)
    assert predicted(client, "some", [["u", 1]])["classes"] == ["a", "b", "c"]
    answer = client.post("/train", json=spec(["a", "b", "c", "d"], warm_start={"model": "some"}))
    assert pointers(answer) == ["/warm_start"]
    assert "'y' has 4 labels, and version" in answer.json()["detail"]


def test_a_run_that_goes_on_learns_the_task_of_its_version_by_its_loss(client: httpx.Client) -> None:
    """Though whole numbers that recur would be classes, in a table of their own."""
    train(client, month("rates", [["u", 1, 2.5, ""], ["v", 2, 0.5, ""]], "q", loss={"type": "poisson_nll"}))
    again = train(client, month("rates", [["u", 1, 2, ""], ["v", 2, 1, ""]], "q", warm_start={"model": "rates"}))
    assert (again["spec"]["task"], again["spec"]["loss"]["type"]) == ("regression", "poisson_nll")
    other = month("rates", [["u", 1, 2, ""], ["v", 2, 1, ""]], "q", warm_start={"model": "rates"}, loss={"type": "mse"})
    assert train(client, other)["spec"]["loss"]["type"] == "mse"


def test_another_target_has_its_own_scale(client: httpx.Client) -> None:
    train(client, month("of-q", LAST_MONTH, "q"))
    spec = month("of-r", [[x, p, 1000 + q, y] for x, p, q, y in LAST_MONTH], "q", warm_start={"model": "of-q"})
    spec["data"]["records"] = [{**row, "r": row.pop("q")} for row in spec["data"]["records"]]
    spec["data"]["target"] = "r"
    train(client, spec)
    assert predicted(client, "of-r", [["a", 1]])["predictions"][0] > 900


@pytest.mark.parametrize("network", [{}, {"network": {"hidden_features": [5]}}])
def test_a_target_of_other_outputs_has_a_new_output_layer(client: httpx.Client, network: dict[str, Any]) -> None:
    """All else is the version's; with the rest frozen, the new layer alone is learnt."""
    first = train(client, month("numbers", LAST_MONTH, "q", network={"hidden_features": [5]}))
    spec = month("words", LAST_MONTH, warm_start={"model": "numbers"}, loss={"type": "cross_entropy"})
    del spec["network"]
    spec |= network | {"freeze": ["input", "layers.0"], "optimizer": {"type": "adam", "learning_rate": 0.1}}
    job = train(client, spec | {"stop": {"max_epochs": 40}})
    whence = f"version {first['version']} of 'numbers'"
    told = f"warm_start: the output layer is a new one, as that of {whence} is of another target, task or loss"
    assert told in job["warnings"]
    assert job["spec"]["network"]["layers"][-1]["out_features"] == 2
    assert job["metrics"]["train_loss"] < 0.3
    before, after = _weights(client, first), _weights(client, job)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"network.layers.2.weight", "network.layers.2.bias", "targets.mean", "targets.std"}
    assert predicted(client, "words", [row[:2] for row in LAST_MONTH])["predictions"] == ["no", "yes", "no"]
    again = job["spec"] | {"freeze": [], "validation": {"folds": 3}, "stop": {"max_epochs": 2}}
    assert len(train(client, again)["metrics"]["folds"]) == 3
    assert pointers(client.post("/train", json=spec | {"freeze": ["layers.2"]})) == ["/freeze"]


def test_another_target_of_as_many_outputs_has_a_new_output_layer_as_well(client: httpx.Client) -> None:
    """What its numbers stood for says nothing of these."""
    spec = month("colours", LAST_MONTH, network={"hidden_features": [5]}, stop={"max_epochs": 30})
    begun = {"model": "colours", "version": train(client, spec)["version"]}
    rows = [{**row, "z": {"no": "red", "yes": "blue"}[row.pop("y")]} for row in spec["data"]["records"]]
    other = {**spec, "data": spec["data"] | {"records": rows, "target": "z"}, "warm_start": begun}
    other |= {"optimizer": {"type": "sgd", "learning_rate": 1e-30}, "stop": {"max_epochs": 1}}
    job = train(client, other)
    assert "the output layer is a new one" in str(job["warnings"])
    assert job["metrics"]["train_loss"] == pytest.approx(0.6931, abs=1e-3)
    assert pointers(client.post("/train", json=other | {"freeze": ["layers.2.weight"]})) == ["/freeze"]


def test_targets_in_another_order_are_those_of_the_version(client: httpx.Client) -> None:
    rows = [{"x": x, "one": x % 3 + 0.5, "two": 10.0 * x} for x in range(60)]
    data: dict[str, Any] = {"records": rows, "target": ["one", "two"]}
    first = train(client, body("both", data=data, validation=None, stop={"max_epochs": 40}))
    still = {"optimizer": {"type": "sgd", "learning_rate": 1e-30}, "warm_start": {"model": "both"}}
    again = train(client, body("both", data=data | {"target": ["two", "one"]}, validation=None, **still))
    assert again["spec"]["data"]["target"] == ["one", "two"]
    assert again["metrics"]["train_r2"] == pytest.approx(first["metrics"]["train_r2"], abs=1e-3)


@pytest.mark.parametrize(
    ("before", "now", "is_told"),
    [
        ({"validation": None}, {"validation": {"fraction": 0.5}}, True),
        ({"validation": {"fraction": 0.5}}, {"validation": {"folds": 2}}, True),
        ({"validation": {"fraction": 0.5}}, {"validation": {"fraction": 0.5}, "seed": 1}, True),
        ({"validation": {"fraction": 0.5}}, {"validation": {"fraction": 0.5}}, False),
        ({"validation": {"fraction": 0.5}}, {"validation": {"fraction": 0.5}, "task": "multiclass"}, True),
        ({"validation": None}, {"validation": None}, False),
        ({"validation": None}, {"validation": {"dataset": "seen"}}, True),
        ({"validation": None}, {"validation": {"dataset": "others"}}, False),
    ],
)
def test_a_version_that_has_learnt_from_what_is_held_out_is_told(
    client: httpx.Client, before: dict[str, Any], now: dict[str, Any], is_told: bool
) -> None:
    for name, shift in (("seen", 0), ("others", 1)):
        csv = "\n".join(["x,y", *(f"{x},{x % 9 + shift}.5" for x in range(50))])
        client.put(f"/datasets/{name}", content=csv).raise_for_status()
    data = {"dataset": "seen", "target": "y"}
    train(client, body("knows", data=data, **before))
    warnings = train(client, body("knows", data=data, warm_start={"model": "knows"}, **now))["warnings"]
    assert any("has learnt from rows that are held out here" in warning for warning in warnings) is is_told


def test_what_the_versions_before_have_learnt_from_is_told_as_well(client: httpx.Client) -> None:
    csv = "\n".join(["x,y", *(f"{x},{x % 9}.5" for x in range(50))])
    client.put("/datasets/all", content=csv).raise_for_status()
    spec = body("aged", data={"dataset": "all", "target": "y"}, validation={"fraction": 0.5})
    again: dict[str, Any] = {"warm_start": {"model": "aged"}}
    warnings = [train(client, spec | more)["warnings"] for more in ({"validation": None}, again, again)]
    assert ["has learnt from rows that are held out here" in str(each) for each in warnings] == [False, True, True]
    worse = {"optimizer": {"type": "adam", "learning_rate": 3.0}, "stop": {"max_epochs": 3, "restore_best": False}}
    spec |= worse | {"warm_start": {"model": "aged", "version": "2"}}
    assert "worse than the version" not in str(train(client, spec)["warnings"]), "which had seen the rows"
    client.delete("/models/aged/versions/1").raise_for_status()
    job = train(client, spec)
    assert "worse than the version" in str(job["warnings"]), "of which nothing tells that it had"


def test_a_model_that_got_worse_than_it_began_is_told(client: httpx.Client) -> None:
    data = {"inputs": [[x / 10, x % 7] for x in range(200)], "targets": [x / 5 + 0.5 for x in range(200)]}
    spec = body("better", data=data, validation={"fraction": 0.2}, optimizer={"type": "adam", "learning_rate": 0.02})
    train(client, spec | {"stop": {"max_epochs": 60}})
    for rate, is_told in ((0.5, True), (1e-5, False)):
        steps = {"optimizer": {"type": "sgd", "learning_rate": rate}, "stop": {"max_epochs": 1}}
        job = train(client, spec | steps | {"warm_start": {"model": "better", "version": "1"}})
        told = [warning for warning in job["warnings"] if "worse than the version that it began with" in warning]
        assert len(told) == is_told
        assert not told or f"val_loss is {job['metrics']['val_loss']:.4g}, and that one's is" in told[0]
    still = spec | {"optimizer": {"type": "sgd", "learning_rate": 0.1}, "validation": {"folds": 2}}
    begun = {"warm_start": {"model": "better", "version": "1"}}
    unfair = spec | steps | begun | {"optimizer": {"type": "sgd", "learning_rate": 0.5}, "seed": 1}
    for other in (still | begun, unfair):  # of which the version knows what is held out
        assert "worse than" not in str(train(client, other | {"stop": {"max_epochs": 1}})["warnings"])


def test_a_task_of_its_own_is_learnt_anew_whatever_the_name_of_the_target(client: httpx.Client) -> None:
    """Lists have targets that are all called `y`."""
    inputs = [[x, x % 5] for x in range(40)]
    train(client, body("lists", data={"inputs": inputs, "targets": [x / 3 for x in range(40)]}, validation=None))
    words = body("lists", data={"inputs": inputs, "targets": ["ab"[x % 2] for x in range(40)]}, validation=None)
    words |= {"warm_start": {"model": "lists", "version": "1"}}
    answer = client.post("/train", json=words)
    assert pointers(answer) == ["/data/target"]
    assert "learnt 'y' as numeric, and here it is categorical" in answer.json()["detail"]
    assert "with another task, or under another name, it is learnt anew" in answer.json()["detail"]
    job = train(client, words | {"task": "binary"})
    assert job["spec"]["loss"]["type"] == "binary_cross_entropy"
    assert "the output layer is a new one" in str(job["warnings"])


@pytest.mark.parametrize("labels", [["a", "b"], ["c"], ["b", "d"]])
def test_a_task_that_is_to_be_found_out_is_the_version_s(client: httpx.Client, labels: list[str]) -> None:
    """`auto` is what it is when left out."""
    known = [["u", number, 0, label] for number, label in enumerate(["a", "b", "c"])]
    train(client, month("auto", known, loss={"type": "cross_entropy", "label_smoothing": 0.1}))
    rows = [["u", number, 0, label] for number, label in enumerate(labels)]
    spec = month("auto", rows, warm_start={"model": "auto", "version": "1"}, task="auto", loss={"type": "auto"})
    if "d" in labels:
        assert pointers(client.post("/train", json=spec)) == ["/warm_start"]
        return
    job = train(client, spec)
    assert (job["spec"]["task"], job["spec"]["loss"]["label_smoothing"]) == ("multiclass", 0.1)
    assert job["warnings"] == []


def test_what_would_freeze_a_new_output_layer_is_refused(client: httpx.Client) -> None:
    train(client, month("of-q", LAST_MONTH, "q"))
    for part in ("layers", "layers.2", "layers.2.bias"):
        spec = month("of-y", LAST_MONTH, "y", warm_start={"model": "of-q"}, freeze=[part])
        assert pointers(client.post("/train", json=spec)) == ["/freeze"]


def test_a_network_without_a_linear_end_keeps_all_of_its_weights(client: httpx.Client) -> None:
    data = {"records": [{"x": x, "a": x / 2, "b": x / 3} for x in range(30)], "target": "a"}
    network = {"layers": [{"type": "linear", "out_features": 1}, {"type": "softplus"}], "head": False}
    begun = train(client, body("positive", data=data, network=network, validation=None))
    other = body("positive", data=data | {"target": "b", "features": ["x"]}, validation={"fraction": 0.5})
    del other["network"]
    data["features"] = ["x"]
    begun = train(client, body("positive", data=data, network=network, validation=None))
    other |= {"warm_start": {"model": "positive", "version": begun["version"]}}
    warnings = train(client, other)["warnings"]
    assert any("for another target, as no linear layer ends them" in warning for warning in warnings)


def test_a_target_on_another_scale_is_told(client: httpx.Client) -> None:
    train(client, month("scaled", LAST_MONTH, "q"))
    rows = [[x, p, 1000 * q, y] for x, p, q, y in LAST_MONTH]
    warnings = train(client, month("scaled", rows, "q", warm_start={"model": "scaled", "version": "1"}))["warnings"]
    assert "the mean of 'q' is 1500 here, and was 1.5 for the version" in str(warnings)
    assert "the mean of" not in str(train(client, month("scaled", LAST_MONTH, "q", warm_start={"model": "scaled"})))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"target": "b"}, "takes 'b' as an input, and here it is to be none"),
        ({"features": ["a"]}, "takes other columns: also 'b'"),
        ({"features": ["a", "b", "c"]}, "takes other columns: not 'c'"),
        ({"features": ["b", "a"]}, "takes other columns: the same in another order"),
        ({"features": ["a", "c"]}, "takes other columns: also 'b', and not 'c'"),
    ],
)
def test_columns_that_are_not_those_of_the_version_are_named(
    client: httpx.Client, data: dict[str, Any], said: str
) -> None:
    rows = [{"a": x, "b": x * 7 % 5, "c": x * 3 % 11, "y": x / 3} for x in range(20)]
    train(client, body("a-and-b", data={"records": rows, "target": "y", "ignored_columns": ["c"]}))
    spec = body("columns-differ", data={"records": rows, "target": "y"} | data, warm_start={"model": "a-and-b"})
    answer = client.post("/train", json=spec)
    assert pointers(answer) == ["/warm_start"]
    assert said in answer.json()["detail"]


def test_a_run_that_goes_on_may_have_the_other_loss_of_two_classes(client: httpx.Client) -> None:
    """With the classes of the version, though these rows lack one."""
    train(client, month("one-output", LAST_MONTH))
    rows = [row for row in LAST_MONTH if row[3] == "no"]
    spec = month("two-outputs", rows, warm_start={"model": "one-output"}, loss={"type": "cross_entropy"})
    assert "the output layer is a new one" in str(train(client, spec)["warnings"])
    assert predicted(client, "two-outputs", [["a", 1]])["classes"] == ["no", "yes"]


def _weights(client: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    path = f"/models/{job['model']}/versions/{job['version']}/files/model.safetensors"
    return load(client.get(path).raise_for_status().content)


@pytest.mark.parametrize(
    "other",
    [
        {"network": {"hidden_features": [5]}},
        {"data": {"inputs": [[1], [2]], "targets": [1.5, 2.5]}},
        {"data": {"records": [{"x0": "a", "x1": "b", "y": 1.5}, {"x0": "b", "x1": "c", "y": 2.5}], "target": "y"}},
        {"features": {"standardize": False}},
    ],
)
def test_weights_that_do_not_fit_are_refused(client: httpx.Client, other: dict[str, Any]) -> None:
    train(client, body("cold"))
    answer = client.post("/train", json=body("cold", warm_start={"model": "cold"}) | other)
    assert pointers(answer) == ["/features" if "features" in other else "/warm_start"]


def test_a_model_to_go_on_from_must_be_there(client: httpx.Client) -> None:
    answer = client.post("/train", json=body(warm_start={"model": "nowhere"}))
    problem(answer, 404, "model_not_found")


# ---- what is refused


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_a_body_must_be_said_to_be_json(client: httpx.Client, content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    answer = client.post("/train", content=json.dumps(SEED), headers=headers)
    detail = problem(answer, 415, "unsupported_media_type")["detail"]
    assert "--json" in detail
    assert "text/csv" not in detail
    answer = client.post("/predict?model=line", content="x0\n1\n", headers=headers)
    assert "tables come as text/csv, " in problem(answer, 415, "unsupported_media_type")["detail"]


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON", "application/ld+json"])
def test_json_has_many_names(client: httpx.Client, content_type: str) -> None:
    answer = client.post("/train?dry_run=1", content=json.dumps(SEED).encode(), headers={"Content-Type": content_type})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"{'model': 'm'}",
        b'{"seed": NaN}',
        b'{"seed": Infinity}',
        b'{"seed": 1e400}',
        b'{"seed": 01}',
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b"\x00",
        gzip.compress(b"{}"),
    ],
)
def test_what_is_no_json_is_not_parseable(client: httpx.Client, content: bytes) -> None:
    answer = client.post("/train", content=content, headers={"Content-Type": "application/json"})
    problem(answer, 400, "unparseable")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            '{"model": "m", "data": {"inputs": [[NaN]]}}',
            "where 'NaN]]}}' stands; a value that is missing or not finite",
        ),
        ("[-Infinity]", "where 'Infinity]' stands; a value that is missing"),
        ("[None]", "where 'None]' stands; a value that is missing"),
        ("{'model': 1}", """where "'model': 1}" stands"""),
        ('{"model": "m", // its name', "where '// its name' stands"),
        ('{"model"', "unexpected end of data: line 1 column 9 (char 8)"),
        ('{"model": "m"}'.encode("utf-16"), "the body is no JSON: it is not UTF-8, which JSON must be"),
    ],
)
def test_what_is_no_json_is_shown(client: httpx.Client, content: str | bytes, said: str) -> None:
    answer = client.post("/train", content=content, headers={"Content-Type": "application/json"})
    assert said in problem(answer, 400, "unparseable")["detail"]


@pytest.mark.parametrize(
    ("spec", "pointer"),
    [
        ([], ""),
        (5, ""),
        (None, ""),
        ({}, "/model"),
        (body(data=5), "/data"),
        (body(data=None), "/data"),
        (body(data={}), "/data/target"),
        (body(data={"target": "y"}), "/data"),
        (body(model="No Such Name"), "/model"),
        (body(learning_rate=1), "/learning_rate"),
        (body(data={"inputs": [], "targets": []}), "/data/inputs"),
        (body(data={"inputs": [[]], "targets": [1]}), "/data/inputs/0"),
        (body(data={"inputs": [[1], [1, 2]], "targets": [1, 2]}), "/data/inputs/1"),
        (body(data={"inputs": [[1], ["x"]], "targets": [1, 2]}), "/data/inputs/1/0"),
        (body(data={"inputs": [[1], [2]], "targets": [1]}), "/data/targets"),
        (body(data={"inputs": [[1], [2]], "targets": [1, "a"]}), "/data/targets/1"),
        (body(data={"inputs": [[1], [2]], "targets": [1, 2], "sample_weight": [1, -1]}), "/data/sample_weight/1"),
        (body(data={"records": [], "target": "y"}), "/data/records"),
        (body(data={"records": [{"x": 1, "y": 1}, 5], "target": "y"}), "/data/records/1"),
        (body(data={"records": [{"x": 1, "y": 1}], "target": "z"}), "/data/target"),
        (body(data={"records": [{"x": 1, "y": 1}, {"x": [1], "y": 2}], "target": "y"}), "/data/records/1/x"),
        (body(network={"layers": [{"type": "conv2d", "out_channels": 3}]}), "/network/layers/0"),
        (body(loss={"type": "cross_entropy"}, task="regression"), "/loss/type"),
        (body(device="cuda:99"), "/device"),
        (body(freeze=["nothing"]), "/freeze/0"),
        (body(stop={"metric": "accuracy"}), "/stop/metric"),
        (body(validation={"folds": 21}), "/validation/folds"),
    ],
)
def test_what_is_wrong_is_told_where_it_is(client: httpx.Client, spec: Any, pointer: str) -> None:
    answer = client.post("/train", content=json.dumps(spec), headers={"Content-Type": "application/json"})
    found = answer.json()
    assert answer.status_code == 422, found
    assert found["errors"][0]["pointer"] == pointer, found
    assert found["errors"][0]["detail"]
    problem(answer, 422, found["code"])


def test_every_fault_is_told(client: httpx.Client) -> None:
    answer = client.post("/train", json={"model": "M", "data": NUMBERS, "seed": -1, "stop": {"max_epochs": 0}})
    assert set(pointers(answer)) == {"/model", "/seed", "/stop/max_epochs"}


@pytest.mark.parametrize(
    "spec",
    [
        body(data={"dataset": "nowhere", "target": "y"}),
        body(data={"digest": f"sha256:{'0' * 64}", "target": "y"}),
        body(validation={"dataset": "nowhere"}),
        body(validation={"digest": f"sha256:{'0' * 64}"}),
    ],
)
def test_a_dataset_must_be_there(client: httpx.Client, spec: Any) -> None:
    problem(client.post("/train", json=spec), 404, "dataset_not_found")


@pytest.mark.parametrize("query", ["dry_run=perhaps", "dry_run=2"])
def test_a_wrong_query_is_told(client: httpx.Client, query: str) -> None:
    assert pointers(client.post(f"/train?{query}", json=SEED)) == ["?dry_run"]


def test_a_body_of_many_nested_layers_is_answered(client: httpx.Client) -> None:
    layer: dict[str, Any] = {"type": "relu"}
    for _ in range(300):
        layer = {"type": "residual", "layers": [layer]}
    answer = client.post("/train?dry_run=1", json=body(network={"layers": [layer]}))
    assert answer.status_code in (200, 400, 422)


# ---- limits

LIMITS = {"max_rows": 10, "max_columns": 5, "max_parameters": 1000, "max_body_bytes": 2000, "max_wait_seconds": 0.1}


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with service(tmp_path_factory.mktemp("limited"), **LIMITS, max_running_jobs=1, max_queued_jobs=2) as client:
        yield client


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (body(data={"inputs": [[1]] * 11, "targets": [*range(11)]}), "10"),
        (body(data={"records": [{"x": 1, "y": 1}] * 11, "target": "y"}), "10"),
        (body(data={"inputs": [[1] * 6], "targets": [1]}), "5"),
        (body(data={"records": [dict.fromkeys("abcdef", 1)], "target": "a"}), "5"),
        (body(data={"inputs": [[1]], "targets": [1.5]}, network={"hidden_features": [1000]}), "1,000"),
        (body(description="x" * 3000), "larger"),
    ],
)
def test_what_is_too_large_is_refused(limited: httpx.Client, spec: Any, words: str) -> None:
    assert words in problem(limited.post("/train", json=spec), 413, "too_large")["detail"]


def test_a_body_without_a_length_is_bounded_too(limited: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"model": "'
        for _ in range(1000):
            yield b"x" * 1000

    headers = {"Content-Type": "application/json"}
    answer = limited.post("/train", content=chunks(), headers=headers)
    problem(answer, 413, "too_large")


def test_a_full_queue_says_when_to_come_again(limited: httpx.Client) -> None:
    few = {"inputs": [[1], [2]], "targets": [1.5, 2.5]}
    spec = {"model": "long", "data": few, "network": {"hidden_features": []}, "stop": {"max_seconds": 600}}
    answers = [limited.post("/train", json=spec, headers={"Prefer": "wait=60"}) for _ in range(6)]
    jobs = [answer.json() for answer in answers if answer.status_code == 202]
    full = [answer for answer in answers if answer.status_code != 202]
    assert full
    for answer in full:
        problem(answer, 429, "overloaded")
        assert int(answer.headers["retry-after"]) > 0
    for job in jobs:
        limited.post(f"/jobs/{job['id']}/cancel")
    assert {finished(limited, job["id"])["state"] for job in jobs} == {"cancelled"}
