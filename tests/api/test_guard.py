"""Browsers, strange names and callers in a hurry, over real HTTP."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.service import problem, service

ORIGIN = "https://app.example"
HEADERS_ON_ALL = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
PREDICT = {"model": "nowhere", "inputs": [[1]]}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with service(
        tmp_path_factory.mktemp("guarded"),
        api_keys="one:admin,two:admin",
        allowed_origins=ORIGIN,
        max_requests_per_second=0.001,
    ) as client:
        yield client


@pytest.mark.parametrize("path", ["/predict", "/train", "/invocations", "/v2/models/x/infer", "/nowhere"])
def test_a_stranger_s_name_is_refused_on_every_path(client: httpx.Client, path: str) -> None:
    answer = client.post(path, json=PREDICT, headers={"Host": "evil.example"})
    found = problem(answer, 403, "host_not_allowed")
    assert "GRADSERVE_ALLOWED_HOSTS" in found["detail"]
    assert "error" in found or not path.startswith("/v2")


@pytest.mark.parametrize("path", ["/predict", "/train", "/invocations", "/v2/models/x/infer", "/nowhere"])
def test_a_stranger_s_page_is_refused_on_every_path(client: httpx.Client, path: str) -> None:
    answer = client.post(path, json=PREDICT, headers={"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"})
    assert "GRADSERVE_ALLOWED_ORIGINS" in problem(answer, 403, "cross_site")["detail"]
    assert "access-control-allow-origin" not in answer.headers


def test_a_preflight_gets_no_leave_where_none_is_set(client: httpx.Client) -> None:
    headers = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    answer = client.options("/predict", headers=headers)
    problem(answer, 403, "cross_site")
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_a_preflight_of_an_allowed_origin(guarded: httpx.Client) -> None:
    headers = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    answer = guarded.options("/predict", headers=headers)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["access-control-allow-headers"] == "authorization,content-type"
    assert "DELETE" in answer.headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in answer.headers
    other = guarded.options("/predict", headers=headers | {"Origin": "https://other.example"})
    problem(other, 403, "cross_site")


def test_a_page_of_an_allowed_origin_can_read_errors_too(guarded: httpx.Client) -> None:
    answer = guarded.post("/predict", json=PREDICT, headers={"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"})
    problem(answer, 401, "unauthenticated")
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["vary"] == "Origin"
    assert {"X-Request-ID", "X-Model-Version"} <= {*answer.headers["access-control-expose-headers"].split(", ")}
    plain = guarded.post("/predict", json=PREDICT)
    assert "access-control-allow-origin" not in plain.headers


def test_a_rate_is_one_key_s_own(guarded: httpx.Client) -> None:
    def ask(key: str) -> httpx.Response:
        return guarded.post("/predict", json=PREDICT, headers={"Authorization": f"Bearer {key}"})

    problem(ask("one"), 404, "model_not_found")
    answer = ask("one")
    assert "GRADSERVE_MAX_REQUESTS_PER_SECOND" in problem(answer, 429, "rate_limited")["detail"]
    assert 900 < int(answer.headers["retry-after"]) <= 1000
    problem(ask("two"), 404, "model_not_found")
    problem(ask("wrong"), 401, "unauthenticated")
    assert guarded.get("/healthz", headers={"Authorization": "Bearer one"}).status_code == 200


def test_one_key_s_jobs_leave_room_for_others(tmp_path: Path) -> None:
    line = {"inputs": [[1], [2]], "targets": [1.5, 2.5]}
    long = {"model": "long", "data": line, "network": {"hidden_features": []}, "stop": {"max_seconds": 600}}
    limits = {"max_running_jobs": 1, "max_queued_jobs_per_key": 1}
    with service(tmp_path, api_keys="one:admin,two:admin", **limits) as client:

        def submit(key: str) -> httpx.Response:
            return client.post("/train", json=long, headers={"Authorization": f"Bearer {key}"})

        def leave(job: Any) -> None:
            client.post(f"/jobs/{job['id']}/cancel", headers={"Authorization": "Bearer two"})

        taken = []
        while (answer := submit("one")).status_code == 202:
            taken.append(answer.json())
            assert len(taken) <= 2  # one runs, one waits
        assert "jobs of this key" in problem(answer, 429, "overloaded")["detail"]
        assert int(answer.headers["retry-after"]) > 0
        taken.append(submit("two").json())
        assert [job["submitted_by"] for job in taken] == ["setting-1"] * (len(taken) - 1) + ["setting-2"]
        for job in taken:
            leave(job)


@pytest.mark.parametrize("path", ["/models", "/nowhere", "/docs", "/openapi.json", "/metrics", "/web/docs.js"])
def test_every_answer_has_the_headers_that_browsers_heed(client: httpx.Client, path: str) -> None:
    for headers in ({}, {"Host": "evil.example"}):
        answer = client.get(path, headers=headers)
        assert HEADERS_ON_ALL.items() <= dict(answer.headers).items()
        assert all(len(answer.headers.get_list(name)) == 1 for name in HEADERS_ON_ALL)


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_pages_have_a_policy(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert headers["x-frame-options"] == "DENY"
    assert "content-security-policy" not in client.get("/openapi.json").headers


def test_no_script_stands_in_a_page(client: httpx.Client) -> None:
    for path in ("/docs", "/redoc"):
        text = client.get(path).text
        assert text.count("<script") == text.count("<script src=") > 0


def test_settings_of_origins_are_origins(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without a path"), service(tmp_path, allowed_origins="https://a.example/x"):
        pass
