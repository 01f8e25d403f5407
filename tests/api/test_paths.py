"""No path and no URL of a client is opened, and nothing outside of models/ and data/ is read or written.

Beside these folders stands what could be reached from them: a whole version, a table, a secret; and a port that
nobody may ask for anything.
"""

import http.client
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from app.main import create_app
from app.settings import Settings
from tests.api.service import service
from tests.published import numbers_model, publish

SECRET = "canary-8d1f5b"
OPERATIONS = [
    (method.upper(), path)
    for path, methods in create_app(Settings(_env_file=None)).openapi()["paths"].items()
    for method in methods
]
PLACES = {
    "name": "line",
    "model": "line",
    "version": "1",
    "alias": "champion",
    "job_id": "0" * 32,
    "file": "config.json",
}
PARAMETERS = [(method, path, name) for method, path in OPERATIONS for name in re.findall(r"{(\w+)}", path)]


class Place(NamedTuple):
    root: Path
    client: httpx.Client
    nobody: socket.socket

    @property
    def hostile(self) -> list[str]:
        """What a client may put where a name belongs; `%` as it goes over the wire."""
        there = str(self.root).replace("/", "%2f")
        return [
            "..", "%2e%2e", "../outside", "..%2foutside", "%2e%2e%2foutside", "..%5coutside", "%252e%252e%252foutside",
            f"{there}%2foutside", f"file:%2f%2f{there}%2foutside", "..%2fsecret.txt", "%2fetc%2fpasswd", ".", "~",
            f"http:%2f%2f127.0.0.1:{self.nobody.getsockname()[1]}%2foutside", "line%00", "%00", "line%2f1", "linked",
            ".staging", ".trash", "line%0a", "$HOME", "L%C4%B0NE", "a" * 300, "con:", "|id", "%60id%60", "*",
        ]  # fmt: skip

    def ask(self, method: str, target: str, body: bytes = b"{}") -> tuple[int, bytes]:
        """The answer to a request line as it stands, which httpx would tidy up."""
        connection = http.client.HTTPConnection("127.0.0.1", self.client.base_url.port or 0, timeout=60)
        headers = {"Content-Type": "application/json"}
        connection.putrequest(method, target, skip_accept_encoding=True)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        found = answer.status, answer.read()
        connection.close()
        return found

    def outside(self) -> dict[str, bytes]:
        """All files that are not the service's own."""
        own = (self.root / "models", self.root / "data")
        return {
            str(path): path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_file() and not any(path.is_relative_to(folder) for folder in own)
        }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("place")
    publish(root / "models", "line", numbers_model())
    shutil.copytree(root / "models" / "line", root / "outside")
    (root / "outside" / "1" / "metrics.json").write_text(f'{{"loss": "{SECRET}"}}')
    (root / "secret.txt").write_text(f"{SECRET}\n1\n")
    (root / "models" / "linked").symlink_to(root / "outside")
    with service(root) as client, socket.create_server(("127.0.0.1", 0)) as nobody:
        nobody.setblocking(False)
        assert client.put("/datasets/line", content=b"x,y\n1,2\n2,3\n").status_code == 201
        yield Place(root, client, nobody)


@pytest.fixture(autouse=True)
def untouched(place: Place) -> Iterator[None]:
    before = place.outside()
    yield
    assert place.outside() == before
    with pytest.raises(BlockingIOError):
        place.nobody.accept()


def check(place: Place, method: str, target: str, found: tuple[int, bytes]) -> None:
    status, body = found
    assert 400 <= status < 500, (method, target, status, body)
    assert SECRET.encode() not in body, (method, target)
    assert b"root:" not in body, (method, target)


@pytest.mark.parametrize(("method", "path", "name"), PARAMETERS)
def test_a_name_in_an_address_is_a_name(place: Place, method: str, path: str, name: str) -> None:
    for value in place.hostile:
        target = path.format(**PLACES | {name: value})
        check(place, method, target, place.ask(method, target))


def bodies(value: str) -> list[tuple[str, dict[str, Any]]]:
    """Requests that have the value where a name, a version, a column or a table belongs."""
    rows = {"inputs": [[1.0, 2.0]], "targets": [1.0]}
    return [
        ("/train", {"model": value, "data": rows}),
        ("/train", {"model": "m", "data": {"dataset": value, "target": "y"}}),
        ("/train", {"model": "m", "data": {"digest": value, "target": "y"}}),
        ("/train", {"model": "m", "data": {"digest": f"sha256:{value}", "target": "y"}}),
        ("/train", {"model": "m", "data": rows, "validation": {"dataset": value}}),
        ("/train", {"model": "m", "data": rows, "warm_start": {"model": value}}),
        ("/train", {"model": "m", "data": rows, "warm_start": {"model": "line", "version": value}}),
        ("/predict", {"model": value, "inputs": [[1, 2]]}),
        ("/predict", {"model": "line", "version": value, "inputs": [[1, 2]]}),
        ("/evaluate", {"model": value, "data": rows}),
        ("/evaluate", {"model": "line", "data": {"dataset": value, "target": "y"}}),
        ("/v2/models/line/infer", {"inputs": [{"name": value, "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}),
    ]


def test_a_name_in_a_body_is_a_name(place: Place) -> None:
    for wire in place.hostile:
        value = httpx.QueryParams(f"x={wire}")["x"]
        for path, body in bodies(value):
            answer = place.client.post(path, json=body)
            check(place, "POST", f"{path} {body}", (answer.status_code, answer.content))


def test_a_name_in_a_query_is_a_name(place: Place) -> None:
    for value in place.hostile:
        for path in (f"/invocations?model={value}", f"/predict?model={value}", f"/predict?model=line&version={value}"):
            connection = httpx.post(
                f"{place.client.base_url}{path}", content=b"x0,x1\n1,2\n", headers={"Content-Type": "text/csv"}
            )
            check(place, "POST", path, (connection.status_code, connection.content))


def test_what_a_link_in_models_leads_to_is_not_there(place: Place) -> None:
    assert [model["name"] for model in place.client.get("/models").json()["data"]] == ["line"]
    assert place.client.get("/models/linked").status_code == 404
    assert place.client.get("/v2/models/linked").status_code == 404
