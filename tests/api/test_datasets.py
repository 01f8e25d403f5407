"""`/datasets` over real HTTP."""

import gzip
import io
import json
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import httpx
import orjson
import polars as pl
import pytest
import uvicorn
from fastapi import FastAPI

from app.api import datasets, problems
from app.api.auth import Keys
from app.storage.datasets import DatasetStore
from app.storage.formats import MEDIA_TYPES
from tests.databases import new_database
from tests.waiting import until

PENGUINS = (Path(__file__).parents[2] / "examples" / "penguins.csv").read_bytes()
CSV = b"a,b\n1,x\n2,\n"
MAX_BYTES = 2**22


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DatasetStore]:
    database = new_database(tmp_path / "gradserve.db")
    yield DatasetStore(tmp_path / "datasets", database, MAX_BYTES, max_columns=100)
    database.close()


def make_app(keys: str = "") -> FastAPI:
    app = FastAPI(max_body_size=MAX_BYTES // 2)
    problems.install(app)
    app.include_router(datasets.router, max_body_size=MAX_BYTES)
    app.state.keys = Keys(keys)

    @app.get("/healthz")
    async def healthz() -> None:
        """Answered by the event loop itself."""

    return app


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[FastAPI, str]]:
    """An app, and the address at which a thread serves it."""
    app = make_app()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        until(lambda: server.started)
        yield app, f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def url(served: tuple[FastAPI, str], store: DatasetStore) -> str:
    app, url = served
    app.state.services = SimpleNamespace(datasets=store)
    return url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=20) as client:
        yield client


def scratch(store: DatasetStore) -> list[str]:
    """What lies in the folders of uploads, which may come and go meanwhile."""
    uploads = store.root / ".uploads"
    walk = [(Path(folder), [*inner, *files]) for folder, inner, files in os.walk(uploads)]
    return [name for folder, names in walk if folder != uploads for name in names]


# ---- the way in


@pytest.mark.parametrize("content_type", [None, "application/x-www-form-urlencoded", "text/csv", "text/plain"])
def test_a_file_as_curl_sends_it(client: httpx.Client, content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    before = datetime.now(UTC)
    answer = client.put("/datasets/penguins", content=PENGUINS, headers=headers)
    assert answer.status_code == 201
    assert answer.headers["location"] == "/datasets/penguins"
    dataset = answer.json()
    assert dataset.keys() == {"name", "digest", "num_rows", "num_bytes", "columns", "created_at"}
    assert (dataset["name"], dataset["num_rows"], dataset["num_bytes"]) == ("penguins", 344, len(PENGUINS))
    assert dataset["created_at"].endswith("Z")
    assert timedelta() <= datetime.fromisoformat(dataset["created_at"]) - before < timedelta(minutes=1)
    assert dataset["columns"][0] == {
        "name": "species",
        "kind": "categorical",
        "num_missing": 0,
        "num_unique": 3,
        "integral": False,
        "min": None,
        "max": None,
        "mean": None,
        "examples": ["Adelie", "Gentoo", "Chinstrap"],
        "note": None,
    }
    assert dataset["columns"][4] == {
        "name": "flipper_length_mm",
        "kind": "numeric",
        "num_missing": 2,
        "num_unique": 55,
        "integral": True,
        "min": 172,
        "max": 231,
        "mean": pytest.approx(200.915, abs=1e-3),
        "examples": [181, 186, 195, 193, 190],
        "note": None,
    }
    assert client.get("/datasets/penguins").json() == dataset


def test_a_body_in_chunks_without_a_length(client: httpx.Client) -> None:
    packed = gzip.compress(PENGUINS)
    headers = {"Content-Type": "text/csv", "Content-Encoding": "gzip"}
    chunks = (packed[at : at + 100] for at in range(0, len(packed), 100))
    assert client.put("/datasets/p", content=chunks, headers=headers).json()["num_rows"] == 344


def encoded(kind: str) -> bytes:
    frame = pl.DataFrame({"a": [1, 2], "b": ["x", None]})
    file = io.BytesIO()
    match kind:
        case "text/csv":
            return CSV
        case "text/tab-separated-values":
            return CSV.replace(b",", b"\t")
        case "application/x-ndjson" | "application/jsonl":
            return b"".join(orjson.dumps(row) + b"\n" for row in frame.to_dicts())
        case "application/vnd.apache.parquet":
            frame.write_parquet(file)
        case "application/vnd.apache.arrow.file":
            frame.write_ipc(file)
        case "application/vnd.apache.arrow.stream":
            frame.write_ipc_stream(file)
        case _:
            return gzip.compress(CSV)
    return file.getvalue()


@pytest.mark.parametrize("content_type", MEDIA_TYPES)
def test_every_media_type(client: httpx.Client, content_type: str) -> None:
    answer = client.put("/datasets/t", content=encoded(content_type), headers={"Content-Type": content_type})
    assert answer.status_code == 201
    assert client.get("/datasets/t/rows").json() == {"data": [{"a": 1, "b": "x"}, {"a": 2, "b": None}], "next": None}


def test_every_documented_body_is_described_and_runs(client: httpx.Client) -> None:
    put = client.get("/openapi.json").json()["paths"]["/datasets/{name}"]["put"]
    content = put["requestBody"]["content"]
    assert {*MEDIA_TYPES} - {*content} == {"", "application/x-gzip", "application/x-www-form-urlencoded", "text/plain"}
    examples = {name: body["example"] for name, body in content.items() if "example" in body}
    assert len(examples) == 4
    for content_type, example in examples.items():
        answer = client.put("/datasets/e", content=example.encode(), headers={"Content-Type": content_type})
        assert str(answer.status_code) in put["responses"]
        assert answer.is_success


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_the_same_bytes_with_and_without_a_header_are_two_tables(client: httpx.Client, pack: Any) -> None:
    content, absent = pack(CSV), {"Content-Type": "text/csv; header=absent"}
    tables = [client.put("/datasets/t", content=content, headers=headers).json() for headers in ({}, absent, {})]
    assert [[column["name"] for column in table["columns"]] for table in tables] == [
        ["a", "b"],
        ["x0", "x1"],
        ["a", "b"],
    ]
    assert [table["num_rows"] for table in tables] == [2, 3, 2]
    assert tables[0]["digest"] == tables[2]["digest"] != tables[1]["digest"]


def test_replacing_answers_200(client: httpx.Client) -> None:
    assert client.put("/datasets/t", content=CSV).status_code == 201
    answer = client.put("/datasets/t", content=CSV + b"3,z\n")
    assert (answer.status_code, answer.json()["num_rows"]) == (200, 3)
    assert client.get("/datasets/t").json() == answer.json()


# ---- what is refused


def problem(answer: httpx.Response) -> tuple[int, str, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"], answer.json()["detail"]


@pytest.mark.parametrize(
    ("content", "headers", "status", "code", "said"),
    [
        (b"", {}, 400, "unparseable", "-T FILE"),
        (b"a,b\n1,2\n3\n", {}, 400, "unparseable", "line 3 has 1 fields"),
        (b"PAR1" + bytes(50), {}, 400, "unparseable", "Parquet"),
        (gzip.compress(CSV)[:-4], {}, 400, "unparseable", "gzip"),
        (CSV, {"Content-Type": "application/jsonl"}, 400, "unparseable", "says NDJSON"),
        (b"a,a\n1,2\n", {}, 422, "invalid_input", "both named 'a'"),
        (b'{"a": 1}\n{"a": []}\n', {}, 422, "invalid_input", "line 2, column 'a'"),
        (CSV, {"Content-Type": "application/json"}, 415, "unsupported_media_type", "NDJSON"),
        (CSV, {"Content-Encoding": "br"}, 415, "unsupported_media_type", "br"),
        (gzip.compress(b"a\n" + b"1\n" * MAX_BYTES), {}, 413, "too_large", f"more than {MAX_BYTES} bytes"),
        (",".join(map(str, range(101))).encode(), {}, 413, "too_large", "101 columns"),
    ],
    ids=range(11),
)
def test_a_body_that_is_no_table(
    client: httpx.Client,
    store: DatasetStore,
    content: bytes,
    headers: dict[str, str],
    status: int,
    code: str,
    said: str,
) -> None:
    answer = problem(client.put("/datasets/t", content=content, headers=headers))
    assert answer[:2] == (status, code)
    assert said in answer[2]
    assert problem(client.get("/datasets/t"))[:2] == (404, "dataset_not_found")
    assert scratch(store) == []


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit(client: httpx.Client, store: DatasetStore, chunked: bool) -> None:
    content = iter([CSV, *[b"1,x\n" * 2**18] * 5]) if chunked else CSV + b"1,x\n" * 2**21
    assert problem(client.put("/datasets/t", content=content))[:2] == (413, "too_large")
    assert scratch(store) == []


@pytest.mark.parametrize("name", ["Upper", "-a", "a" * 65, "%2e%2e", "a%20b"])
def test_names_that_are_none(client: httpx.Client, name: str) -> None:
    assert client.put(f"/datasets/{name}", content=CSV).status_code in (404, 422)
    assert client.get(f"/datasets/{name}").status_code in (404, 422)


def test_a_client_that_goes_away_leaves_nothing(url: str, client: httpx.Client, store: DatasetStore) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"PUT /datasets/t HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + CSV)
        until(lambda: scratch(store))
    until(lambda: not scratch(store))
    assert client.get("/datasets/t").status_code == 404


def test_keys_and_scopes(store: DatasetStore) -> None:
    app = make_app(keys="r:read,t:train")
    app.state.services = SimpleNamespace(datasets=store)
    transport = httpx.ASGITransport(app)

    async def call(method: str, key: str | None) -> int:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return (await client.request(method, "/datasets/t", content=CSV, headers=headers)).status_code

    calls = [("PUT", None), ("PUT", "r"), ("PUT", "t"), ("GET", None), ("GET", "t"), ("GET", "r"), ("DELETE", "r")]
    assert [anyio.run(call, *each) for each in calls] == [401, 403, 201, 401, 403, 200, 403]


# ---- the rest


def test_lists_are_paged(client: httpx.Client) -> None:
    for name in ("c", "a", "b"):
        client.put(f"/datasets/{name}", content=CSV)
    first = client.get("/datasets", params={"limit": 2}).json()
    assert [dataset["name"] for dataset in first["data"]] == ["a", "b"]
    assert first["data"][0] == client.get("/datasets/a").json()
    second = client.get("/datasets", params={"limit": 2, "after": first["next"]}).json()
    assert ([dataset["name"] for dataset in second["data"]], second["next"]) == (["c"], None)
    assert client.get("/datasets", params={"limit": 0}).status_code == 422
    assert client.get("/datasets", params={"limit": 201}).status_code == 422


def test_first_rows(client: httpx.Client) -> None:
    client.put("/datasets/t", content=b"when,n\n2020-01-02,1.5\n,inf\n2020-01-02T03:04:05Z,-2\n")
    assert client.get("/datasets/t/rows").json()["data"] == [
        {"when": "2020-01-02T00:00:00", "n": 1.5},
        {"when": "2020-01-02T03:04:05", "n": -2.0},
    ]
    assert len(client.get("/datasets/t/rows", params={"limit": 1}).json()["data"]) == 1


def test_deleting(client: httpx.Client) -> None:
    client.put("/datasets/t", content=CSV)
    answer = client.delete("/datasets/t")
    assert (answer.status_code, answer.content) == (204, b"")
    for call in (client.get("/datasets/t"), client.get("/datasets/t/rows"), client.delete("/datasets/t")):
        assert problem(call)[:2] == (404, "dataset_not_found")


def test_the_loop_answers_while_a_table_is_parsed(
    client: httpx.Client, url: str, store: DatasetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, may_go_on = threading.Event(), threading.Event()
    put_upload = store.put_upload

    def held(*args: Any) -> Any:
        reading.set()
        assert may_go_on.wait(20)
        return put_upload(*args)

    monkeypatch.setattr(store, "put_upload", held)
    with ThreadPoolExecutor(4) as pool:
        uploads = [pool.submit(httpx.put, f"{url}/datasets/t{n}", content=CSV, timeout=20) for n in range(4)]
        assert reading.wait(20)
        assert client.get("/healthz").status_code == 200
        assert client.get("/datasets").json()["data"] == []
        may_go_on.set()
        assert [upload.result().status_code for upload in uploads] == [201] * 4
    assert json.loads(client.get("/datasets").content)["next"] is None
