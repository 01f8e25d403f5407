"""Traces, sent to a collector that speaks OTLP."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from app.api.tracing import exporters
from app.storage.models import ModelStore
from tests.api.service import service
from tests.samples import publish, untrained

MODEL = untrained(pl.DataFrame({"x": [1.0, 2.0, 3.0], "y": [0.5, 1.5, 2.75]}))
PARTS = {"compute_input", "queue", "compute_infer", "compute_output"}
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(ThreadingHTTPServer):
    """Keeps the spans that it is sent, and the resources that they come from."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
        for part in sent.resource_spans:
            self.server.resources.append(attributes(part.resource))
            self.server.spans += [span for scope in part.scope_spans for span in scope.spans]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def attributes(of: Any) -> dict[str, str]:
    values = {item.key: item.value for item in of.attributes}
    return {key: value.string_value or str(value.int_value) for key, value in values.items()}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_prediction_is_a_span_with_its_parts(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    publish(ModelStore(tmp_path / "models"), MODEL, "m")
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "X-Request-ID": "traced"}
    with service(tmp_path) as client:
        body = {"model": "m", "inputs": [[1], [2]]}
        assert client.post("/predict", json=body, headers=headers).status_code == 200
        assert client.post("/predict", json={"model": "m", "inputs": [[1, 2]]}).status_code == 422
    spans = [span for span in collector.spans if span.trace_id.hex() == TRACE]
    (server,) = [span for span in spans if span.name == "POST /predict"]
    assert server.parent_span_id.hex() == SPAN
    found = attributes(server)
    assert found["http.response.status_code"] == "200"
    assert found["gradserve.request_id"] == "traced"
    assert (found["gradserve.model"], found["gradserve.version"], found["gradserve.num_rows"]) == ("m", "1", "2")
    parts = {span.name: span for span in spans if span is not server}
    assert set(parts) == PARTS
    for part in parts.values():
        assert part.parent_span_id == server.span_id
        assert server.start_time_unix_nano <= part.start_time_unix_nano <= part.end_time_unix_nano
        assert part.end_time_unix_nano <= server.end_time_unix_nano
    (refused,) = [span for span in collector.spans if attributes(span).get("http.response.status_code") == "422"]
    assert refused.trace_id.hex() != TRACE
    resource = collector.resources[0]
    assert (resource["service.name"], resource["deployment.environment"]) == ("gradserve", "test")


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, []),
        ({"OTEL_TRACES_EXPORTER": "none"}, []),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, ["otlp_proto_http"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, ["otlp_proto_http"]),
        ({"OTEL_TRACES_EXPORTER": "otlp, console"}, ["otlp_proto_http", "console"]),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ["otlp_proto_grpc"]),
    ],
)
def test_the_environment_says_where_traces_go(environment: dict[str, str], names: list[str]) -> None:
    assert exporters(environment) == names


def test_what_is_not_installed_is_said_and_the_service_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "pigeon")
    with service(tmp_path) as client:
        assert client.get("/readyz").status_code == 200
    assert "pigeon" in caplog.text
    assert "gradserve[otel]" in caplog.text


def test_without_an_exporter_nothing_of_it_is_imported() -> None:
    check = (
        "import sys; from app.main import app; app.build_middleware_stack(); "
        "assert app.state.tracing is None; sys.exit(any(name.startswith('opentelemetry.sdk') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", check], env={}, check=False).returncode == 0
