"""Both clients against a running service."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from app.client import AsyncClient, BadRequest, JobFailed, NotFound, arrays
from scripts.service import Service
from tests.clients import KINDS, client_of
from tests.published import COLUMNS, FEATURES, NUMBERS, columns_model, numbers_model, publish
from tests.samples import untrained

ROWS = NUMBERS.select("x0", "x1")
BIRDS = COLUMNS.select(FEATURES)


@pytest.fixture(scope="module", autouse=True)
def published(service: Service) -> None:
    models = service.root / "models"
    publish(models, "clients-numbers", numbers_model())
    publish(models, "clients-birds", columns_model())
    publish(models, "clients-pair", columns_model(["y", "z"]))
    publish(models, "clients-flags", columns_model(["wet", "cold"], task="multilabel"))
    ranks = NUMBERS.with_columns(y=pl.Series(row % 3 + 1 for row in range(NUMBERS.height)))
    publish(models, "clients-ranks", untrained(ranks, data={"positional": True}, task="multiclass"))


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, service: Service) -> Iterator[Any]:
    with client_of(request.param, service.url) as client:
        yield client


# ---- predictions


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"])
def test_arrays_of_any_number(client: Any, dtype: str) -> None:
    rows = np.array([[1, 0], [0, 1], [1, 1]], dtype)
    answer = client.predict("clients-numbers", rows)
    said = client.predict("clients-numbers", rows.astype("f8").tolist())
    assert answer.keys() == said.keys() == {"model", "version", "predictions"}
    assert isinstance(answer["predictions"], np.ndarray)
    assert answer["predictions"].tolist() == pytest.approx(said["predictions"], rel=1e-6)


def test_other_libraries_arrays_and_gaps(client: Any) -> None:
    rows = np.array([[0.5, 1.0, 3.0], [2.0, 3.0, 4.0]])
    said = client.predict("clients-numbers", rows[:, ::2].tolist())["predictions"]
    for same in (rows[:, ::2], torch.from_numpy(rows)[:, ::2], np.asfortranarray(rows[:, ::2])):
        assert client.predict("clients-numbers", same)["predictions"].tolist() == pytest.approx(said)
    with pytest.raises(BadRequest, match=r"takes the shape \[-1, 2\]"):
        client.predict("clients-numbers", rows)
    with pytest.raises(BadRequest, match="takes the shape"):
        client.predict("clients-numbers", np.zeros((0, 2)))


def test_a_classifier_s_arrays(client: Any) -> None:
    rows = ROWS.to_numpy()
    answer, said = client.predict("clients-ranks", rows), client.predict("clients-ranks", rows.tolist())
    assert answer.keys() == said.keys()
    assert answer["classes"] == said["classes"] == [1, 2, 3]
    assert answer["predictions"].tolist() == said["predictions"]
    np.testing.assert_allclose(answer["probabilities"], said["probabilities"], rtol=1e-6)
    answer["probabilities"] *= 100  # they are the caller's own
    np.testing.assert_allclose(answer["probabilities"].sum(1), 100)


def test_an_array_of_many_rows_goes_in_parts(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = client.predict("clients-ranks", ROWS.to_numpy())
    monkeypatch.setattr(arrays, "ROWS_PER_REQUEST", 7)
    parts = client.predict("clients-ranks", ROWS.to_numpy())
    assert parts["predictions"].tolist() == whole["predictions"].tolist()
    np.testing.assert_allclose(parts["probabilities"], whole["probabilities"], rtol=1e-5)
    assert parts["version"] == "1"


def expected(client: Any, model: str, rows: pl.DataFrame) -> pl.DataFrame:
    """What a frame's answer has to be, by the answer in JSON."""
    said = client.predict(model, rows.to_dicts())
    values = np.array(said["predictions"])
    targets = [column["name"] for column in client.model(model, "1")["signature"]["targets"]]
    names = ["prediction"] if values.ndim == 1 else [f"prediction_{name}" for name in targets]
    columns = {name: values.reshape(len(rows), -1)[:, place].tolist() for place, name in enumerate(names)}
    for place, name in enumerate(said.get("classes", ())):
        columns[f"probability_{name}"] = np.array(said["probabilities"])[:, place].tolist()
    return pl.DataFrame(columns)


@pytest.mark.parametrize("model", ["clients-birds", "clients-pair", "clients-flags"])
def test_frames_of_polars(client: Any, model: str) -> None:
    answer = client.predict(model, BIRDS)
    assert_frame_equal(answer, expected(client, model, BIRDS), rel_tol=1e-5)
    words = BIRDS.with_columns(pl.col("color").cast(pl.Categorical))
    assert_frame_equal(client.predict(model, words.lazy()), answer, rel_tol=1e-6)


@pytest.mark.parametrize("model", ["clients-birds", "clients-pair", "clients-flags"])
def test_frames_of_pandas(client: Any, model: str) -> None:
    pandas = pytest.importorskip("pandas")
    rows = pandas.DataFrame(BIRDS.to_dict(as_series=False), index=range(100, 100 + len(BIRDS)))
    answer = client.predict(model, rows)
    assert answer.index.tolist() == rows.index.tolist()
    same = expected(client, model, BIRDS)
    assert_frame_equal(pl.DataFrame(answer.to_dict("list")), same, rel_tol=1e-5)
    kinds = {"count": "Int64", "kept": "boolean", "color": "category"}
    pandas.testing.assert_frame_equal(client.predict(model, rows.astype(kinds)), answer)


def test_a_frame_of_many_parts(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = client.predict("clients-birds", BIRDS)
    monkeypatch.setattr("app.client.frames.CELLS_AT_ONCE", 28)
    assert_frame_equal(client.predict("clients-birds", BIRDS), whole, rel_tol=1e-5)


def test_tables_stream_through(client: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    BIRDS.write_csv(file)
    same = client.predict("clients-birds", BIRDS)
    for source in (file, file.read_bytes(), iter([file.read_bytes()[:50], b"", file.read_bytes()[50:]])):
        answer = b"".join(client.predict_table("clients-birds", source, "text/csv", version="1"))
        assert_frame_equal(pl.read_csv(answer), same, rel_tol=1e-5)
    said = b"".join(client.predict_table("clients-birds", file, "text/csv", accept="application/json"))
    assert b'"predictions":[' in said
    with pytest.raises(NotFound, match="no model 'nope'"):
        list(client.predict_table("nope", file, "text/csv"))


# ---- from a frame to a model, and on to another service


def test_train_follow_and_look_around(client: Any) -> None:
    name = f"clients-{type(client).__name__.lower()}"
    stored = client.upload_dataset(name, COLUMNS)
    assert (stored["num_rows"], len(stored["columns"])) == (COLUMNS.height, COLUMNS.width)
    assert client.dataset_rows(name, 2) == COLUMNS.head(2).to_dicts()
    assert name in [dataset["name"] for dataset in client.datasets()]
    data = {"dataset": name, "target": "species", "features": list(FEATURES)}
    assert client.dry_run(model=name, data=data)["num_parameters"] > 0
    seen: list[str] = []
    job = client.train(
        model=name, data=data, stop={"max_epochs": 3}, on_event=lambda event: seen.append(event.type),
        idempotency_key=name,
    )  # fmt: skip
    assert (job["state"], job["model"], job["version"]) == ("succeeded", name, "1")
    assert seen.count("metrics") == 3
    assert seen[-1] == "state"
    assert client.submit(model=name, data=data, stop={"max_epochs": 3}, idempotency_key=name)["id"] == job["id"]
    assert [row["epoch"] for row in client.history(job["id"])] == [1, 2, 3]
    assert client.wait(job["id"]) == job
    assert client.evaluate(name, {"records": COLUMNS, "target": "species"})["num_rows"] == COLUMNS.height

    client.set_alias(name, "champion", "1")
    assert client.predict(name, BIRDS.to_dicts(), version="champion")["version"] == "1"
    assert client.model(name, "champion")["aliases"] == ["champion"]
    client.delete_alias(name, "champion")
    assert [version["version"] for version in client.versions(name)] == ["1"]
    client.delete_model(name, "1")
    with pytest.raises(NotFound):
        client.model(name)
    client.delete_job(job["id"])
    client.delete_dataset(name)


def test_a_canary_by_routing_key(client: Any, tmp_path: Path) -> None:
    """Whatever form the rows have, and however many parts they go in."""
    name = f"clients-canary-{type(client).__name__.lower()}"
    client.download_version("clients-numbers", "1", tmp_path / "numbers.tar")
    for _ in range(2):
        client.upload_version(name, tmp_path / "numbers.tar")
    canary = {"version": "2", "percent": 50}
    said = {"model": name, "alias": "live", "version": "1", "canary": canary}
    assert client.set_alias(name, "live", "1", canary=canary) == said == client.alias(name, "live")
    keys = [f"user-{number}" for number in range(30)]
    drawn = [client.predict(name, [[1, 2]], "live", routing_key=key)["version"] for key in keys]
    assert set(drawn) == {"1", "2"}
    assert [client.predict(name, np.ones((1, 2)), "live", routing_key=key)["version"] for key in keys] == drawn
    counts = {version: num_requests(client, name, version) for version in "12"}
    client.predict(name, ROWS, "live", routing_key=keys[drawn.index("1")])
    assert {version: num_requests(client, name, version) for version in "12"} == counts | {"1": counts["1"] + 1}
    client.set_alias(name, "live", "1", shadow={"version": "2"})
    assert client.alias(name, "live")["shadow"] == {"version": "2", "percent": 100}


def num_requests(client: Any, name: str, version: str) -> int:
    found = httpx.get(f"{client.base_url}/v2/models/{name}/versions/{version}/stats").json()
    return int(found["model_stats"][0]["inference_stats"]["success"]["count"])


def test_a_run_that_fails(client: Any) -> None:
    with pytest.raises(JobFailed) as failed:
        client.train(
            model="clients-diverged", data={"inputs": [[1e30], [2e30]], "targets": [1.0, 1e30]}, features=None,
            optimizer={"type": "sgd", "learning_rate": 1e6}, loss={"type": "mse"},
        )  # fmt: skip
    assert failed.value.job["state"] == "failed"
    assert failed.value.code == failed.value.job["error"]["code"]


def test_versions_travel(client: Any, tmp_path: Path) -> None:
    name = f"clients-moved-{type(client).__name__.lower()}"
    client.download_version("clients-birds", "1", tmp_path / "birds.tar")
    client.upload_version(name, tmp_path / "birds.tar")
    folder = tmp_path / "folder"
    folder.mkdir()
    for file in client.model("clients-birds", "1")["files"]:
        client.download("clients-birds", "1", file, folder / file)
    assert client.upload_version(name, folder)["version"] == "2"
    assert client.upload_version(name, (tmp_path / "birds.tar").read_bytes())["version"] == "3"
    whole = client.predict("clients-birds", BIRDS)
    for version in "123":
        assert_frame_equal(client.predict(name, BIRDS, version), whole)
    (folder / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(BadRequest) as refused:
        client.upload_version(name, folder)
    assert refused.value.code == "digest_mismatch"
    client.export("clients-birds", "1", tmp_path / "birds.onnx")
    outputs = onnxruntime.InferenceSession(tmp_path / "birds.onnx").get_outputs()
    assert [output.name for output in outputs] == ["predictions", "probabilities"]
    with pytest.raises(NotFound):
        client.export("clients-birds", "9", tmp_path / "none.onnx")
    assert not list(tmp_path.glob("none*"))


def test_many_coroutines_at_once(service: Service) -> None:
    """Each has its own answer, as near as float32 gets: a prediction near 0 is what is left of numbers around 4."""

    async def ask() -> list[float]:
        async with AsyncClient(service.url) as client:
            rows = ROWS.to_numpy()
            answers = await asyncio.gather(
                *(client.predict("clients-numbers", rows[row : row + 1]) for row in range(60))
            )
            return [answer["predictions"].item() for answer in answers]

    with client_of("sync", service.url) as client:
        expected = np.array(client.predict("clients-numbers", ROWS.rows())["predictions"])
    found = np.array(asyncio.run(ask()))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=4 * np.finfo(np.float32).eps)
    np.testing.assert_array_equal(np.abs(found[:, None] - expected).argmin(axis=1), np.arange(len(expected)))
