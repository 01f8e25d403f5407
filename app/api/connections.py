"""Connections, beneath every route: whoever keeps one waiting, or open for nothing, is let go.

uvicorn waits for ever for headers, for bodies and for readers of its answers, and holds as many headers as come. What a
connection waits for is looked at a few times in each of the limits; a client that is slow but lives loses nothing.
"""

import asyncio
import resource
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, Literal, NamedTuple

import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.guard import ON_ALL
from app.api.hot_path import HotPath
from app.api.ledger import request_id_of
from app.api.problems import MEDIA_TYPE, Problem

LOOKS = 4  # in the shortest of the limits
MAX_HEADER_BYTES = 2**16
BYTES_PER_BODY_BYTE = 8  # a body in chunks of a byte each needs six
COPIED_BYTES = 2**16  # of a part that is larger, no copy is made to send it with the headers
LINGER_SECONDS = 1.0  # at the end of the service: for requests that were sent before their client could know
RESERVED_FILES = 256  # for the database, the disk and the workers

log = structlog.get_logger()


@dataclass(frozen=True)
class Limits:
    """`stall_seconds`: in any such time, a body or an answer must get on at `min_bytes_per_second`; 0: it need not."""

    header_seconds: float
    stall_seconds: float
    min_bytes_per_second: float
    max_connections: int

    @property
    def look_seconds(self) -> float:
        return min(self.header_seconds, self.stall_seconds or self.header_seconds) / LOOKS


def max_connections(wanted: int) -> int:
    """As many as are wanted, if the system lets this process open so many files."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVED_FILES
    if allowed < wanted:
        log.warning("the limit of open files (ulimit -n) allows fewer connections", allowed=allowed, wanted=wanted)
    return min(wanted, max(1, allowed))


class Corked:
    """A transport on which an answer's headers wait for its first part, or for the turn's end.

    They leave together, by one call of the system and in one packet, where uvicorn alone makes two.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self.held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self.held:
            held, self.held = self.held, b""
            if len(data) < COPIED_BYTES:
                self._transport.write(held + data)
            else:
                self._transport.writelines((held, data))
        elif data:
            self.held = data
            self._loop.call_soon(self._release)

    def _release(self) -> None:
        held, self.held = self.held, b""
        if held and not self._transport.is_closing():  # the client may have gone in this turn
            self._transport.write(held)

    def close(self) -> None:
        self._release()
        self._transport.close()

    def get_write_buffer_size(self) -> int:
        return len(self.held) + self._transport.get_write_buffer_size()


Awaited = Literal["headers", "body", "reader"]


class Wait(NamedTuple):
    """`step` is that of the connection; `amount` grows as the client gets on."""

    what: Awaited
    step: int
    amount: int
    since: float


class Connection(HttpToolsProtocol):
    """uvicorn's, with limits, which the application's lifespan has put into its state."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._limits: Limits = self.app_state["connection_limits"]
        self._hot_path: HotPath = self.app_state["hot_path"]
        self._kept = b""  # what has come of a request that may be for the hot path
        self._is_ahead = False  # a request is on the hot path
        self._idle_since = 0.0
        self._wait: Wait | None = None
        self._step = 0  # goes on with each request, its headers' end, and each time its reader falls behind
        self._in_headers = False
        self._num_body_bytes = 0
        self._num_other_bytes = 0  # that have come since the request's first ones, and are none of its body
        self._is_last = False  # whatever is asked next is the last that is answered here

    # ---- what uvicorn is told

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._socket, self._corked = transport, Corked(transport, self.loop)
        self.transport = self._corked  # type: ignore[assignment]
        self._timer = self.loop.call_later(self._limits.look_seconds, self._look)
        if len(self.connections) > self._limits.max_connections:
            self._answer(503, "overloaded", "the service has as many connections as it may; try again")

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._kept:
            data, self._kept = self._kept + data, b""
        if self._is_ahead:  # what was sent without waiting for the answer is looked at after it
            self._kept = data
        elif not (self._is_between_requests() and self._take(data)):
            self._pass_on(data)

    def _pass_on(self, data: bytes) -> None:
        """The general way."""
        self._num_other_bytes += len(data)
        super().data_received(data)
        if self._num_other_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self._refuse(431, "headers_too_large", f"a request's headers may have {MAX_HEADER_BYTES} bytes")

    # ---- the hot path

    def _is_between_requests(self) -> bool:
        cycle = self.cycle
        is_done = cycle is None or (cycle.response_complete and not cycle.more_body)
        return is_done and not (self._in_headers or self._is_last or self.flow.write_paused or self._corked.held)

    def _take(self, data: bytes) -> bool:
        """Answer a request on the hot path, or keep what is not all of it yet; else return False."""
        head = self._hot_path.head(data, self.server)
        if head is None or len(data) > head.size + head.body_size:
            return False
        if len(data) < head.size + head.body_size:
            self._kept = data
            self._unset_keepalive_if_required()
            return True
        self._is_ahead = True  # at first, because the answer may come at once
        common = self.server_state.default_headers
        if not self._hot_path.begin(head, data[head.size :], common, partial(self._end_ahead, data)):
            self._is_ahead = False
            return False
        return True

    def _end_ahead(self, data: bytes, answer: bytes | None) -> None:
        self._is_ahead = False
        if self._socket.is_closing():
            return
        if answer is None:
            self._pass_on(data)
        else:
            self._socket.write(answer)
            self._idle_since = self.loop.time()
            if self.timeout_keep_alive_task is None:
                self.on_response_complete()
        if self._kept:
            self.data_received(b"")

    def timeout_keep_alive_handler(self) -> None:
        """Where the hot path has answered since the timer was set, the rest of the time is waited for."""
        rest = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if rest > 0 or self._is_ahead:
            self.timeout_keep_alive_task = self.loop.call_later(max(rest, 0), self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def _give_up_keeping(self) -> None:
        """What has been kept goes the general way, which knows how long a client may take."""
        if self._kept and not self._is_ahead:
            data, self._kept = self._kept, b""
            self._pass_on(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._step += 1
        self._in_headers = True
        self._num_body_bytes = self._num_other_bytes = 0

    def on_headers_complete(self) -> None:
        self._step += 1
        self._in_headers = False
        super().on_headers_complete()
        if self._is_last:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._num_body_bytes += len(body)
        self._num_other_bytes = max(0, self._num_other_bytes - BYTES_PER_BODY_BYTE * len(body))
        super().on_body(body)

    def shutdown(self) -> None:
        """The service ends. What is under way is answered, and so is what was sent before its client could know."""
        self._is_last = True
        self._give_up_keeping()
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False  # the answer will say so
        else:
            self.loop.call_later(LINGER_SECONDS, super().shutdown)

    def pause_writing(self) -> None:
        self._step += 1
        super().pause_writing()

    # ---- what it waits for

    def _look(self) -> None:
        self._timer = self.loop.call_later(self._limits.look_seconds, self._look)
        self._give_up_keeping()
        before, self._wait = self._wait, self._waits_for()
        now = self._wait
        if now is None or before is None or (before.what, before.step) != (now.what, now.step):
            return
        seconds = self._limits.header_seconds if now.what == "headers" else self._limits.stall_seconds
        passed = now.since - before.since
        if passed < seconds:
            self._wait = before
        elif now.what == "headers" or now.amount - before.amount < passed * self._limits.min_bytes_per_second:
            log.info("a client that took too long was let go", client=self.client, awaited=now.what)
            self._refuse(408, "request_timeout", f"the {now.what} took too long to come")

    def _waits_for(self) -> Wait | None:
        what, amount = self._awaited()
        return None if what is None else Wait(what, self._step, amount, self.loop.time())

    def _awaited(self) -> tuple[Awaited | None, int]:
        """What the client owes, if it does, and how far it has come with it."""
        cycle, can_stall = self.cycle, bool(self._limits.stall_seconds)
        if self.transport.is_closing() or self.flow.write_paused:
            return "reader" if can_stall else None, -self.transport.get_write_buffer_size()
        if cycle is None or cycle.response_complete:
            return None if self.timeout_keep_alive_task else "headers", 0
        owes_body = cycle.more_body and not (self.flow.read_paused or cycle.waiting_for_100_continue)
        return "body" if owes_body and can_stall else None, self._num_body_bytes

    # ---- the end

    def _refuse(self, status: int, code: str, detail: str) -> None:
        """Say why, where something was asked that is not being answered yet, and close."""
        is_unanswered = self._in_headers if self._is_idle else not self.cycle.response_started
        if not is_unanswered or self.transport.is_closing():
            self.transport.abort()
            return
        if not self._is_idle:  # whoever reads the body hears of it now
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._answer(status, code, detail)

    @property
    def _is_idle(self) -> bool:
        """Nothing is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def send_400_response(self, msg: str) -> None:
        """What came is no request, or stopped being one; what has been sent of an answer can't be taken back."""
        if self._is_idle or not self.cycle.response_started:
            self._answer(400, "unparseable", msg)
        else:
            self.transport.abort()

    def _answer(self, status: int, code: str, detail: str) -> None:
        headers = self.headers if self._in_headers or not self._is_idle else ()  # else they are those of before
        title, request_id = HTTPStatus(status).phrase, request_id_of(dict(headers))
        problem = Problem(title=title, status=status, detail=detail, code=code, request_id=request_id)
        content = problem.model_dump_json(exclude_none=True).encode()
        said = [
            *self.server_state.default_headers,
            *ON_ALL,
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", b"%d" % len(content)),
            (b"x-request-id", request_id.encode()),
            *([(b"retry-after", b"1")] if status == HTTPStatus.SERVICE_UNAVAILABLE else ()),
            (b"connection", b"close"),
        ]
        lines = [b"HTTP/1.1 %d %s" % (status, title.encode()), *(b"%s: %s" % each for each in said), b"", b""]
        self.transport.write(b"\r\n".join(lines) + content)
        self.transport.close()
