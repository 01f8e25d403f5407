"""How many connections a process may have, and how what they send leaves."""

import asyncio
import resource

import pytest

from app.api.connections import COPIED_BYTES, RESERVED_FILES, Corked, max_connections


@pytest.mark.parametrize(("files", "wanted", "allowed"), [(1024, 10_000, 768), (20_000, 10_000, 10_000), (100, 5, 1)])
def test_connections_leave_files_for_everything_else(
    monkeypatch: pytest.MonkeyPatch, files: int, wanted: int, allowed: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert max_connections(wanted) == allowed
    assert files > RESERVED_FILES or allowed == 1


class Recorder(asyncio.Transport):
    """Notes what each call of the system would send."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.num_copies = 0
        self.closed = False

    def is_closing(self) -> bool:
        return self.closed

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed, "which the loop's own refuse"
        self.sent.append(bytes(data))
        self.num_copies += 1

    def writelines(self, parts: object) -> None:
        self.sent.append(b"".join(parts))  # type: ignore[call-overload]

    def get_write_buffer_size(self) -> int:
        return 100

    def close(self) -> None:
        self.sent.append(b"closed")
        self.closed = True


def corked(*writes: bytes, turn: bool = False, close: bool = False) -> tuple[Recorder, int]:
    """What was sent of these writes in a turn of the loop (or after it), and how many bytes waited at its end."""
    recorder = Recorder()

    async def run() -> int:
        transport = Corked(recorder, asyncio.get_running_loop())
        for data in writes:
            transport.write(data)
        if turn:
            await asyncio.sleep(0)
        if close:
            transport.close()
        return transport.get_write_buffer_size()

    return recorder, asyncio.run(run())


def test_headers_and_body_leave_together() -> None:
    recorder, waiting = corked(b"headers", b"body", b"headers", b"body")
    assert (recorder.sent, waiting) == ([b"headersbody", b"headersbody"], 100)


def test_headers_without_a_body_leave_at_the_end_of_the_turn() -> None:
    assert corked(b"headers")[1] == 107
    recorder, waiting = corked(b"headers", turn=True)
    assert (recorder.sent, waiting) == ([b"headers"], 100)
    assert corked(b"headers", b"")[0].sent == [b"headers"]


def test_nothing_is_kept_at_the_end() -> None:
    assert corked(b"headers", close=True)[0].sent == [b"headers", b"closed"]
    assert corked(b"", close=True)[0].sent == [b"closed"]


def test_what_waits_for_a_client_that_has_gone_goes_nowhere() -> None:
    recorder = Recorder()

    async def run() -> None:
        transport = Corked(recorder, asyncio.get_running_loop())
        transport.write(b"headers")
        recorder.close()
        transport.close()

    asyncio.run(run(), debug=True)
    assert recorder.sent == [b"closed", b"closed"]


def test_a_large_body_is_not_copied() -> None:
    body = bytes(COPIED_BYTES)
    recorder, _ = corked(b"headers", body)
    assert (recorder.sent, recorder.num_copies) == ([b"headers" + body], 0)
