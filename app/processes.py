"""API processes, one or several behind one port, as uvicorn runs them; at their end nobody is left waiting.

A connection that the system has made and no process has accepted is reset when the port is closed. So their queue is
closed first: by then at most one is left in it, and who comes later finds the port closed and knows what that means.
"""

import asyncio
import os
import sys
from contextlib import suppress
from socket import socket

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess


class Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        if sockets is None:  # they are not shared
            for listener in [listener for server in self.servers for listener in server.sockets]:
                with socket(fileno=os.dup(listener.fileno())) as own:
                    own.listen(0)
            await asyncio.sleep(0)
            await asyncio.sleep(0)  # the loop has accepted them
        await super().shutdown(sockets)


class Processes(Multiprocess):
    """When they end, nobody can connect any more: who did would wait for an answer up to the end, and get none."""

    def terminate_all(self) -> None:
        for listener in self.sockets:
            listener.listen(0)
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
