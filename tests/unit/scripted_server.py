"""A server on a real socket that answers as a test tells it to: for the faults that a good service doesn't show."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import orjson

Answer = Callable[["Handler"], None]


class Request(NamedTuple):
    path: str
    headers: Message
    body: bytes


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "ScriptedServer"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(Request(self.path, self.headers, body))
        self.server.answers.pop(0)(self)

    do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 (what the base class calls)

    def log_message(self, *_: Any) -> None:
        pass

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class ScriptedServer(ThreadingHTTPServer):
    """Gives `answers` one after the other, and keeps the `requests` that they were given to."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Answer] = []
        self.requests: list[Request] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def json(content: Any, status: int = 200, **headers: str) -> Answer:
    return lambda handler: handler.send(status, orjson.dumps(content), Content_Type="application/json", **headers)


def problem(status: int, content: Any, **headers: str) -> Answer:
    given = {"Content_Type": "application/problem+json", **headers}
    return lambda handler: handler.send(status, orjson.dumps(content), **given)


def broken_stream(text: str) -> Answer:
    """Server-sent events, and then the connection is cut in the middle of the body."""

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("X-Request-ID", "r")
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        handler.wfile.write(text.encode())
        handler.close_connection = True

    return answer


def stream(text: str) -> Answer:
    return lambda handler: handler.send(200, text.encode(), Content_Type="text/event-stream")
