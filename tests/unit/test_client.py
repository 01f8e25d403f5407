import asyncio
import io
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.client import (
    ApiError,
    AsyncClient,
    BadRequest,
    BrokenOff,
    Client,
    ClientError,
    Conflict,
    Event,
    JobFailed,
    NotFound,
    Overloaded,
    Unauthorized,
    Unreachable,
)
from app.client.bodies import BLOCK_BYTES, json_body
from app.client.calls import MAX_RECONNECTS
from app.client.events import EventParser
from app.client.transport import AsyncTransport, BlockingTransport
from scripts.service import free_port
from tests.clients import KINDS, client_of
from tests.unit import scripted_server as answers
from tests.unit.scripted_server import ScriptedServer, scripted_server

RUNNING = answers.json({"id": "a", "terminal": False})
SUCCEEDED = answers.json({"id": "a", "terminal": True, "state": "succeeded", "error": None})
QUEUED = answers.json({"id": "a", "state": "queued", "terminal": False})


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(kind: str, server: ScriptedServer) -> Iterator[Any]:
    with client_of(kind, server.url, "secret") as client:
        yield client


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client waited before it tried again; it doesn't wait here."""
    taken: list[float] = []

    async def nap(_: object, seconds: float) -> None:
        taken.append(seconds)

    for transport in (AsyncTransport, BlockingTransport):
        monkeypatch.setattr(transport, "sleep", nap)
    return taken


def sse(number: int, kind: str, data: str) -> str:
    return f"id: {number}\nevent: {kind}\ndata: {data}\n\n"


DONE = sse(3, "state", '{"state": "succeeded"}')


# ---- events


@given(st.data())
def test_events_do_not_depend_on_how_the_stream_was_cut(data: st.DataObject) -> None:
    text = ': ping\n\nid: 7\r\nevent: metrics\r\ndata: {"loss": "½\u2028"}\r\n\r\n' + DONE + "id: 8\nevent: sta"
    whole = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)))))
    parts = [whole[first:last] for first, last in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    parser = EventParser()
    assert [event for part in parts for event in parser.feed(part)] == [
        Event("7", "metrics", {"loss": "½\u2028"}),
        Event("3", "state", {"state": "succeeded"}),
    ]


def test_a_broken_stream_is_taken_up_where_it_broke(server: ScriptedServer, client: Any, naps: list[float]) -> None:
    first = sse(1, "state", '{"state": "running"}') + sse(2, "metrics", '{"epoch": 1}') + "id: 3\nevent: sta"
    server.answers = [RUNNING, answers.broken_stream(first), RUNNING, answers.stream(DONE)]
    assert [event.id for event in client.events("a")] == ["1", "2", "3"]
    assert [request.headers["Last-Event-ID"] for request in server.requests] == [None, None, None, "2"]
    assert len(naps) == 1


def test_a_stream_that_ends_early_is_asked_for_again(server: ScriptedServer, client: Any) -> None:
    server.answers = [RUNNING, answers.stream(sse(1, "metrics", "{}")), RUNNING, answers.stream(DONE)]
    assert [event.id for event in client.events("a")] == ["1", "3"]


def test_events_of_an_ended_job_end(server: ScriptedServer, client: Any) -> None:
    server.answers = [SUCCEEDED, answers.stream("")]
    assert list(client.events("a", after="3")) == []
    assert server.requests[1].headers["Last-Event-ID"] == "3"


def test_events_give_up_on_a_service_that_stays_away(kind: str, naps: list[float]) -> None:
    with (
        client_of(kind, f"http://127.0.0.1:{free_port()}") as client,
        pytest.raises(Unreachable, match="no answer from http"),
    ):
        list(client.events("a"))
    assert len(naps) == MAX_RECONNECTS
    assert 5 < sum(naps) < 30


# ---- jobs


def test_train_follows_the_run_to_its_end(server: ScriptedServer, client: Any) -> None:
    server.answers = [QUEUED, RUNNING, answers.stream(sse(2, "metrics", '{"epoch": 1}') + DONE), SUCCEEDED]
    seen: list[Event] = []
    job = client.train({"model": "m"}, data={"dataset": "d"}, on_event=seen.append)
    assert job["state"] == "succeeded"
    assert [event.type for event in seen] == ["metrics", "state"]
    assert orjson.loads(server.requests[0].body) == {"model": "m", "data": {"dataset": "d"}}
    assert server.requests[0].headers["Idempotency-Key"]


def test_a_run_is_sent_once_more_where_the_connection_breaks(
    server: ScriptedServer, client: Any, naps: list[float]
) -> None:
    """As the same run; where it breaks again, that is said."""
    server.answers = [answers.broken_stream(""), QUEUED]
    assert client.submit(model="m")["id"] == "a"
    first, second = server.requests
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]
    assert first.body == second.body
    server.answers = [answers.broken_stream(""), answers.broken_stream("")]
    with pytest.raises(Unreachable):
        client.submit(model="m")
    assert len(naps) == 2


def test_train_raises_for_a_run_without_a_model(server: ScriptedServer, client: Any) -> None:
    ended = sse(3, "state", '{"state": "failed"}')
    job = {"id": "a", "state": "failed", "terminal": True, "error": {"code": "diverged", "detail": "the loss …"}}
    server.answers = [QUEUED, RUNNING, answers.stream(ended), answers.json(job)]
    with pytest.raises(JobFailed, match="the loss …") as caught:
        client.train(model="m")
    assert caught.value.code == "diverged"
    assert caught.value.job == job


def test_lists_go_through_all_pages(server: ScriptedServer, client: Any) -> None:
    server.answers = [
        answers.json({"data": [{"id": 1}, {"id": 2}], "next": "x y"}),
        answers.json({"data": [{"id": 3}], "next": None}),
    ]
    assert [job["id"] for job in client.jobs(state="queued")] == [1, 2, 3]
    assert [request.path for request in server.requests] == ["/jobs?state=queued", "/jobs?state=queued&after=x+y"]


# ---- requests and errors


def test_a_table_s_answer_that_breaks_off_says_where_the_reason_is(server: ScriptedServer, client: Any) -> None:
    server.answers = [answers.broken_stream("prediction\n1\n")]
    with pytest.raises(BrokenOff, match=r"can't be predicted, the service's log .* the request_id r$") as caught:
        list(client.predict_table("m", b"x\n1\n?\n", "text/csv"))
    assert caught.value.request_id == "r"


def test_rows_go_as_json(server: ScriptedServer, client: Any) -> None:
    for inputs in ([[1, None]], [[1, float("nan")]], np.array([[1, None]], dtype=object)):
        server.answers = [answers.json({"predictions": []}), answers.json({"predictions": []})]
        server.requests.clear()
        client.predict("m", inputs)
        client.predict("m", inputs, version="champion")
        first, second = (orjson.loads(request.body) for request in server.requests)
        assert first == {"model": "m", "inputs": [[1, None]]}
        assert second == {"model": "m", "version": "champion", "inputs": [[1, None]]}
        assert server.requests[0].headers["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (np.arange(6.0).reshape(2, 3)[:, ::2], [[0.0, 2.0], [3.0, 5.0]]),
        (pl.DataFrame({"a": [1, None], "b": ["x", "y"]}), [{"a": 1, "b": "x"}, {"a": None, "b": "y"}]),
        (pl.Series([1, 2]), [1, 2]),
        (Path("/somewhere"), "/somewhere"),
        (Decimal("1.5"), 1.5),
        ({0: 1.0, 1: 5.0}, {"0": 1.0, "1": 5.0}),
    ],
)
def test_specs_may_hold_arrays_and_frames(value: Any, sent: Any) -> None:
    assert orjson.loads(json_body({"value": value})) == {"value": sent}


def test_what_no_header_can_hold_is_said(server: ScriptedServer, client: Any) -> None:
    for key in ("ü", "a\nb"):
        with pytest.raises(ClientError, match="can't be sent as X-Routing-Key: only printable ASCII can"):
            client.predict("m", [[1]], routing_key=key)
        with pytest.raises(ClientError, match="can't be sent as Idempotency-Key"):
            client.submit(model="m", idempotency_key=key)
    assert not server.requests
    server.answers = [answers.json({"predictions": []})]
    client.predict("m", [[1]], routing_key=7)
    assert server.requests[0].headers["X-Routing-Key"] == "7"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_of_any_kind_are_sent(server: ScriptedServer, client: Any, kind: Any) -> None:
    server.answers = [answers.json({})]
    client.upload_dataset("few", kind(b"x,y\n1,2\n"))
    assert server.requests[0].body == b"x,y\n1,2\n"


def test_records_of_pandas_say_what_is_missing() -> None:
    pandas = pytest.importorskip("pandas")
    times = pandas.Series([pandas.Timestamp("2024-01-02T03:04:05"), pandas.NaT])
    frame = pandas.DataFrame({"count": pandas.Series([1, None], dtype="Int64"), "when": times})
    sent = orjson.loads(json_body({"inputs": frame.to_dict("records")}))["inputs"]
    assert sent == [{"count": 1, "when": "2024-01-02T03:04:05"}, {"count": None, "when": None}]


@pytest.mark.parametrize("value", [{1, 2}, (number for number in (1, 2)), object()])
def test_what_has_no_form_in_json_is_not_sent_as_text(value: Any) -> None:
    with pytest.raises(TypeError, match=f"not JSON serializable: {type(value).__name__}"):
        json_body({"inputs": value})


def test_an_address_or_a_key_that_can_be_none_is_said(kind: str) -> None:
    for url, key, said in (
        ("http://localhost:x", None, "no address"),
        ("localhost:8000", None, "'localhost:8000' is no address of a service: one begins with http:// or https://"),
        ("127.0.0.1:8000", None, "begins with http://"),
        ("http://localhost", "schlüssel", "ASCII"),
    ):
        with pytest.raises(ClientError, match=said), client_of(kind, url, key):
            pass


def test_a_key_may_come_from_a_file_with_a_line_break(server: ScriptedServer, kind: str) -> None:
    server.answers = [answers.json({})]
    with client_of(kind, server.url, "secret\n") as client:
        client.info()
    assert server.requests[0].headers["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, BadRequest), (422, BadRequest), (401, Unauthorized), (403, Unauthorized), (404, NotFound), (409, Conflict),
     (429, Overloaded), (503, Overloaded), (500, ApiError)],
)  # fmt: skip
def test_problems_become_typed_errors(server: ScriptedServer, client: Any, status: int, error: type[ApiError]) -> None:
    faults = [{"pointer": "/data/target", "detail": "there is no such column"}]
    content = {"code": "unknown_column", "detail": "no column", "errors": faults}
    server.answers = [answers.problem(status, content, X_Request_ID="r1", Retry_After="7")]
    with pytest.raises(ApiError, match="no column") as caught:
        client.model("m")
    assert type(caught.value) is error
    assert (caught.value.status, caught.value.code, caught.value.request_id) == (status, "unknown_column", "r1")
    assert caught.value.faults[0].pointer == "/data/target"
    assert str(caught.value) == caught.value.detail + " (at /data/target)"
    assert caught.value.retry_after_seconds == 7


def test_an_answer_that_is_not_the_service_s_own(server: ScriptedServer, client: Any) -> None:
    server.answers = [lambda handler: handler.send(502, b"<html>", Content_Type="text/html")]
    with pytest.raises(ApiError, match="502 Bad Gateway") as caught:
        client.info()
    assert caught.value.code == "http_error"


def test_an_answer_that_is_no_json(server: ScriptedServer, client: Any) -> None:
    """As of another web server: a page, or a way to elsewhere."""
    server.answers = [lambda handler: handler.send(200, b"<html>", Content_Type="text/html")]
    with pytest.raises(ClientError, match="is a Gradserve service there"):
        client.info()
    server.answers = [lambda handler: handler.send(307, b"", Location="https://elsewhere")]
    with pytest.raises(ApiError, match="307 Temporary Redirect"):
        client.info()


def test_versions_beside_an_alias_may_be_numbers(server: ScriptedServer, client: Any) -> None:
    server.answers = [answers.json({})]
    client.set_alias("m", "live", 1, canary={"version": 2, "percent": 10}, shadow={"version": 3})
    expected = {"version": "1", "canary": {"version": "2", "percent": 10}, "shadow": {"version": "3"}}
    assert orjson.loads(server.requests[0].body) == expected


def test_versions_may_be_numbers(server: ScriptedServer, client: Any) -> None:
    server.answers = [answers.json({"name": "m"}), answers.json({}), answers.json({})]
    client.model("m", 2)
    client.set_alias("m", "live", 2)
    client.predict("m", [[1]], 2)
    assert server.requests[0].path == "/models/m/versions/2"
    assert [orjson.loads(request.body)["version"] for request in server.requests[1:]] == ["2", "2"]


def test_a_version_without_a_name_is_not_the_whole_model(server: ScriptedServer, client: Any) -> None:
    server.answers = [answers.problem(404, {"code": "not_found", "detail": "there is no such address"})]
    with pytest.raises(NotFound):
        client.delete_model("m", "")
    assert server.requests[0].path == "/models/m/versions/"


def test_tables_that_are_none_are_refused_at_once(client: Any) -> None:
    for source in ([{"a": 1}], {"a": [1]}, np.ones((2, 2)), io.StringIO("a\n1\n")):
        with pytest.raises(TypeError, match="takes a frame, the path of a file, or bytes, not a "):
            client.upload_dataset("d", source)


@pytest.mark.parametrize("num_bytes", [BLOCK_BYTES + 1, 3 * BLOCK_BYTES])
def test_a_file_that_changes_while_it_is_sent_is_not_taken_for_whole(
    server: ScriptedServer, client: Any, tmp_path: Path, num_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, before = tmp_path / "rows.csv", b"1" * (2 * BLOCK_BYTES)
    path.write_bytes(before)
    open_file = Path.open

    def change_and_open(self: Path, *arguments: Any) -> Any:
        os.truncate(self, num_bytes)
        return open_file(self, *arguments)

    monkeypatch.setattr(Path, "open", change_and_open)
    server.answers = [answers.json({})]
    with pytest.raises(ClientError, match=rf"rows.csv had {len(before)} bytes, and was changed while they were sent"):
        client.upload_dataset("d", path)
    assert all(len(request.body) < len(before) for request in server.requests)


def test_a_column_of_what_no_table_holds_is_named(client: Any) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": [1, 2, 3], "when": pandas.period_range("2024-01", periods=3, freq="M")})
    for call in (client.predict, client.upload_dataset):
        with pytest.raises(TypeError, match="column 'when' is of type Period, which no table holds"):
            call("m", frame)
    with pytest.raises(TypeError, match="column 'x' is of type complex"):
        client.predict("m", pl.DataFrame({"x": pl.Series([1 + 2j, None], dtype=pl.Object)}))


@pytest.mark.parametrize(("url", "num_read"), [("http://localhost", 0), ("HTTPS://localhost", 1)])
def test_whom_the_machine_trusts_is_read_only_where_it_matters(
    kind: str, url: str, num_read: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made = ssl.create_default_context, list[ssl.SSLContext]()

    def make_and_count(**options: Any) -> ssl.SSLContext:
        made.append(make(**options))
        return made[-1]

    monkeypatch.setattr(ssl, "create_default_context", make_and_count)
    with client_of(kind, url):
        assert len(made) == num_read


def test_what_is_no_file_is_written_to_as_it_is(server: ScriptedServer, client: Any, tmp_path: Path) -> None:
    """A link stays one; a pipe is not replaced by a file."""
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    server.answers = [lambda handler: handler.send(200, b"{}")] * 2
    client.download("m", "1", "config.json", tmp_path / "link")
    client.download("m", "1", "config.json", tmp_path / "pipe")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"{}"
    assert (tmp_path / "pipe").is_fifo()
    assert os.read(reader, 10) == b"{}"
    os.close(reader)
    assert {path.name for path in tmp_path.iterdir()} == {"link", "file", "pipe"}


def test_names_stay_one_part_of_the_address(server: ScriptedServer, client: Any) -> None:
    server.answers = [answers.json({})]
    client.dataset("../jobs?x=1")
    assert server.requests[0].path == "/datasets/..%2Fjobs%3Fx%3D1"


def test_ready_says_no_where_nobody_is(kind: str) -> None:
    with client_of(kind, f"http://127.0.0.1:{free_port()}") as client:
        assert not client.ready()


def test_both_clients_have_every_call() -> None:
    """Under one name each, with one signature and one docstring."""
    calls = {name for name in dir(AsyncClient) if not name.startswith("_")}
    assert calls == {name for name in dir(Client) if not name.startswith("_")}
    for name in calls - {"base_url"}:
        theirs = [getattr(client, name) for client in (AsyncClient, Client)]
        assert len({(str(signature(method)), method.__doc__) for method in theirs}) == 1, name


def test_an_iterator_that_is_left_early_lets_go_of_its_connection(server: ScriptedServer, client: Any) -> None:
    server.answers = [RUNNING, answers.stream(sse(1, "metrics", "{}") + DONE), answers.json({})]
    events = client.events("a")
    assert next(events).id == "1"
    events.close()
    assert client.info() == {}


def test_a_coroutine_can_only_be_awaited_where_there_is_a_loop(server: ScriptedServer) -> None:
    async def watch(event: Event) -> None:
        await asyncio.sleep(0)
        seen.append(event.type)

    seen: list[str] = []
    script = [QUEUED, RUNNING, answers.stream(sse(2, "metrics", '{"epoch": 1}') + DONE), SUCCEEDED]
    server.answers = list(script)
    with client_of("asyncio", server.url) as client:
        client.train(model="m", on_event=watch)
    assert seen == ["metrics", "state"]
    server.answers = list(script)
    with Client(server.url) as client, pytest.raises(TypeError, match="a coroutine waits"):
        client.train(model="m", on_event=watch)


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'pandas', 'polars', 'numpy', 'fastapi', 'sqlalchemy'}"
    code = f"import sys, app.client; sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
