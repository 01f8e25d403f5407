"""OpenTelemetry traces: a span for each request, and in it one for each part of a prediction.

On where the environment names an exporter, as https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables
has it, and the extra `otel` is installed; otherwise none of this is in the way of a request.
"""

import os
import time
from collections.abc import Mapping
from importlib.metadata import entry_points

import structlog
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import __version__
from app.serving.statistics import Request

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}

log = structlog.get_logger("gradserve.tracing")


def exporters(environment: Mapping[str, str]) -> list[str]:
    """Names of the exporters that the environment asks for; none where it asks for no traces."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return []
    default = "otlp" if any(environment.get(name) for name in ENDPOINTS) else "none"
    names = environment.get("OTEL_TRACES_EXPORTER") or default
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    otlp = PROTOCOLS.get(protocol or "http/protobuf", "otlp_proto_http")
    return [otlp if name == "otlp" else name for name in map(str.strip, names.split(",")) if name not in ("", "none")]


def install(app: FastAPI) -> None:
    """Put a span around all that is done for a request, where the environment asks for it when the service starts."""
    build = app.build_middleware_stack

    def build_traced() -> ASGIApp:
        tracing = app.state.tracing = tracing_of(os.environ)
        return build() if tracing is None else Traced(build(), tracing)

    app.build_middleware_stack = build_traced  # type: ignore[method-assign]


def tracing_of(environment: Mapping[str, str]) -> "Tracing | None":
    """Tracing as the environment asks for it, or None."""
    names = exporters(environment)
    if not names:
        return None
    try:
        return Tracing(names)
    except (ImportError, LookupError) as error:
        log.error("there are no traces: install gradserve[otel]", exporters=names, error=str(error))
        return None


class Tracing:
    """Holds the provider that sends spans away, in batches and in a thread of its own.

    Raises:
        ImportError, LookupError: the SDK or an exporter is not installed.
    """

    def __init__(self, names: list[str]) -> None:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        ours = Resource({"service.name": "gradserve", "service.version": __version__, "process.pid": os.getpid()})
        self._provider = TracerProvider(resource=Resource.create().merge(ours).merge(OTELResourceDetector().detect()))
        for name in names:
            found = list(entry_points(group="opentelemetry_traces_exporter", name=name))
            if not found:
                raise LookupError(f"there is no exporter {name!r}")
            self._provider.add_span_processor(BatchSpanProcessor(found[0].load()()))
        self.tracer = self._provider.get_tracer("gradserve", __version__)

    def record(self, request: Request) -> None:
        """Spans of a prediction's parts, in that of its request."""
        from opentelemetry import trace

        trace.get_current_span().set_attributes(
            {
                "gradserve.model": request.model.name,
                "gradserve.version": request.model.version,
                "gradserve.num_rows": request.num_rows,
            }
        )
        since = time.time_ns() - time.perf_counter_ns()
        for part, ended_ns, ns in request.timeline or ():
            self.tracer.start_span(part, start_time=since + ended_ns - ns).end(since + ended_ns)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


class Traced:
    """Goes on with the trace of a caller who sends `traceparent`."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self.app = app
        self._tracer = tracing.tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        from opentelemetry import propagate
        from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id

        sent = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        with self._tracer.start_as_current_span(
            scope["method"], context=propagate.extract(sent), kind=SpanKind.SERVER
        ) as span:

            async def send_watched(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(Status(StatusCode.ERROR))
                await send(message)

            with structlog.contextvars.bound_contextvars(trace_id=format_trace_id(span.get_span_context().trace_id)):
                await self.app(scope, receive, send_watched)
            route = getattr(scope.get("route"), "path", None)
            span.update_name(f"{scope['method']} {route}" if route else scope["method"])
            attributes = {
                "http.request.method": scope["method"],
                "http.route": route,
                "url.path": scope["path"],
                "gradserve.request_id": scope.get("request_id"),
            }
            span.set_attributes({name: value for name, value in attributes.items() if value is not None})
