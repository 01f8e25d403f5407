"""The end of API processes: who has connected is accepted, who comes later is turned away."""

import socket
import sys
import threading

import pytest

from app.processes import turn_away

SECONDS = 0.3  # on this machine a connection is made in less than one


def listening(host: str) -> socket.socket:
    try:
        return socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError:
        pytest.skip(f"this machine has no {host}")


@pytest.mark.skipif(sys.platform != "linux", reason="such filters are Linux's")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_who_had_connected_is_waited_for_and_nobody_else_connects(host: str) -> None:
    with listening(host) as listener:
        address = listener.getsockname()[:2]
        with socket.create_connection(address) as first, socket.create_connection(address) as second:
            turning = threading.Thread(target=turn_away, args=([listener],))
            turning.start()
            turning.join(SECONDS)
            assert turning.is_alive()
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    socket.create_connection(address, timeout=SECONDS)
            first.sendall(b"first")
            second.sendall(b"second")
            for sent in (b"first", b"second"):
                accepted, _ = listener.accept()
                with accepted:
                    assert accepted.recv(10) == sent
            turning.join(10 * SECONDS)
            assert not turning.is_alive()


def test_a_process_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.processes.ACCEPT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        turn_away([listener])
