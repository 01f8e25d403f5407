"""Events of a job, as they come over the wire."""

from collections.abc import Iterator
from typing import NamedTuple

import orjson

from app.client.errors import Json

TERMINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})


class Event(NamedTuple):
    """What happened to a job: `type` is state, progress, metrics or warning; `id` counts up."""

    id: str
    type: str
    data: Json

    @property
    def terminal(self) -> bool:
        return self.type == "state" and self.data["state"] in TERMINAL_STATES


class EventParser:
    """Server-sent events out of the blocks of a stream (WHATWG HTML §9.2.6), wherever it was cut."""

    def __init__(self) -> None:
        self._rest = b""
        self._fields = {"id": "", "event": "message", "data": ""}

    def feed(self, block: bytes) -> Iterator[Event]:
        """The events that are whole with this block."""
        # httpx's iter_lines also splits at U+2028 and its like, which may stand inside JSON.
        *lines, self._rest = (self._rest + block).split(b"\n")
        for line in lines:
            if text := line.decode().removesuffix("\r"):
                name, _, value = text.partition(":")
                self._fields[name] = value.removeprefix(" ")
            elif self._fields["data"]:
                yield Event(self._fields["id"], self._fields["event"], orjson.loads(self._fields["data"]))
                self._fields |= {"event": "message", "data": ""}
