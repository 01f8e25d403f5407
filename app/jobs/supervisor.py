"""Runs the queue: claims jobs, has workers run them, writes down what they say, and ends what must end.

One process does this at a time, elected by a file lock that the operating system releases when its holder dies. All
decisions come from comparing the database with the workers that are there: `app.jobs.reconciler`.
"""

import fcntl
import socket
import threading
from contextlib import closing, suppress

import structlog

from app.jobs.epoch_times import EpochTimes
from app.jobs.fleet import Fleet
from app.jobs.queue import JobQueue
from app.jobs.reconciler import Reconciler, Rules, Versions
from app.storage.counters import Counters

log = structlog.get_logger("gradserve.jobs")

ELECTION_SECONDS = 0.5
RETRY_SECONDS = 1.0  # after an error of the database or the disk


class Supervisor:
    """A thread that stands for election and, once elected, reigns until it is stopped."""

    def __init__(self, queue: JobQueue, models: Versions, rules: Rules, counters: Counters) -> None:
        self._queue = queue
        self._times = EpochTimes(counters)
        self._models = models
        self._rules = rules
        self._stopping = threading.Event()
        self._grace_seconds = 0.0
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._ringer.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self.leading = False

    def start(self) -> None:
        self._rules.data_dir.mkdir(parents=True, exist_ok=True)
        self._queue.add_listener(self._ring)
        self._thread.start()

    def stop(self, grace_seconds: float = 10.0) -> None:
        """Let each worker write a checkpoint and end. Their jobs stay `running`, and go on at the next start."""
        if self._stopping.is_set():
            return
        self._grace_seconds = grace_seconds
        self._stopping.set()
        self._ring()
        self.join()
        self._queue.remove_listener(self._ring)
        self._bell.close()
        self._ringer.close()

    def join(self) -> None:
        """Wait until it has stopped."""
        self._thread.join()

    def _ring(self) -> None:
        with suppress(OSError):  # it rings already, or there is nobody to hear it any more
            self._ringer.send(b"!")

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._stand()
            except Exception:
                log.exception("the supervisor failed and starts again")
                self._stopping.wait(RETRY_SECONDS)

    def _stand(self) -> None:
        """Reign as soon as nobody else does."""
        with (self._rules.data_dir / "supervisor.lock").open("a") as lock:
            while not _try_lock(lock.fileno()):
                if self._stopping.wait(ELECTION_SECONDS):
                    return
            self._reign()

    def _reign(self) -> None:
        with closing(Fleet(self._rules.training, self._bell)) as fleet, closing(self._queue.watch()) as watch:
            reconciler = Reconciler(self._queue, self._models, self._rules, fleet, watch.changed, self._times)
            self.leading = True
            try:
                reconciler.sweep()
                while not self._stopping.is_set():
                    try:
                        reconciler.turn()
                    except Exception:
                        log.exception("a turn of the supervisor failed and is tried again")
                        self._stopping.wait(RETRY_SECONDS)
                reconciler.wind_down(self._grace_seconds)
            finally:
                self.leading = False


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
