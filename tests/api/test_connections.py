"""Connections at the end of the service."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from app.api import connections
from app.api.connections import Connection, Limits
from tests.waiting import until

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class NoHotPath:
    def head(self, data: bytes, server: object) -> None:
        return None


async def hello(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        scope["state"] |= {"connection_limits": Limits(60, 60, 0, 100), "hot_path": NoHotPath()}
        for part in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{part}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


@contextmanager
def serving() -> Iterator[tuple[uvicorn.Server, socket.socket]]:
    """A server, and a connection on which something was asked and answered; then nobody else can connect."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(hello, http=Connection, ws="none", log_level="error"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        with socket.create_connection(listener.getsockname(), timeout=20) as connection:
            connection.sendall(REQUEST)
            assert connection.recv(65536).endswith(b"hello")
            server.should_exit = True
            until(lambda: listener.fileno() == -1)  # it has been closed
            yield server, connection
        thread.join(20)
        assert not thread.is_alive()


def heard(connection: socket.socket) -> bytes:
    """Up to the end."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def test_what_is_asked_before_a_client_can_know_of_the_end_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LINGER_SECONDS", 20.0)
    with serving() as (_, connection):
        connection.sendall(REQUEST)
        answer = heard(connection)
    assert answer.endswith(b"hello")
    assert b"connection: close" in answer


def test_who_asks_nothing_more_holds_up_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.01)
    with serving() as (_, connection):
        assert heard(connection) == b""
