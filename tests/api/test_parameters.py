"""Parameters of the query that are misspelt: told, where leaving them out would do something else than was asked."""

import httpx
import pytest

from app.api.examples import SEED
from tests.api.service import problem

TABLE = {"content": "x0\n1\n", "headers": {"Content-Type": "text/csv"}}


@pytest.mark.parametrize(
    ("method", "path", "body", "pointer", "words"),
    [
        ("POST", "/train?dry-run=true", {"json": SEED}, "?dry-run", "did you mean 'dry_run'?"),
        ("POST", "/train?wait=10&dry_run=true", {"json": SEED}, "?wait", "there are 'dry_run'"),
        ("POST", "/predict?model=line&Verison=2", TABLE, "?Verison", "did you mean 'version'?"),
        ("POST", "/invocations?model=line&alias=best", TABLE, "?alias", "there are 'model', 'version'"),
        ("GET", "/jobs?State=running", {}, "?State", "did you mean 'state'?"),
    ],
)
def test_an_unknown_parameter_is_refused(
    client: httpx.Client, method: str, path: str, body: dict[str, object], pointer: str, words: str
) -> None:
    found = problem(client.request(method, path, **body), 422, "invalid_input")
    assert [fault["pointer"] for fault in found["errors"]] == [pointer]
    assert found["detail"] == f"there is no parameter {pointer[1:]!r}; {words}"


def test_where_none_is_taken_none_is_looked_at(client: httpx.Client) -> None:
    assert client.get("/healthz?_=1").status_code == 200
