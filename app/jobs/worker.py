"""Training runs, one after the other, in a process that tells what happens as lines of JSON.

It hears `pause`, `cancel`, and once it has said that it stays, the order of the next run. Said on the channel:
{"type": "progress" | "warning", "data": {…}}, {"type": "metrics", "data": [{…}, …]}, {"type": "alive"}, {"type": "log",
"message", "traceback"}, and at a run's end {"type": "outcome", "state", "metrics", "stop_reason", "stays"} or {"type":
"failed", "code", "detail"}. A process that ends without either has died.
"""

import faulthandler
import fcntl
import gc
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import Any, Literal, NoReturn

import orjson

from app.errors import GradserveError, StorageFailed, is_out_of_memory
from app.jobs.order import WorkOrder
from app.jobs.taken import taken_bytes

ALIVE_SECONDS = 2.0
TOGETHER_SECONDS = 0.02  # metrics wait for those that follow: to wake the supervisor costs more than a small epoch
# thousandths of the memory that Linux adds to theirs when it chooses: so many that a fork server which has only begun
# to import, and is small, goes before the service
RUN_SCORE, FORK_SERVER_SCORE = 900, 800
STAYING_BYTES = 2**26  # of memory of its own; a process that has taken more gives it back by its end
IDLE_SHARE = 0.005  # a process that computes uses more of a core than this; one that hangs does not


class Control:
    """What the supervisor asks of the run; training reads `request` at every step, which also shows that it goes on.

    `orders`: of the runs to come.
    """

    def __init__(self) -> None:
        self._request: Literal["cancel", "pause"] | None = None
        self.num_reads = 0
        self.orders: SimpleQueue[dict[str, Any]] = SimpleQueue()

    @property
    def request(self) -> Literal["cancel", "pause"] | None:
        self.num_reads += 1
        return self._request

    @request.setter
    def request(self, value: Literal["cancel", "pause"] | None) -> None:
        self._request = value


class Channel:
    """The worker's end of the socket to the supervisor. A supervisor that has gone ends the process."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lock = threading.Lock()
        self._metrics: list[dict[str, Any]] = []
        self._waiting = threading.Event()

    def emit(self, event: str, data: dict[str, Any]) -> None:
        """Metrics go out a moment later, together, or before whatever is said next."""
        if event == "metrics":
            with self._lock:
                self._metrics.append(data)
            if not self._waiting.is_set():
                self._waiting.set()
        else:
            self.say({"type": event, "data": data})

    def say(self, *messages: dict[str, Any]) -> None:
        """Without a message: what waits."""
        with self._lock:
            self._waiting.clear()
            if self._metrics:
                messages = ({"type": "metrics", "data": self._metrics}, *messages)
            try:
                self._socket.sendall(b"".join(map(_line, messages)))
            except (BrokenPipeError, ConnectionResetError):
                os._exit(1)
            self._metrics.clear()

    def carry(self) -> None:
        """Send what waits, for as long as the process lives."""
        while True:
            self._waiting.wait()
            time.sleep(TOGETHER_SECONDS)
            self.say()

    def obey(self, control: Control) -> None:
        """Carry orders and requests to the runs, for as long as the process lives."""
        with suppress(ConnectionResetError):
            for line in self._socket.makefile("rb"):
                if line.startswith(b"{"):
                    control.request = None  # what was asked of the run before came too late for it
                    control.orders.put(orjson.loads(line))
                else:
                    control.request = "cancel" if line.strip() == b"cancel" else "pause"
        os._exit(1)

    def tell_alive(self, control: Control) -> None:
        """Give a sign of life while the run reads its control or computes, and none while it hangs."""
        while True:
            reads, cpu_seconds = control.num_reads, time.process_time()
            time.sleep(ALIVE_SECONDS)
            if control.num_reads > reads or time.process_time() - cpu_seconds > IDLE_SHARE * ALIVE_SECONDS:
                self.say({"type": "alive"})


def _line(message: dict[str, Any]) -> bytes:
    return orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


def run(connection: socket.socket, order: dict[str, Any], training: ModuleType) -> NoReturn:
    """Work off an order, and those that follow while the process stays small, and end it."""
    faulthandler.enable()
    offer_to_oom_killer(RUN_SCORE)
    channel, control = Channel(connection), Control()
    threading.Thread(target=channel.carry, daemon=True).start()
    threading.Thread(target=channel.obey, args=(control,), daemon=True).start()
    threading.Thread(target=channel.tell_alive, args=(control,), daemon=True).start()
    while True:
        told = _train(channel, control, order, training)
        is_free = _let_go(channel, training)
        if told["type"] == "outcome":
            on_card = order["spec"].get("device", "cpu") != "cpu"
            told["stays"] = is_free and not on_card and _is_small() and not _has_children()
        channel.say(told)
        sys.stdout.flush()
        sys.stderr.flush()
        if not told.get("stays"):
            os._exit(0)
        order = control.orders.get()


def _train(channel: Channel, control: Control, order: dict[str, Any], training: ModuleType) -> dict[str, Any]:
    try:
        with _locked(Path(order["data_dir"]) / "jobs" / order["job_id"]):
            outcome = training.train(WorkOrder(**order), channel.emit, control)
    except Exception as error:  # noqa: BLE001 (whatever it is ends this run, and no other)
        code, detail = explain(error)
        if code == "internal_error":
            channel.say({"type": "log", "message": "training failed", "traceback": traceback.format_exc()})
        return {"type": "failed", "code": code, "detail": detail}
    return {
        "type": "outcome",
        "state": outcome.state,
        "metrics": outcome.metrics,
        "stop_reason": outcome.stop_reason,
    }


def _let_go(channel: Channel, training: ModuleType) -> bool:
    """Give back what the run has taken, before its outcome is told; whether that could be done."""
    gc.collect()
    try:
        training.free_cards()
    except Exception:  # noqa: BLE001 (a card that a run has left in disorder; the process's end gives it back)
        channel.say({"type": "log", "message": "a card's memory is not free yet", "traceback": traceback.format_exc()})
        return False
    return True


def explain(error: Exception) -> tuple[str, str]:
    """A code and a sentence for the user."""
    if isinstance(error, GradserveError):
        return error.code, error.detail
    what = f"{type(error).__name__}: {error}"
    if is_out_of_memory(error):
        return (
            "out_of_memory",
            f"the run needs more memory than there is; a smaller network or batch needs less ({what})",
        )
    if isinstance(error, OSError) and (known := StorageFailed.of(error)):
        return known.code, f"the run could not write to the disk: {what}"
    return "internal_error", f"an error that is not yours ended the run: {what}"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the job's folder alone; a predecessor that is still dying is waited for."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _is_small() -> bool:
    taken = taken_bytes(os.getpid())
    return taken is not None and taken < STAYING_BYTES


def _has_children() -> bool:
    """Whether a process of its own is left, as a compiler is whose run did not wait for it."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def offer_to_oom_killer(score: int) -> None:
    """Where memory runs out, Linux should end a run first, then who forks them, and the service last."""
    with suppress(OSError):  # a container may not let us write there, and trains all the same
        Path("/proc/self/oom_score_adj").write_text(str(score))
