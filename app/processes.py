"""API processes, one or several behind one port, as uvicorn runs them; at their end nobody is left waiting.

A connection that the system has made and no process has accepted is reset when its listener is closed. So whoever comes
once the end has begun is turned away, while those who came before are accepted; then the listeners are closed.
"""

import asyncio
import ctypes
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

PAUSE_SECONDS = 0.05  # in which connections under way are made, accepted and known to their process
ACCEPT_SECONDS = 5.0  # for processes that hang

SO_ATTACH_FILTER = 26  # asm-generic/socket.h
DROPS_SYN = [  # linux/filter.h: code, jumps if true and if false, constant. A packet begins with its TCP header
    (0x30, 0, 0, 13),  # load the flags
    (0x54, 0, 0, 0x12),  # those of SYN and ACK
    (0x15, 0, 1, 0x02),  # is it SYN alone, which asks for a connection?
    (0x06, 0, 0, 0),  # then none of it passes
    (0x06, 0, 0, 0xFFFFFFFF),  # else all of it
]


def turn_away(listeners: Sequence[socket.socket]) -> None:
    """Let nobody connect any more; return once all who had connected are accepted.

    Who tries gets no answer, tries again after a second, and finds the port closed.
    """
    steps = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in DROPS_SYN))
    program = struct.pack("HP", len(DROPS_SYN), ctypes.addressof(steps))
    ready = select.poll()
    for listener in listeners:
        try:
            listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        except OSError:  # a system without such filters: at most one waits, who may be reset
            listener.listen(0)
        ready.register(listener, select.POLLIN)
    end = time.monotonic() + ACCEPT_SECONDS
    time.sleep(PAUSE_SECONDS)
    while ready.poll(0) and time.monotonic() < end:
        time.sleep(PAUSE_SECONDS)


class Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if sockets is None:  # they are not shared
            listeners = [listener for server in self.servers for listener in server.sockets]
            own = [socket.socket(fileno=os.dup(listener.fileno())) for listener in listeners]
            await asyncio.to_thread(turn_away, own)
            await asyncio.sleep(PAUSE_SECONDS)  # the last of them, too, is one of the server's connections
            for listener in own:
                listener.close()
        await super().shutdown(sockets)


class Processes(Multiprocess):
    def terminate_all(self) -> None:
        turn_away(self.sockets)
        for listener in self.sockets:
            listener.close()
        super().terminate_all()


def run(config: uvicorn.Config) -> None:
    """Until they are asked to end."""
    if config.workers > 1:
        Processes(config, sockets=[config.bind_socket()]).run()
        return
    server = Server(config)
    with suppress(KeyboardInterrupt):  # as which Ctrl-C is raised again after the end
        server.run()
    if not server.started:
        sys.exit(STARTUP_FAILURE)
