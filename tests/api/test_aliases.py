"""Aliases whose predictions come from two versions, or are compared with another's, by every protocol."""

import io
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import polars as pl
import pytest

from app.storage.models import ModelStore
from tests.api.service import pointers, problem, service
from tests.samples import publish, untrained
from tests.waiting import until

MODEL = untrained(pl.DataFrame({"x0": [1.0, 2.0, 3.0], "x1": [0.5, 0.0, 1.0], "y": [0.5, 1.5, 2.75]}))
CANARY = {"version": "1", "canary": {"version": "2", "percent": 50.0}}
KEYS = [f"user-{number}" for number in range(40)]

Ask = Callable[[httpx.Client, dict[str, str]], str]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    return ModelStore(tmp_path_factory.mktemp("service") / "models")


@pytest.fixture(scope="module")
def client(store: ModelStore) -> Iterator[httpx.Client]:
    for _ in range(3):
        publish(store, MODEL, "m")
    with service(store.root.parent) as client:
        yield client


def put(client: httpx.Client, body: Any, alias: str = "live") -> httpx.Response:
    return client.put(f"/models/m/aliases/{alias}", json=body)


# ---- the alias


def test_an_alias_says_what_it_was_told(client: httpx.Client) -> None:
    said = {"model": "m", "alias": "live"}
    both = CANARY | {"shadow": {"version": "3", "percent": 100.0}}
    for body in (CANARY, both, {"version": "1"}):
        assert put(client, body).json() == said | body
        assert client.get("/models/m/aliases/live").json() == said | body
        assert client.get("/models/m").json()["aliases"]["live"] == "1"
        assert client.get("/models/m/versions/live").json()["version"] == "1"
    problem(client.get("/models/m/aliases/nowhere"), 404, "alias_not_found")


def test_aliases_come_in_pages(client: httpx.Client) -> None:
    for alias in ("live", "a", "z"):
        put(client, CANARY, alias)
    first = client.get("/models/m/aliases", params={"limit": 2}).json()
    assert [found["alias"] for found in first["data"]] == ["a", "live"]
    second = client.get("/models/m/aliases", params={"limit": 2, "after": first["next"]}).json()
    assert second == {"data": [{"model": "m", "alias": "z", **CANARY}]} | {"next": second["next"]}
    assert second["next"] is None


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"canary": {"version": "2", "percent": 5}}, "/version"),
        ({"version": "1", "canary": {"version": "2"}}, "/canary/percent"),
        ({"version": "1", "canary": {"version": "2", "percent": 101}}, "/canary/percent"),
        ({"version": "1", "canary": {"version": 2, "percent": 5}}, "/canary/version"),
        ({"version": "1", "canary": {"version": "1", "percent": 5}}, ""),
        ({"version": "1", "shadow": {"version": "2", "share": 1}}, "/shadow/share"),
    ],
)
def test_what_is_no_alias(client: httpx.Client, body: Any, pointer: str) -> None:
    assert pointers(put(client, body)) == [pointer]


def test_canaries_and_shadows_are_there_and_stay(client: httpx.Client) -> None:
    for role in ({"canary": {"version": "9", "percent": 5}}, {"shadow": {"version": "9"}}):
        problem(put(client, {"version": "1", **role}), 404, "version_not_found")
    put(client, CANARY | {"shadow": {"version": "3"}})
    for version, role in (("2", "canary"), ("3", "shadow")):
        assert role in problem(client.delete(f"/models/m/versions/{version}"), 409, "conflict")["detail"]


# ---- who answers


def ask_json(client: httpx.Client, headers: dict[str, str]) -> str:
    answer = client.post("/predict", json={"model": "m", "version": "live", "inputs": [[1, 2]]}, headers=headers)
    return str(answer.json()["version"])


def ask_csv(client: httpx.Client, headers: dict[str, str]) -> str:
    answer = client.post(
        "/predict?model=m&version=live", content=b"x0,x1\n1,2\n", headers={"Content-Type": "text/csv", **headers}
    )
    assert len(pl.read_csv(io.BytesIO(answer.content))) == 1
    return answer.headers["x-model-version"]


def ask_v2(client: httpx.Client, headers: dict[str, str]) -> str:
    body = {"inputs": [{"name": "inputs", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
    answer = client.post("/v2/models/m/versions/live/infer", json=body, headers=headers)
    return str(answer.json()["model_version"])


def ask_mlflow(client: httpx.Client, headers: dict[str, str]) -> str:
    answer = client.post("/invocations?model=m&version=live", json={"instances": [[1, 2]]}, headers=headers)
    assert len(answer.json()["predictions"]) == 1
    return answer.headers["x-model-version"]


@pytest.mark.parametrize("ask", [ask_json, ask_csv, ask_v2, ask_mlflow])
def test_a_key_gets_the_same_version_by_every_protocol(client: httpx.Client, ask: Ask) -> None:
    put(client, CANARY)
    found = {key: ask(client, {"X-Routing-Key": key}) for key in KEYS}
    assert set(found.values()) == {"1", "2"}
    assert found == {key: ask_json(client, {"x-routing-key": key}) for key in KEYS}


def test_requests_without_a_key_are_drawn_each_for_itself(client: httpx.Client) -> None:
    put(client, CANARY)
    drawn = Counter(ask_json(client, {}) for _ in range(100))
    assert min(drawn["1"], drawn["2"]) > 15  # seven standard deviations


def test_a_canary_ends_with_the_next_put(client: httpx.Client) -> None:
    put(client, CANARY)
    put(client, {"version": "2"})
    assert {ask_json(client, {"X-Routing-Key": key}) for key in KEYS} == {"2"}


# ---- shadows


@pytest.mark.parametrize("ask", [ask_json, ask_csv, ask_v2, ask_mlflow])
def test_a_shadow_is_compared_and_never_answers(client: httpx.Client, ask: Ask) -> None:
    put(client, {"version": "1", "shadow": {"version": "3"}})
    pair = 'model="m",version="1",shadow="3"'
    before = {fact: shadow_count(client, fact, pair) for fact in SHADOW_FACTS}
    for _ in range(5):
        assert ask(client, {}) == "1"
    until(lambda: shadow_count(client, "requests_total", f'{pair},outcome="compared"') == before["requests_total"] + 5)
    more = {fact: shadow_count(client, fact, pair) - before[fact] for fact in SHADOW_FACTS}
    assert more["rows_total"] == more["agreed_rows_total"] == 5
    assert more["difference_total"] == 0
    answered, shadowed = (shadow_count(client, "compute_seconds_total", f'{pair},by="{by}"') for by in SIDES)
    assert 0 < answered < 60
    assert 0 < shadowed < 60


SHADOW_FACTS = ("requests_total", "rows_total", "agreed_rows_total", "difference_total")
SIDES = ("answer", "shadow")


def shadow_count(client: httpx.Client, fact: str, labels: str) -> float:
    """Of /metrics, with labels that begin like this."""
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"gradserve_shadow_{fact}{{{labels}"))


def test_a_shadow_that_fails_breaks_no_answer(client: httpx.Client, store: ModelStore) -> None:
    other = untrained(pl.DataFrame({"a": [1.0, 2.0], "b": [1.0, 2.0], "c": [1.0, 2.0], "y": [0.5, 1.5]}))
    publish(store, MODEL, "broken")
    publish(store, other, "broken")
    client.put("/models/broken/aliases/live", json={"version": "1", "shadow": {"version": "2"}})
    answer = client.post("/predict", json={"model": "broken", "version": "live", "inputs": [[1, 2]]})
    assert (answer.status_code, answer.json()["version"]) == (200, "1")
    labels = 'model="broken",version="1",shadow="2",outcome="failed"'
    until(lambda: shadow_count(client, "requests_total", labels) == 1)


def test_a_canary_that_can_not_be_loaded_is_stood_in_for(client: httpx.Client, store: ModelStore) -> None:
    for _ in range(2):
        publish(store, MODEL, "damaged")
    client.put("/models/damaged/aliases/live", json={"version": "1", "canary": {"version": "2", "percent": 100}})
    (store.root / "damaged" / "2" / "model.safetensors").write_bytes(b"damaged")
    answer = client.post("/predict", json={"model": "damaged", "version": "live", "inputs": [[1, 2]]})
    assert (answer.status_code, answer.json()["version"]) == (200, "1")
    problem(
        client.post("/predict", json={"model": "damaged", "version": "2", "inputs": [[1, 2]]}), 503, "corrupt_version"
    )
