"""A real service in a process of its own, for the quickstart, the benchmarks and the acceptance tests."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from app.client import Client

START_SECONDS = 120.0  # the first import of torch from a cold disk
STOP_SECONDS = 30.0


class ServiceDied(RuntimeError):
    pass


class Service:
    """`gradserve serve` on a port of this machine, started and stopped by `with`, or by hand and as often as one likes.

    Its folders models/ and data/, and its log data/service.log, are in `root`, unless `settings` say otherwise.
    `settings` stand in for all GRADSERVE_… variables of the environment, which are not passed on. `within` is a command
    that runs the service's.
    """

    def __init__(
        self,
        root: Path,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        workers: int = 1,
        within: Sequence[str] = (),
    ) -> None:
        self.root, self.workers, self.within = root, workers, within
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = root / "data" / "service.log"
        self.settings = dict(settings or {})
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Returns once `/readyz` says yes.

        Raises:
            ServiceDied: the port is taken, or the service ended at once; with the end of its log.
        """
        if not is_free(self.port):
            raise ServiceDied(f"port {self.port} is taken by another program")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GRADSERVE_")}
        command = [sys.executable, "-m", "app.cli", "serve", "--port", str(self.port), "--workers", str(self.workers)]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.within, *command],
                cwd=self.root,
                env=environment | self.settings,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for whoever started us, who then stops this one
            )
        self._wait_until_ready(self.process)

    def _wait_until_ready(self, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + START_SECONDS
        with Client(self.url) as client:
            while not client.ready():
                if process.poll() is not None:
                    raise ServiceDied(f"the service ended with status {process.returncode}:\n{self.log_end()}")
                if time.monotonic() > deadline:
                    raise ServiceDied(f"the service is not ready after {START_SECONDS:.0f} s:\n{self.log_end()}")
                time.sleep(0.02)

    def is_ready(self) -> bool:
        with Client(self.url) as client:
            return client.ready()

    def log_end(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])

    def wait(self) -> int:
        """Until it ends by itself; returns its exit status."""
        assert self.process
        return self.process.wait()

    def stop(self) -> None:
        """Ask it to end, as a service manager would, and wait until it has."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired as error:
                self.kill()
                raise ServiceDied(
                    f"the service took more than {STOP_SECONDS:.0f} s to stop:\n{self.log_end()}"
                ) from error

    def kill(self) -> None:
        """End it as a power cut would."""
        if self.process:
            self.process.kill()
            self.process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
