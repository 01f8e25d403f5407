"""The OpenAPI document: every example runs as it stands, and every route asks for a key but those that are open."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from app.api.auth import SCOPES
from app.api.examples import IMAGES, SEQUENCES
from app.api.openapi import EXAMPLES, LINKS, PROBLEMS
from app.api.problems import MEDIA_TYPE, STATUS
from app.main import create_app
from app.settings import Settings
from tests.api.service import problem, service

OPEN = {"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"}
PREDICTING = ("/predict", "/evaluate", "/infer", "/invocations")
PLACES = {
    "name": "line", "model": "line", "version": "1", "alias": "champion", "job_id": "0" * 32, "file": "config.json",
}  # fmt: skip
FIRST = ["/datasets/{name}", "/train"]
PAGES = {"/", "/docs", "/docs/", "/redoc", "/openapi.json", "/web/redoc.js", "/ping"}
"""What is not in the document, and open: they tell nothing of what is here but that it is."""
TWICE = "/train"  # canaries and shadows need a second version


class Operation(NamedTuple):
    method: str
    path: str
    facts: dict[str, Any]

    def filled(self, **places: str) -> str:
        return self.path.format(**PLACES | places)

    @property
    def query(self) -> dict[str, str]:
        """What the document gives as examples."""
        parameters = self.facts.get("parameters", ())
        return {item["name"]: item["example"] for item in parameters if item["in"] == "query" and "example" in item}

    @property
    def scope(self) -> str:
        """What it should ask for: by its verb, but for those that predict and the one query that is a POST."""
        if self.path.endswith(PREDICTING):
            return "predict"
        return "read" if self.method == "GET" or self.path == "/v2/repository/index" else "train"


DOCUMENT = create_app(Settings(_env_file=None)).openapi()
OPERATIONS = [
    Operation(method.upper(), path, facts)
    for path, methods in DOCUMENT["paths"].items()
    for method, facts in methods.items()
]
BODIES = [operation for operation in OPERATIONS if "requestBody" in operation.facts]


def examples(operation: Operation) -> Iterator[tuple[str, Any]]:
    """Media types and bodies."""
    for media_type, content in operation.facts["requestBody"]["content"].items():
        if "example" in content:
            yield media_type, content["example"]
        for example in content.get("examples", {}).values():
            yield media_type, example["value"]


# ---- examples


@pytest.mark.parametrize("operation", BODIES, ids=lambda operation: f"{operation.method} {operation.path}")
def test_every_json_body_has_an_example(operation: Operation) -> None:
    content = operation.facts["requestBody"]["content"]
    if "application/json" in content and operation.facts["requestBody"].get("required", True):
        assert "application/json" in dict(examples(operation))


def test_every_example_runs_as_it_stands(client: httpx.Client) -> None:
    """In an order in which there is something to work with: datasets, models, then the rest."""
    ordered = sorted(BODIES, key=lambda operation: FIRST.index(operation.path) if operation.path in FIRST else 9)
    statuses: dict[str, int] = {}
    for operation in ordered:
        bodies = list(examples(operation))
        for number, (media_type, body) in enumerate(bodies * 2 if operation.path == TWICE else bodies):
            text = {"json": body} if media_type == "application/json" else {"content": body}
            headers = {"Content-Type": media_type, "Prefer": "wait=60"}
            answer = client.request(
                operation.method, operation.filled(), params=operation.query, headers=headers, **text
            )
            statuses[f"{operation.method} {operation.path} {media_type} #{number}"] = answer.status_code
            if operation.path == "/train":
                assert answer.json()["state"] == "succeeded", answer.text
            assert answer.is_success, f"{operation.method} {operation.path}: {answer.text}"
    assert set(statuses.values()) <= {200, 201, 202}
    assert sum("/train" in name for name in statuses) >= 2


def test_the_examples_predict_what_they_should(client: httpx.Client) -> None:
    """Depends on the models of the examples, which the seed example's promise is about."""
    if client.get("/models/line").status_code == 404:
        test_every_example_runs_as_it_stands(client)
    rows = [[number] for number in range(1, 11)]
    found = client.post("/predict", json={"model": "line", "inputs": rows}).json()["predictions"]
    assert found == pytest.approx(list(range(1, 11)), abs=0.05)
    for example in (IMAGES, SEQUENCES):
        found = client.post("/predict", json={"model": example["model"], "inputs": example["data"]["inputs"]}).json()
        assert found["predictions"] == example["data"]["targets"]


def test_examples_keep_their_nulls() -> None:
    shown = {
        place: DOCUMENT["paths"][place[1]][place[0].lower()]["requestBody"]["content"]["application/json"]["examples"]
        for place in EXAMPLES
    }
    assert shown == EXAMPLES
    assert shown["POST", "/train"]["line"]["value"]["features"] is None


# ---- the document


def test_every_operation_is_described() -> None:
    for operation in OPERATIONS:
        assert operation.facts.get("summary"), operation
        assert operation.facts.get("tags"), operation
    assert len({operation.facts["operationId"] for operation in OPERATIONS}) == len(OPERATIONS)


def test_every_problem_has_its_place() -> None:
    """In the components: media type, schema, and the headers that clients go by."""
    described = DOCUMENT["components"]["responses"]
    assert {*STATUS.values()} <= PROBLEMS.keys()
    for answer in described.values():
        assert answer["content"] == {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
        assert "X-Request-ID" in answer["headers"]
    assert described["TooManyRequests"]["headers"]["Retry-After"]["required"]
    assert "WWW-Authenticate" in described["Unauthorized"]["headers"]
    for operation in OPERATIONS:
        for status, answer in operation.facts["responses"].items():
            if status.startswith(("4", "5")):
                assert answer["$ref"].removeprefix("#/components/responses/") in described, operation
            else:
                assert "X-Request-ID" in answer["headers"], operation


@pytest.mark.parametrize(
    ("method", "path", "statuses"),
    [
        ("POST", "/train", {400, 401, 403, 404, 413, 415, 422, 429, 503, 507}),
        ("DELETE", "/models/{name}", {401, 403, 404, 409, 422, 429, 503, 507}),
        ("GET", "/healthz", set()),
    ],
)
def test_problems_of_operations(method: str, path: str, statuses: set[int]) -> None:
    responses = DOCUMENT["paths"][path][method.lower()]["responses"]
    assert {int(status) for status in responses if int(status) >= 400} == statuses


def test_links_lead_to_operations_with_their_parameters() -> None:
    by_id = {operation.facts["operationId"]: operation for operation in OPERATIONS}
    found = 0
    for operation in OPERATIONS:
        for answer in operation.facts["responses"].values():
            for link in answer.get("links", {}).values():
                known = {item["name"] for item in by_id[link["operationId"]].facts["parameters"]}
                assert link["parameters"].keys() <= known, link
                found += 1
    assert found >= sum(map(len, LINKS.values()))


def test_answers_have_schemas() -> None:
    for operation in OPERATIONS:
        told = {status for status in operation.facts["responses"] if status.startswith("2")}
        assert told, operation


def test_the_document_is_served(client: httpx.Client) -> None:
    answer = client.get("/openapi.json")
    assert answer.status_code == 200
    assert answer.json()["paths"].keys() == DOCUMENT["paths"].keys()
    assert answer.json()["info"]["title"] == "Gradserve"


# ---- keys and scopes

KEYS = {scope: f"the {scope} key".replace(" ", "-") for scope in SCOPES}


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    keys = ",".join(f"{key}:{scope}" for scope, key in KEYS.items()) + ",both-key:read+predict"
    with service(tmp_path_factory.mktemp("locked"), api_keys=keys) as client:
        yield client


def ask(client: httpx.Client, operation: Operation, key: str | None, scheme: str = "Bearer") -> httpx.Response:
    """A request that finds nothing to do, if it gets that far."""
    headers = {"Authorization": f"{scheme} {key}"} if key is not None else {}
    body = {"json": {}} if operation.method in ("POST", "PUT") else {}
    places = {"name": "nowhere", "model": "nowhere"}
    return client.request(operation.method, operation.filled(**places), headers=headers, **body)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: f"{operation.method} {operation.path}")
def test_every_operation_asks_for_its_scope(locked: httpx.Client, operation: Operation) -> None:
    if operation.path in OPEN:
        assert ask(locked, operation, None).status_code == 200
        return
    for key in (None, "wrong"):
        answer = ask(locked, operation, key)
        problem(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"
    passing = {scope for scope in SCOPES if ask(locked, operation, KEYS[scope]).status_code not in (401, 403)}
    assert passing == {operation.scope, "admin"}
    refused = next(scope for scope in ("read", "predict") if scope not in passing)
    assert operation.scope in problem(ask(locked, operation, KEYS[refused]), 403, "forbidden")["detail"]


def test_routes_that_are_not_in_the_document_are_pages_or_want_a_key(locked: httpx.Client) -> None:
    app = create_app(Settings(_env_file=None))
    hidden = {
        (method, route.path)
        for route in iter_route_contexts(app.routes)
        if getattr(route, "include_in_schema", None) is False
        for method in route.methods or ()
    }
    assert {("POST", "/predict"), ("GET", "/v2/logging"), ("POST", "/v2/logging")} <= hidden
    for method, path in hidden:
        if path not in PAGES:
            headers = {"Content-Type": "text/csv"} if method == "POST" else {}
            answer = locked.request(method, path.format(name="line", region="r"), headers=headers)
            problem(answer, 401, "unauthenticated")


@pytest.mark.parametrize("operation", BODIES, ids=lambda operation: f"{operation.method} {operation.path}")
@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
def test_without_a_key_no_body_is_looked_at(locked: httpx.Client, operation: Operation, content_type: str) -> None:
    answer = locked.request(operation.method, operation.filled(), content=b"{", headers={"Content-Type": content_type})
    problem(answer, 401, "unauthenticated")


def test_a_key_may_have_several_scopes(locked: httpx.Client) -> None:
    by_path = {(operation.method, operation.path): operation for operation in OPERATIONS}
    for method, path, status in [("GET", "/models", 200), ("POST", "/predict", 422), ("POST", "/train", 403)]:
        assert ask(locked, by_path[method, path], "both-key").status_code == status


@pytest.mark.parametrize("header", ["the-read-key", "Basic dGhlOnJlYWQ=", "Bearer", "Token the-read-key"])
def test_other_authorizations_are_none(locked: httpx.Client, header: str) -> None:
    problem(locked.get("/models", headers={"Authorization": header}), 401, "unauthenticated")


def test_a_secret_is_in_no_answer(locked: httpx.Client) -> None:
    answers = [locked.get(path, headers={"Authorization": f"Bearer {KEYS['admin']}"}) for path in ("/info", "/metrics")]
    answers += [locked.get("/models", headers={"Authorization": "Bearer wrong-key"})]
    for answer in answers:
        assert not any(key in answer.text for key in [*KEYS.values(), "wrong-key", "api_keys"])


def test_without_keys_the_loopback_is_free(client: httpx.Client) -> None:
    assert client.get("/models").status_code == 200


@pytest.mark.parametrize("text", ["hush", "hush:", "hush:root", "hush:read+", ":read", "a:read,hush"])
def test_keys_that_say_nothing_are_refused_at_start(text: str) -> None:
    with pytest.raises(ValueError, match=r"api_keys(.|\n)*key:scope\+scope") as caught:
        Settings(_env_file=None, api_keys=text)
    assert "hush" not in str(caught.value)
