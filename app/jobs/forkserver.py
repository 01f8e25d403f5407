"""A process that has imported everything a run needs and forks workers, in milliseconds.

Started by `app.jobs.fleet` as `python -m app.jobs.forkserver TRAINING_MODULE FD`, where FD is a Unix stream socket on
which lines of JSON go both ways:

    <- {"ready": true}                               the imports are done
    -> {"start": WORKER, "order": {…}}  + one fd     fork; the fd is the worker's end of its channel
    <- {"started": WORKER, "pid": PID} or {"unforked": WORKER, "reason": "…"}
    -> {"kill": WORKER}
    <- {"exited": WORKER, "signal": N|null, "code": N|null}

WORKER is a number that the fleet gives it.

It stays single-threaded, runs no torch operation and makes no CUDA context, because neither survives a fork. When its
socket closes it exits, and its workers with it. Signals meant for the service (a terminal's Ctrl-C, a `systemctl
stop`) are left to the service, which ends the workers in order.
"""

import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import warnings
from contextlib import suppress
from types import ModuleType
from typing import Any

from app.jobs import worker
from app.learning.allocator import keep_heap

PR_SET_PDEATHSIG = 1
CHUNK_BYTES = 1 << 16


class ForkServer:
    def __init__(self, training: ModuleType, server: socket.socket) -> None:
        self._training = training
        self._socket = server
        self._wakeup, wakeup_writer = socket.socketpair()
        self._wakeup.setblocking(False)
        wakeup_writer.setblocking(False)
        self._wakeup_writer = wakeup_writer
        self._workers: dict[int, int] = {}  # pid -> number
        self._lines = bytearray()
        self._fds: list[int] = []  # received, and not yet given to a worker

    def serve(self) -> None:
        """Until the socket closes."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _leave_to_service)
        signal.signal(signal.SIGCHLD, _leave_to_service)  # a handler is needed for the wake-up to be written
        signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)
        self._say({"ready": True})
        while True:
            readable, _, _ = select.select([self._socket, self._wakeup], [], [])
            if self._wakeup in readable:
                self._wakeup.recv(CHUNK_BYTES)
                self._reap()
            if self._socket in readable and not self._listen():
                return

    def _listen(self) -> bool:
        data, fds, _, _ = socket.recv_fds(self._socket, CHUNK_BYTES, 16)
        self._fds += fds
        self._lines += data
        *complete, rest = self._lines.split(b"\n")
        self._lines = rest
        for line in complete:
            self._obey(json.loads(line))
        return bool(data)

    def _obey(self, message: dict[str, Any]) -> None:
        if "start" in message:
            self._start(message["start"], message["order"])
        else:
            for pid, number in self._workers.items():
                if number == message["kill"]:
                    os.kill(pid, signal.SIGKILL)  # not reaped yet, so the id is still its own

    def _start(self, number: int, order: dict[str, Any]) -> None:
        channel = self._fds.pop(0)
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:  # too many processes, or no memory
            os.close(channel)
            self._say({"unforked": number, "reason": error.strerror})
            return
        if pid == 0:
            self._become_worker(parent, channel, order)
        os.close(channel)
        self._workers[pid] = number
        self._say({"started": number, "pid": pid})

    def _become_worker(self, parent: int, channel: int, order: dict[str, Any]) -> None:
        die_with_parent(parent)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for fd in self._fds:
            os.close(fd)  # a sibling's
        for mine in (self._socket, self._wakeup, self._wakeup_writer):
            mine.close()
        os.set_inheritable(channel, False)
        worker.run(socket.socket(fileno=channel), order, self._training)

    def _reap(self) -> None:
        while self._workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            number = self._workers.pop(pid)
            self._say({"exited": number, "signal": -code if code < 0 else None, "code": code if code >= 0 else None})

    def _say(self, message: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")


def die_with_parent(parent: int) -> None:
    """Have Linux kill this process with the fork server; elsewhere the end of its channel tells it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _leave_to_service(_number: int, _frame: object) -> None:
    return


def main() -> None:
    name, fd = sys.argv[1:]
    # the threads that Python 3.12 warns of are those of libraries, started by the imports, idle, and holding no lock
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    worker.offer_to_oom_killer(worker.FORK_SERVER_SCORE)
    gc.disable()
    training = importlib.import_module(name)
    keep_heap()
    gc.collect()
    gc.freeze()  # pages of what is imported stay shared: no collection in a worker touches them
    gc.enable()
    with suppress(BrokenPipeError, ConnectionResetError):
        ForkServer(training, socket.socket(fileno=int(fd))).serve()
    os._exit(0)  # the service has gone: the workers die with this process, and it takes no time to tidy up


if __name__ == "__main__":
    main()
