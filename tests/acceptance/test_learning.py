"""What a user gets from one curl and defaults only, on data that they did not train on."""

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest
from sklearn import datasets as sklearn_datasets

from app.api.examples import SEED
from scripts.service import Service

ROOT = Path(__file__).parents[2]


def curl(*arguments: str) -> Any:
    run = subprocess.run(["curl", "-sS", *arguments], capture_output=True, check=True, timeout=120)
    return json.loads(run.stdout)


def test_ten_points_with_one_curl(service: Service) -> None:
    """y = Wx + b: normal weight, zero bias, plain gradient descent on all ten points, 1 000 steps at 0.01."""
    job = curl("--json", json.dumps(SEED), "-H", "Prefer: wait=60", f"{service.url}/train")
    assert job["state"] == "succeeded"
    assert job["stop_reason"] == "max_steps"
    assert job["progress"]["step"] == 1000
    inputs = SEED["data"]["inputs"]
    answer = curl("--json", json.dumps({"model": SEED["model"], "inputs": inputs}), f"{service.url}/predict")
    assert answer["predictions"] == pytest.approx(SEED["data"]["targets"], abs=0.05)


def penguins() -> pl.DataFrame:
    return pl.read_csv(ROOT / "examples" / "penguins.csv", null_values="NA")


def from_sklearn(name: str) -> pl.DataFrame:
    bunch = getattr(sklearn_datasets, f"load_{name}")()
    columns = {str(column): bunch.data[:, index] for index, column in enumerate(bunch.feature_names)}
    return pl.DataFrame(columns | {"target": bunch.target})


@pytest.mark.parametrize(
    ("name", "table", "target", "metric", "least"),
    [
        ("penguins", penguins, "species", "accuracy", 0.97),
        ("digits", lambda: from_sklearn("digits"), "target", "accuracy", 0.96),
        ("diabetes", lambda: from_sklearn("diabetes"), "target", "r2", 0.40),
    ],
)
def test_defaults_do_well(service: Service, name: str, table: Any, target: str, metric: str, least: float) -> None:
    """The mean over three splits, each with a fifth of the rows held out from the service."""
    frame, scores = table(), []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(frame.height)
        held_out, known = frame[order[: frame.height // 5]], frame[order[frame.height // 5 :]]
        upload(service, f"{name}-train", known)
        upload(service, f"{name}-test", held_out)
        body = {"model": name, "data": {"dataset": f"{name}-train", "target": target}}
        job = httpx.post(f"{service.url}/train", json=body, headers={"Prefer": "wait=60"}, timeout=90).json()
        assert job["state"] == "succeeded", job
        answer = httpx.post(
            f"{service.url}/evaluate", json={"model": name, "data": {"dataset": f"{name}-test", "target": target}}
        ).json()
        assert answer["num_rows"] == held_out.height
        scores.append(answer["metrics"][metric])
    assert np.mean(scores) >= least, scores


@pytest.mark.parametrize("words", [("no", "yes"), ("false", "true"), ("0", "1")])
def test_labels_come_back_as_they_were_written(service: Service, words: tuple[str, str]) -> None:
    rows = "".join(f"{x},{words[x > 20]}\n" for x in range(40))
    httpx.put(f"{service.url}/datasets/answers", content=f"x,answer\n{rows}").raise_for_status()
    body = {"model": "answers", "data": {"dataset": "answers", "target": "answer"}}
    httpx.post(f"{service.url}/train", json=body, headers={"Prefer": "wait=60"}, timeout=90).raise_for_status()
    answer = httpx.post(f"{service.url}/predict", json={"model": "answers", "inputs": [{"x": 0}, {"x": 39}]}).json()
    typed = {"no": ["no", "yes"], "false": [False, True], "0": [0, 1]}[words[0]]
    assert (answer["predictions"], answer["classes"]) == (typed, typed)


def test_digits_as_images(service: Service) -> None:
    """A small convolutional net on 1 × 8 × 8 images."""
    frame = from_sklearn("digits")
    order = np.random.default_rng(0).permutation(frame.height)
    upload(service, "images-train", frame[order[360:]])
    upload(service, "images-test", frame[order[:360]])
    block = [{"type": "batch_norm"}, {"type": "relu"}]
    layers = [
        {"type": "conv2d", "out_channels": 32}, *block,
        {"type": "conv2d", "out_channels": 32}, *block, {"type": "max_pool2d"},
        {"type": "conv2d", "out_channels": 64}, *block, {"type": "max_pool2d"},
        {"type": "flatten"}, {"type": "dropout", "p": 0.3},
    ]  # fmt: skip
    network = {"input_shape": [1, 8, 8], "layers": layers}
    body = {
        "model": "images",
        "data": {"dataset": "images-train", "target": "target"},
        "network": network,
        "stop": {"max_epochs": 15},
    }
    job = httpx.post(f"{service.url}/train", json=body, headers={"Prefer": "wait=60"}, timeout=90).json()
    assert job["state"] == "succeeded", job
    test = {"model": "images", "data": {"dataset": "images-test", "target": "target"}}
    answer = httpx.post(f"{service.url}/evaluate", json=test, timeout=30).json()
    assert answer["metrics"]["accuracy"] >= 0.98


def upload(service: Service, name: str, frame: pl.DataFrame) -> None:
    answer = httpx.put(f"{service.url}/datasets/{name}", content=frame.write_csv().encode())
    assert answer.status_code in (200, 201), answer.text
