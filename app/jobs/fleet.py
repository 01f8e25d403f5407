"""The workers: started through the fork server, heard through their channels, given another job, and ended."""

import itertools
import json
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import orjson
import structlog

from app.jobs.room import Needs
from app.learning.allocator import HUGE_PAGES

log = structlog.get_logger("gradserve.jobs")

CHUNK_BYTES = 1 << 18
MAX_RESTART_SECONDS = 30.0
MAX_START_SECONDS = 300.0  # torch from a cold disk takes a minute
ANSWER_SECONDS = 10.0  # a fork server that takes longer hangs
IDLE_SECONDS = 2.0  # so long a worker waits for another job

# idle OpenMP threads that spin take the cores from other jobs' threads: two jobs of two threads on two cores ran
# several times slower than one after the other
WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(eq=False)
class Worker:
    """A process that works off one job after the other.

    `idle_until`: when it is let go while it waits for one; `leaves_until`: when it has to be gone after that.
    """

    number: int
    channel: socket.socket
    lines: bytearray = field(default_factory=bytearray)
    pid: int | None = None
    idle_until: float = 0.0
    leaves_until: float = 0.0


@dataclass(eq=False)
class Run:
    """A job in a worker. `last_sign` is the monotonic time at which it was last heard of."""

    job_id: str
    needs: Needs
    worker: Worker
    last_sign: float
    told: str | None = None
    told_at: float = 0.0
    done: bool = False  # it has said how it ended, and needs only to exit
    hung: bool = False
    killed_at: float | None = None

    @property
    def pid(self) -> int | None:
        return self.worker.pid

    def excuse(self, seconds: float, now: float) -> None:
        """As `Fleet.excuse`."""
        self.last_sign = min(now, self.last_sign + seconds)
        self.told_at = min(now, self.told_at + seconds)
        if self.killed_at is not None:
            self.killed_at = min(now, self.killed_at + seconds)


class Fleet:
    """Belongs to one thread; `bell` is a socket on which others can end a `poll` early."""

    def __init__(self, training: str, bell: socket.socket) -> None:
        self._training = training
        self._selector = selectors.DefaultSelector()
        self._bell = bell
        self._selector.register(bell, selectors.EVENT_READ)
        self._numbers = itertools.count(1)
        self.runs: dict[int, Run] = {}  # by the number of their worker
        self._workers: dict[int, Worker] = {}
        self._idle: list[Worker] = []  # who wait for a job, the last one last
        self._leaving: list[Worker] = []  # who were let go, the last one last
        self.ready = False
        self._process: subprocess.Popen[bytes] | None = None
        self._server: socket.socket
        self._lines = bytearray()
        self._start_at, self._pause_seconds = 0.0, 1.0
        self._start_server()

    # ---- the fork server

    def _start_server(self) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(ANSWER_SECONDS)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 (our own module)
                [sys.executable, "-m", "app.jobs.forkserver", self._training, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a terminal's Ctrl-C is for the service alone
                env={
                    **HUGE_PAGES,
                    **os.environ,
                    **WAITING,
                    "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path),
                },
            )
        self._server, self._start_at = ours, time.monotonic()
        self._selector.register(ours, selectors.EVENT_READ)

    def _hear_server(self) -> Iterator[tuple[Run, dict[str, Any]]]:
        data = _receive(self._server)
        if data == b"":
            yield from self._lose_server()
        for line in _lines(self._lines, data):
            message = json.loads(line)
            if "ready" in message:
                self.ready, self._pause_seconds = True, 1.0
            elif "started" in message:
                self._workers[message["started"]].pid = message["pid"]
            elif "unforked" in message:
                yield from self._end(message["unforked"], {"type": "unforked", "reason": message["reason"]})
            else:
                yield from self._end(message["exited"], _exited(message["signal"], message["code"]))

    def _lose_server(self) -> Iterator[tuple[Run, dict[str, Any]]]:
        """It has died, and its workers with it; the next one starts after a pause that grows while none gets ready."""
        log.error("the fork server died and is started again", after_seconds=0 if self.ready else self._pause_seconds)
        self._start_at = time.monotonic() + (0 if self.ready else self._pause_seconds)
        self._pause_seconds = min(2 * self._pause_seconds, MAX_RESTART_SECONDS)
        self._stop_server()
        for number in list(self._workers):
            yield from self._end(number, _exited(None, None))

    def _kill_server(self) -> None:
        if self._process is not None:
            log.error("the fork server hangs and is killed", pid=self._process.pid)
            self._process.kill()

    def _stop_server(self) -> None:
        was_ready, self.ready = self.ready, False
        self._lines.clear()
        self._selector.unregister(self._server)
        self._server.close()
        if self._process is not None:
            if not was_ready:
                self._process.kill()  # it still imports, has no workers, and would hear of the end only afterwards
            try:
                self._process.wait(ANSWER_SECONDS)
            except subprocess.TimeoutExpired:
                self._kill_server()
                self._process.wait()
            self._process = None

    def _say(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        line = orjson.dumps(message, option=orjson.OPT_APPEND_NEWLINE)
        try:
            sent = socket.send_fds(self._server, [line], fds) if fds else 0
            self._server.sendall(line[sent:])
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has died, as the next poll will find
        except TimeoutError:
            self._kill_server()

    # ---- workers

    def start(self, job_id: str, needs: Needs, order: dict[str, Any]) -> Run:
        """A job in a worker that waits for one, or in a new one. Only while `ready`."""
        worker = self._employed(order) or self._forked(order)
        run = self.runs[worker.number] = Run(job_id, needs, worker, time.monotonic())
        return run

    def _employed(self, order: dict[str, Any]) -> Worker | None:
        line = orjson.dumps(order, option=orjson.OPT_APPEND_NEWLINE)
        while self._idle:
            worker = self._idle.pop()
            with suppress(OSError):  # it has died, or its channel has no room for the order
                if worker.channel.send(line) == len(line):
                    return worker
            self._let_go(worker)
        return None

    def _forked(self, order: dict[str, Any]) -> Worker:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        worker = Worker(next(self._numbers), ours)
        self._workers[worker.number] = worker
        self._selector.register(ours, selectors.EVENT_READ, worker)
        with theirs:
            self._say({"start": worker.number, "order": order}, [theirs.fileno()])
        return worker

    def keep(self, run: Run) -> None:
        """Its worker has said that it stays: it waits for another job, unless it has died or is to be killed."""
        if run.killed_at is None and self.runs.get(run.worker.number) is run:
            del self.runs[run.worker.number]
            run.worker.idle_until = time.monotonic() + IDLE_SECONDS
            self._idle.append(run.worker)

    def _let_go(self, worker: Worker) -> None:
        """Through the fork server; one that hangs is found by `end_hung_server`."""
        worker.leaves_until = time.monotonic() + ANSWER_SECONDS
        self._leaving.append(worker)
        self._say({"kill": worker.number})

    def tell(self, run: Run, request: str) -> None:
        """`pause` or `cancel`."""
        run.told, run.told_at = request, time.monotonic()
        with suppress(BrokenPipeError, ConnectionResetError):  # it has ended, as the next poll will find
            run.worker.channel.send(request.encode() + b"\n")

    def kill(self, run: Run) -> None:
        """Through the fork server. One that does not do it in time hangs itself, and is killed with all its workers."""
        if run.killed_at is None:
            run.killed_at = time.monotonic()
            self._say({"kill": run.worker.number})
        elif time.monotonic() > run.killed_at + ANSWER_SECONDS:
            self._kill_server()

    def excuse(self, seconds: float, now: float) -> None:
        """So much time up to now does not count: nobody listened."""
        for run in self.runs.values():
            run.excuse(seconds, now)
        for worker in self._leaving:
            worker.leaves_until += seconds

    def end_hung_server(self) -> None:
        """One that did not end in time whom it was to let go, with all its workers."""
        if self._leaving and time.monotonic() > self._leaving[0].leaves_until:
            self._kill_server()

    def poll(self, timeout: float) -> Iterator[tuple[Run, dict[str, Any]]]:
        """What the workers say, after at most `timeout` seconds.

        The last message of each is {"type": "exited", "signal", "code"}, with neither where the fork server died, or
        {"type": "unforked", "reason"} where the system started no process.
        """
        if self._process is None and time.monotonic() >= self._start_at:
            self._start_server()
        while self._idle and time.monotonic() > self._idle[0].idle_until:
            self._let_go(self._idle.pop(0))
        if not self.ready and time.monotonic() > self._start_at + MAX_START_SECONDS:
            self._kill_server()
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._bell:
                self._bell.recv(CHUNK_BYTES)
            elif key.fileobj is self._server:
                yield from self._hear_server()
            elif key.data.number in self._workers:
                yield from self._hear(key.data)

    def _hear(self, worker: Worker) -> Iterator[tuple[Run, dict[str, Any]]]:
        data = _receive(worker.channel)
        if data == b"":
            self._selector.unregister(worker.channel)  # how it ended, the fork server tells
        for line in _lines(worker.lines, data):
            if run := self.runs.get(worker.number):  # who waits may give another sign of life
                run.last_sign = time.monotonic()
                yield run, orjson.loads(line)

    def _end(self, number: int, last: dict[str, Any]) -> Iterator[tuple[Run, dict[str, Any]]]:
        """What was said before the end is heard first."""
        worker = self._workers.pop(number)
        if run := self.runs.get(number):
            while data := _receive(worker.channel):
                for line in _lines(worker.lines, data):
                    yield run, orjson.loads(line)
            del self.runs[number]
            yield run, last
        for waiting in (self._idle, self._leaving):
            if worker in waiting:
                waiting.remove(worker)
        if worker.channel in self._selector.get_map():
            self._selector.unregister(worker.channel)
        worker.channel.close()

    def close(self) -> None:
        """End the fork server and, with it, every worker."""
        if self._process is not None:
            self._stop_server()
        for worker in self._workers.values():
            worker.channel.close()
        for known in (self.runs, self._workers, self._idle, self._leaving):
            known.clear()
        self._selector.close()


def _exited(by_signal: int | None, code: int | None) -> dict[str, Any]:
    return {"type": "exited", "signal": by_signal, "code": code}


def _receive(connection: socket.socket) -> bytes | None:
    """What is there, None if nothing is, b"" at the end."""
    try:
        return connection.recv(CHUNK_BYTES)
    except BlockingIOError:
        return None
    except ConnectionResetError:
        return b""


def _lines(buffer: bytearray, data: bytes | None) -> list[bytes]:
    """The lines that `data` completes; the rest waits in `buffer`."""
    buffer += data or b""
    *complete, rest = bytes(buffer).split(b"\n")
    buffer[:] = rest
    return complete
