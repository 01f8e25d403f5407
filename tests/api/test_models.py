"""`/models`: versions, aliases and files of what was trained."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Semaphore
from typing import Any

import httpx
import orjson
import polars as pl
import pytest
from safetensors.torch import load

from app.api import versions
from app.api.models import OpenFileResponse
from app.storage.models import ModelStore
from app.storage.version_archive import unpack_version
from tests.api.service import pointers, problem, service
from tests.samples import publish, untrained

ROWS = pl.DataFrame({"x0": [1.0, 2.0, 3.0], "x1": [0.5, 0.0, 1.0], "y": [0.5, 1.5, 2.75]})
MODEL = untrained(ROWS, network={"hidden_features": [4]})
FILES = {"model.safetensors", "config.json", "metrics.json", "history.jsonl"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    """The models of the service of this file."""
    return ModelStore(tmp_path_factory.mktemp("service") / "models")


@pytest.fixture(scope="module")
def client(store: ModelStore) -> Iterator[httpx.Client]:
    """A service with some models that the tests of this file only look at."""
    for name in ("line", "line", "line", "other"):
        publish(store, MODEL, name)
    with service(store.root.parent) as client:
        yield client


def make(store: ModelStore, name: str, num_versions: int = 1) -> None:
    for _ in range(num_versions):
        publish(store, MODEL, name)


def point(client: httpx.Client, name: str, alias: str, version: Any) -> httpx.Response:
    return client.put(f"/models/{name}/aliases/{alias}", json={"version": version})


# ---- looking


def test_a_version_says_what_it_is(client: httpx.Client) -> None:
    found = client.get("/models/line/versions/2").json()
    assert (found["model"], found["version"], found["aliases"]) == ("line", "2", [])
    assert found["num_parameters"] == 2 * 4 + 4 + 4 + 1
    assert found["num_bytes"] > 4 * found["num_parameters"]
    assert found["metrics"] == {"train_loss": 0.5}
    assert found["signature"]["task"] == "regression"
    assert [column["name"] for column in found["signature"]["inputs"]] == ["x0", "x1"]
    assert found["spec"] == MODEL.spec.model_dump(mode="json")
    assert set(found["files"]) == FILES
    assert found["created_at"] == "1970-01-01T00:00:00Z"
    assert found["job_id"] == "job-line-2"


def test_a_model_shows_its_newest_version(client: httpx.Client) -> None:
    found = client.get("/models/line").json()
    assert (found["name"], found["versions"], found["aliases"]) == ("line", ["1", "2", "3"], {})
    assert found["newest"] == client.get("/models/line/versions/3").json()


def test_models_come_in_pages(client: httpx.Client) -> None:
    whole = client.get("/models").json()
    assert [model["name"] for model in whole["data"]] == ["line", "other"]
    assert whole["next"] is None
    first = client.get("/models", params={"limit": 1}).json()
    assert ([model["name"] for model in first["data"]], first["next"]) == (["line"], "line")
    second = client.get("/models", params={"limit": 1, "after": first["next"]}).json()
    assert ([model["name"] for model in second["data"]], second["next"]) == (["other"], None)


def test_versions_come_in_pages_newest_first(client: httpx.Client) -> None:
    seen, after = [], None
    while True:
        page = client.get("/models/line/versions", params={"limit": 2} | ({"after": after} if after else {})).json()
        seen += [version["version"] for version in page["data"]]
        after = page["next"]
        if after is None:
            break
    assert seen == ["3", "2", "1"]


@pytest.mark.parametrize("path", ["/models", "/models/line/versions"])
@pytest.mark.parametrize("limit", ["0", "201", "-1", "many", "1.5", ""])
def test_limits_have_limits(client: httpx.Client, path: str, limit: str) -> None:
    assert pointers(client.get(path, params={"limit": limit})) == ["?limit"]


@pytest.mark.parametrize("after", ["x", "-1", "1e3", "²", "9" * 5000])
def test_a_cursor_that_was_never_given(client: httpx.Client, after: str) -> None:
    answer = client.get("/models/line/versions", params={"after": after})
    assert answer.status_code == 422, answer.text
    problem(answer, 422, answer.json()["code"])
    assert client.get("/models", params={"after": after}).status_code == 200


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/models/nowhere", "model_not_found"),
        ("/models/nowhere/versions", "model_not_found"),
        ("/models/nowhere/versions/1", "model_not_found"),
        ("/models/line/versions/9", "version_not_found"),
        ("/models/line/versions/best", "version_not_found"),
        ("/models/line/versions/1/files/weights.bin", "file_not_found"),
        ("/models/line/versions/1/files/..%2F..%2Fother%2F1%2Fconfig.json", "not_found"),
        ("/models/line/versions/..%2F..%2Fother%2F1/files/config.json", "not_found"),
        ("/models/line/versions/%2e%2e", "version_not_found"),
    ],
)
def test_what_is_not_there(client: httpx.Client, path: str, code: str) -> None:
    problem(client.get(path), 404, code)


@pytest.mark.parametrize("name", ["Line", ".staging", "a%20b", "x" * 65])
def test_what_is_no_name(client: httpx.Client, name: str) -> None:
    assert pointers(client.get(f"/models/{name}")) == ["?name"]


# ---- files


@pytest.mark.parametrize(
    ("headers", "status", "content"), [({}, 200, b"0123456789"), ({"Range": "bytes=5-7"}, 206, b"567")]
)
def test_a_file_that_is_deleted_before_it_is_sent_is_whole(
    tmp_path: Path, headers: dict[str, str], status: int, content: bytes
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"0123456789")
    file = path.open("rb")
    answer = OpenFileResponse(file)
    path.unlink()

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(answer), base_url="http://test") as asking:
            return await asking.get("/", headers=headers)

    got = asyncio.run(ask())
    assert (got.status_code, got.content) == (status, content)
    assert got.headers["content-disposition"] == 'attachment; filename="config.json"'
    assert file.closed


def test_files_are_those_that_were_published(client: httpx.Client) -> None:
    files = client.get("/models/line/versions/1").json()["files"]
    contents = {name: client.get(path) for name, path in files.items()}
    assert {answer.status_code for answer in contents.values()} == {200}
    tensors = load(contents["model.safetensors"].content)
    assert tensors["network.layers.0.weight"].shape == (4, 2)
    assert tensors["network.layers.0.weight"].isfinite().all()
    assert orjson.loads(contents["metrics.json"].content) == client.get("/models/line/versions/1").json()["metrics"]
    assert "pickle" not in contents["model.safetensors"].headers["content-type"]
    assert 'filename="config.json"' in contents["config.json"].headers["content-disposition"]


def test_a_part_of_a_file(client: httpx.Client) -> None:
    path = "/models/line/versions/1/files/model.safetensors"
    whole = client.get(path).content
    part = client.get(path, headers={"Range": "bytes=8-15"})
    assert (part.status_code, part.content) == (206, whole[8:16])
    for wrong in ("bytes=99999999-", "bytes=9-8", "lines=1-2"):
        answer = client.get(path, headers={"Range": wrong})
        assert f"{len(whole)} bytes" in problem(answer, 416, "no_such_range")["detail"]
        assert answer.headers["content-range"] == f"bytes */{len(whole)}"


# ---- uploads


def test_few_archives_are_read_at_once(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = client.get("/models/line/versions/1/archive").content
    turns, readers = Barrier(versions.MAX_READERS), Semaphore(versions.MAX_READERS)

    def read(*arguments: Any) -> None:
        assert readers.acquire(blocking=False)
        turns.wait(20)
        unpack_version(*arguments)
        readers.release()

    monkeypatch.setattr(versions, "unpack_version", read)
    with ThreadPoolExecutor() as threads:
        answers = threads.map(lambda _: client.post("/models/uploaded/versions", content=archive), range(6))
    assert {answer.status_code for answer in answers} == {201}
    assert client.delete("/models/uploaded").status_code == 204


# ---- aliases


def test_aliases_come_and_go(client: httpx.Client, store: ModelStore) -> None:
    make(store, "alias", 2)
    answer = point(client, "alias", "champion", "1")
    assert (answer.status_code, answer.json()) == (200, {"model": "alias", "alias": "champion", "version": "1"})
    assert client.get("/models/alias/versions/champion").json()["version"] == "1"
    assert client.get("/models/alias/versions/1").json()["aliases"] == ["champion"]
    assert client.get("/models/alias").json()["aliases"] == {"champion": "1"}
    assert point(client, "alias", "champion", "2").status_code == 200
    assert client.get("/models/alias/versions/champion").json()["version"] == "2"
    assert client.get("/models/alias/versions/champion/files/config.json").status_code == 200
    answer = client.delete("/models/alias/aliases/champion")
    assert (answer.status_code, answer.content) == (204, b"")
    problem(client.delete("/models/alias/aliases/champion"), 404, "alias_not_found")
    problem(client.get("/models/alias/versions/champion"), 404, "version_not_found")


def test_aliases_point_to_what_is_there(client: httpx.Client) -> None:
    problem(point(client, "line", "champion", "9"), 404, "version_not_found")
    problem(point(client, "nowhere", "champion", "1"), 404, "model_not_found")
    assert pointers(point(client, "line", "champion", 1)) == ["/version"]
    assert pointers(point(client, "line", "Champion!", "1")) == ["?alias"]
    assert "number" in problem(point(client, "line", "7", "1"), 422, "invalid_input")["detail"]
    assert client.get("/models/line").json()["aliases"] == {}


# ---- deleting


def test_a_version_with_an_alias_stays(client: httpx.Client, store: ModelStore) -> None:
    make(store, "gone", 2)
    point(client, "gone", "champion", "1")
    for path in ("/models/gone", "/models/gone/versions/1", "/models/gone/versions/champion"):
        assert "champion" in problem(client.delete(path), 409, "conflict")["detail"]
    assert client.delete("/models/gone/versions/2").status_code == 204
    assert client.get("/models/gone").json()["versions"] == ["1"]
    client.delete("/models/gone/aliases/champion")
    assert client.delete("/models/gone").status_code == 204
    problem(client.get("/models/gone"), 404, "model_not_found")
    problem(client.delete("/models/gone"), 404, "model_not_found")
    assert "gone" not in [model["name"] for model in client.get("/models").json()["data"]]


def test_a_deleted_version_answers_no_more_and_its_number_is_not_used_again(
    client: httpx.Client, store: ModelStore
) -> None:
    make(store, "again", 2)
    body = {"model": "again", "version": "2", "inputs": [[1, 2]]}
    assert client.post("/predict", json=body).status_code == 200
    assert client.delete("/models/again/versions/2").status_code == 204
    problem(client.post("/predict", json=body), 404, "version_not_found")
    assert client.post("/predict", json={"model": "again", "inputs": [[1, 2]]}).json()["version"] == "1"
    make(store, "again")
    assert client.get("/models/again").json()["versions"] == ["1", "3"]


# ---- damage


@pytest.fixture
def published(tmp_path: Path) -> ModelStore:
    """Two versions of `m` and one of `n`."""
    store = ModelStore(tmp_path / "models")
    make(store, "m", 2)
    make(store, "n")
    return store


def test_a_damaged_version_is_refused_and_others_serve_on(tmp_path: Path, published: ModelStore) -> None:
    path = published.root / "m" / "2" / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with service(tmp_path) as client:
        body = {"model": "m", "inputs": [[1, 2]]}
        asked = client.post("/predict", json=body | {"version": "2"})
        assert "version 2" in problem(asked, 503, "corrupt_version")["detail"]
        assert client.post("/predict", json=body).json()["version"] == "1"
        assert client.post("/predict", json=body | {"version": "1"}).status_code == 200
        problem(client.post("/v2/repository/models/m/load"), 503, "corrupt_version")
        assert client.get("/v2/models/m/ready").json()["ready"]
        assert client.get("/v2/models/m/versions/2/ready").status_code == 503
        assert 'gradserve_load_failures_total{model="m",version="2"} 1' in client.get("/metrics").text
        path.write_bytes(content)
        assert client.post("/predict", json=body).json()["version"] == "2"


def test_a_version_that_can_not_be_read_hides_no_other(tmp_path: Path, published: ModelStore) -> None:
    with service(tmp_path) as client:
        (published.root / "m" / "2" / "config.json").write_bytes(b"{")
        found = client.get("/models").json()["data"]
        assert [(model["name"], model["newest"]["version"]) for model in found] == [("m", "1"), ("n", "1")]
        assert client.get("/models/m").json()["versions"] == ["1", "2"]
        assert [version["version"] for version in client.get("/models/m/versions").json()["data"]] == ["1"]
        assert client.get("/v2/models/m").json()["versions"] == ["1", "2"]
        problem(client.get("/models/m/versions/2"), 503, "corrupt_version")
        (published.root / "m" / "1" / "config.json").write_bytes(b"")
        assert [model["name"] for model in client.get("/models").json()["data"]] == ["n"]
        problem(client.get("/models/m"), 503, "corrupt_version")
