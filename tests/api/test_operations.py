"""What those who run the service look at, and what every answer has."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import polars as pl
import pytest
from prometheus_client.parser import text_string_to_metric_families

import app
from app.api.examples import SEED
from app.api.problems import Problem
from app.storage.models import ModelStore
from tests.api.service import problem, service, train
from tests.samples import publish, untrained

# ---- every answer


@pytest.mark.parametrize("path", ["/healthz", "/models", "/nowhere", "/models/nowhere", "/docs", "/openapi.json"])
def test_every_answer_has_an_id(client: httpx.Client, path: str) -> None:
    one, other = client.get(path), client.get(path)
    assert re.fullmatch(r"[0-9a-f]{16}", one.headers["x-request-id"])
    assert one.headers["x-request-id"] != other.headers["x-request-id"]
    assert len(one.headers.get_list("x-request-id")) == 1


@pytest.mark.parametrize("given", ["abc", "0" * 128, "a b", "x" * 129, "", "é"])
def test_an_id_that_was_sent_is_echoed(client: httpx.Client, given: str) -> None:
    for path in ("/healthz", "/nowhere"):
        headers = httpx.Headers([(b"x-request-id", given.encode())])
        found = client.get(path, headers=headers).headers["x-request-id"]
        fits = re.fullmatch(r"[\x21-\x7e]{1,128}", given)
        assert (found == given) is bool(fits)


def test_what_is_not_there(client: httpx.Client) -> None:
    assert "/nowhere" in problem(client.get("/nowhere"), 404, "not_found")["detail"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("DELETE", "/train", "POST"), ("POST", "/datasets/x", "DELETE, GET, PUT"), ("PUT", "/v2", "GET")],
)
def test_a_method_that_a_path_does_not_take_comes_with_those_that_it_takes(
    client: httpx.Client, method: str, path: str, allowed: str
) -> None:
    answer = client.request(method, path)
    detail = problem(answer, 405, "method_not_allowed")["detail"]
    assert answer.headers["allow"] == allowed
    assert detail == f"{path} takes no {method}; it takes {allowed}"


def test_an_error_of_ours_is_a_problem_with_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: ModelStore, name: str) -> list[str]:
        raise ZeroDivisionError

    monkeypatch.setattr(ModelStore, "versions", fail)
    with service(tmp_path) as broken:
        answer = broken.get("/models/line", headers={"X-Request-ID": "mine"})
        found = problem(answer, 500, "internal_error")
        assert found["request_id"] == "mine"
        assert "Traceback" not in answer.text
        assert answer.headers["connection"] == "close"
        for _ in range(3):
            assert broken.get("/healthz").status_code == broken.get("/models/line").status_code - 300 == 200


def test_problems_are_as_the_document_says(client: httpx.Client) -> None:
    answers = [
        client.get("/nowhere"),
        client.get("/models/nowhere"),
        client.delete("/train"),
        client.post("/train", content=b"{", headers={"Content-Type": "application/json"}),
        client.post("/train", content=b"{}"),
        client.post("/train", json={}),
        client.post("/predict", json={"model": "nowhere", "inputs": [[1]]}),
        client.get("/jobs/nowhere"),
        client.get("/datasets/nowhere"),
        client.put("/datasets/empty", content=b""),
        client.get("/models?limit=0"),
    ]
    for answer in answers:
        assert answer.is_client_error
        assert answer.headers["content-type"] == "application/problem+json"
        body = answer.json()
        assert body.keys() <= Problem.model_fields.keys()
        assert Problem.model_validate(body).status == answer.status_code
        assert body["detail"]


# ---- health


def test_a_service_that_has_just_started_ends_at_once(tmp_path: Path) -> None:
    """Though its fork server is still importing, which takes seconds."""
    with service(tmp_path) as client:
        client.get("/healthz")
        asked = time.monotonic()
    assert time.monotonic() - asked < 2


def test_it_is_alive_and_ready(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ok"}
    assert client.head("/healthz").status_code in (200, 405)


def test_it_is_not_ready_without_its_folders(tmp_path: Path) -> None:
    with service(tmp_path) as client:
        assert client.get("/readyz").status_code == 200
        (tmp_path / "models").rename(tmp_path / "away")
        assert "models" in problem(client.get("/readyz"), 503, "unavailable")["detail"]
        assert client.get("/healthz").status_code == 200
        (tmp_path / "away").rename(tmp_path / "models")
        assert client.get("/readyz").status_code == 200


def test_info_has_versions_devices_and_limits(client: httpx.Client) -> None:
    found = client.get("/info").json()
    assert found["version"] == app.__version__
    assert {"python", "torch", "fastapi"} <= found["versions"].keys()
    assert found["devices"][0]["device"] == "cpu"
    assert found["devices"][0]["memory_bytes"] > 2**28
    assert found["num_cores"] > 0
    assert {"max_rows", "max_parameters", "max_body_bytes", "max_queued_jobs"} <= found["limits"].keys()


def samples(client: httpx.Client) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(answer.text)
    return {
        (found.name, frozenset(found.labels.items())): found.value for family in families for found in family.samples
    }


def test_metrics_count_requests_by_route(client: httpx.Client) -> None:
    before = samples(client)
    for number in range(3):
        client.get("/models/nowhere")
        client.get(f"/{number}/nowhere")
    after = samples(client)
    more = {key: value - before.get(key, 0) for key, value in after.items()}

    def requests(route: str, status: str) -> float:
        labels = {"method": "GET", "route": route, "status": status}
        return more["gradserve_http_requests_total", frozenset(labels.items())]

    assert requests("/models/{name}", "404") == 3
    assert requests("unmatched", "404") == 3
    assert requests("/metrics", "200") == 1
    assert more["gradserve_http_request_seconds_count", frozenset({("route", "/models/{name}")})] == 3


def test_metrics_count_jobs_by_state(client: httpx.Client) -> None:
    def succeeded() -> float:
        return samples(client)["gradserve_jobs", frozenset({("state", "succeeded")})]

    before = succeeded()
    train(client, SEED | {"model": "one-more"})
    assert succeeded() == before + 1
    assert samples(client)["gradserve_jobs", frozenset({("state", "queued")})] == 0


def test_routes_are_named_as_in_the_document(client: httpx.Client) -> None:
    client.get("/datasets/nowhere")
    client.get("/jobs/nowhere")
    text = client.get("/metrics").text
    assert 'route="/datasets/{name}"' in text
    assert 'route="/jobs/{job_id}"' in text


# ---- pages

LINK = re.compile(r"""(?:src|href)\s*=\s*["']([^"']+)["']""")
PICTURE = re.compile(r"""src:\s*["'](?:https?:)?//[^"']+""")
ABSOLUTE = re.compile(r"""(?:https?:)?//[\w.-]+\.\w+[^\s"'<>)]*""")


def test_the_root_leads_to_the_docs(client: httpx.Client) -> None:
    answer = client.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "/docs")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/predict"),
        ("POST", "/train"),
        ("GET", "/jobs"),
        ("PUT", "/datasets/d"),
        ("POST", "/v2/models/m/infer"),
    ],
)
def test_a_slash_too_many_is_answered_with_the_path_that_was_meant(
    client: httpx.Client, method: str, path: str
) -> None:
    found = problem(client.request(method, f"{path}/", json={}), 404, "not_found")
    assert found["detail"] == f"there is nothing at {path}/; did you mean {path}?"


def test_an_address_that_nothing_is_like_is_answered_with_where_all_are(client: httpx.Client) -> None:
    for path in ("/nowhere", "/nowhere/", "/jobs//"):
        assert problem(client.get(path), 404, "not_found")["detail"] == f"there is nothing at {path}; see /docs"
    assert problem(client.put("/datasets/"), 404, "not_found")["detail"] == "there is nothing at /datasets/; see /docs"
    assert client.get("/docs/").headers["location"] == "/docs"


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_pages_need_no_other_machine(client: httpx.Client, page: str) -> None:
    answer = client.get(page)
    assert answer.status_code == 200
    links = LINK.findall(answer.text)
    assert links
    for link in links:
        target = urljoin(str(answer.url), link)
        assert target.startswith(str(client.base_url)), f"{link} leads elsewhere"
        assert client.get(target).status_code == 200, link
    assert ABSOLUTE.findall(answer.text) == []
    assert client.get("/openapi.json").status_code == 200


def test_no_picture_is_loaded_from_elsewhere(client: httpx.Client) -> None:
    script = client.get("/web/redoc.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert "Redoc" in script.text
    assert not PICTURE.findall(script.text)


# ---- logs


def test_requests_are_logged_with_their_ids(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with service(tmp_path, log_level="info", log_format="json") as client:
        client.get("/models/nowhere", headers={"X-Request-ID": "find-me"})
        client.get("/healthz", headers={"X-Request-ID": "quiet"})
    lines = list(entries(capfd.readouterr().err))
    found = next(line for line in lines if line.get("request_id") == "find-me")
    assert (found["method"], found["path"], found["status"]) == ("GET", "/models/nowhere", 404)
    assert found["ms"] >= 0
    assert not any(line.get("request_id") == "quiet" for line in lines)


@pytest.mark.parametrize("path", ["/predict", "/v2/models/m/infer"])
def test_a_version_that_is_broken_is_logged_with_the_id_of_its_request(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], path: str
) -> None:
    model = untrained(pl.DataFrame({"x": [1.0, 2.0, 3.0], "y": [0.5, 1.5, 2.75]}))
    version = tmp_path / "models" / "m" / publish(ModelStore(tmp_path / "models"), model)
    (version / "model.safetensors").write_bytes(b"")
    body = {"model": "m", "inputs": [[1]]} if path == "/predict" else {"inputs": []}
    with service(tmp_path, log_level="info", log_format="json") as client:
        assert client.post(path, json=body, headers={"X-Request-ID": "load-me"}).status_code == 503
    lines = [line for line in entries(capfd.readouterr().err) if line.get("request_id") == "load-me"]
    assert "a version can't be loaded" in [line["event"] for line in lines]


def test_a_job_is_logged_with_the_id_of_its_request(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with service(tmp_path, log_level="info", log_format="json") as client:
        job = train(client, SEED, **{"X-Request-ID": "train-me"})
    assert job["request_id"] == "train-me"
    lines = [line for line in entries(capfd.readouterr().err) if line.get("request_id") == "train-me"]
    assert {line["event"] for line in lines} == {"request", "job starts", "job ended"}
    assert {line["job_id"] for line in lines if "job" in str(line["event"])} == {job["id"]}


def entries(text: str) -> Iterator[dict[str, object]]:
    for line in text.splitlines():
        if line.startswith("{"):
            yield json.loads(line)
