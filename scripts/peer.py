"""Other servers of networks, each in a virtual environment of its own, which is made once and kept in ~/.cache."""

import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import httpx
import numpy as np
from numpy.typing import NDArray

from scripts.load import MODEL, NUM_ROWS, WIDTH, rows, wait_until
from scripts.processes import is_alive, processes_of
from scripts.service import free_port

FILES = Path(__file__).parent / "peers"
ENVIRONMENTS = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gradserve" / "peers"
CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
BODIES = {"one.json": 1, "many.json": NUM_ROWS}
START_SECONDS, STOP_SECONDS = 60.0, 5.0
V2 = f"/v2/models/{MODEL}/infer"

Weights = dict[str, NDArray[np.float32]]


class Peer(NamedTuple):
    """`python FILES/script PORT` starts it. `as_v2`: it speaks the Open Inference Protocol. `program`: not pip's."""

    title: str
    requirements: tuple[str, ...]
    script: str
    path: str
    as_v2: bool = False
    program: str | None = None


PEERS = [
    Peer("LitServe", ("litserve==0.2.19", "numpy==2.4.6"), "serve_litserve.py", "/predict"),
    # its process of inference asks for an event loop in a way that uvloop has refused since 0.22
    Peer("MLServer", ("mlserver==1.7.1", "uvloop==0.21.0"), "serve_mlserver.py", V2, as_v2=True),
    Peer("PyTriton", ("nvidia-pytriton==0.7.0",), "serve_pytriton.py", V2, as_v2=True),
    Peer(
        "TorchServe",
        ("torchserve==0.12.0", "torch-model-archiver==0.12.0", "numpy==2.4.6", "PyYAML==6.0.4", "setuptools==80.9.0"),
        "serve_torchserve.py",
        f"/predictions/{MODEL}",
        program="java",
    ),
]
"""In the versions that were measured, the first of which is the peer's own; torch is the service's."""


class NotMeasured(Exception):
    """Why a peer has no figures, in a line."""


# ---- environments


def environment(peer: Peer) -> Path:
    """The Python of the peer's virtual environment.

    Raises:
        NotMeasured
    """
    if peer.program and not shutil.which(peer.program):
        raise NotMeasured(f"it needs the program `{peer.program}`")
    torch = next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch=="))
    wanted = "\n".join([platform.python_version(), torch, *peer.requirements])
    folder = ENVIRONMENTS / f"{peer.title.lower()}-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    stamp, python = folder / "wanted.txt", folder / "bin" / "python"
    if not stamp.exists():
        print(f"installing {peer.title} into {folder} …", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        _run(sys.executable, "-m", "venv", str(folder))
        _run(str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", torch, *peer.requirements)
        stamp.write_text(wanted)
    return python


def _run(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        errors = [line for line in done.stdout.splitlines() if line.startswith("ERROR:")]  # pip may mark a place below
        raise NotMeasured(f"it can't be installed: {last_line(errors[-1] if errors else done.stdout)}")


def last_line(text: str) -> str:
    """Of what a program said, fit for a cell of a table."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else "it said nothing").replace("|", "/")[:200]


# ---- servers


@contextmanager
def serving(peer: Peer, python: Path, weights: Weights) -> Iterator[tuple[str, Path]]:
    """The URL to post to, and the folder of the bodies to send.

    Raises:
        NotMeasured
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        for file in FILES.glob("*.py"):
            shutil.copy(file, folder)
        np.savez(folder / "weights.npz", **weights)  # type: ignore[arg-type]
        for body, number in BODIES.items():
            (folder / body).write_text(_body(peer, rows(number)))
        port = free_port()
        log = folder / "log.txt"
        with log.open("wb") as target:
            process = subprocess.Popen(
                [python, peer.script, str(port)], cwd=folder, stdout=target, stderr=target, start_new_session=True
            )
        try:
            url = f"http://127.0.0.1:{port}{peer.path}"
            _wait_for_answer(url, folder / "one.json", process, log)
            yield url, folder
        finally:
            _stop(process)


def _body(peer: Peer, table: list[list[float]]) -> str:
    if not peer.as_v2:
        return json.dumps({"inputs": table})
    flat = [value for row in table for value in row]
    tensor = {"name": "inputs", "shape": [len(table), WIDTH], "datatype": "FP32", "data": flat}
    return json.dumps({"inputs": [tensor]})


def _wait_for_answer(url: str, body: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    def answers() -> bool:
        return process.poll() is not None or post(url, body).is_success

    try:
        wait_until(answers, START_SECONDS)
    except TimeoutError as error:
        raise NotMeasured(f"{error}: {last_line(log.read_text(errors='replace'))}") from error
    if process.poll() is not None:
        raise NotMeasured(f"it ended as it started: {last_line(log.read_text(errors='replace'))}")


def post(url: str, body: Path) -> httpx.Response:
    return httpx.post(url, content=body.read_bytes(), headers={"Content-Type": "application/json"}, timeout=60)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """All of its processes, also those that have left its session."""
    started = [one.pid for one in processes_of(process.pid)]
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    for pid in filter(is_alive, started):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
