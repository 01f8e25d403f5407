"""What starting takes, beside what any program takes that imports torch and FastAPI."""

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.processes import memory_of
from scripts.service import Service

IMPORTS = "import torch, fastapi"


def table(repetitions: int) -> str:
    helps, imports, starts = [], [], []
    for _ in range(repetitions):  # in turns, so that what disturbs one disturbs all
        helps.append(seconds_of("-m", "app.cli", "--help"))
        imports.append(seconds_of("-c", IMPORTS))
        begun = time.perf_counter()
        with TemporaryDirectory() as folder, Service(Path(folder)) as service:
            starts.append(time.perf_counter() - begun)
            assert service.process
            idle = memory_of(service.process.pid, "Pss_Anon")
    bare = memory_of_imports()
    help_, imported, ready = (statistics.median(seconds) for seconds in (helps, imports, starts))
    return "\n".join(
        [
            f"| `gradserve --help` (s) | `python -c '{IMPORTS}'` (s) | command to `/readyz` (s) | **ready / imports** "
            "| own memory: imports (MB) | idle service (MB) | **service / imports** |",
            "|---|---|---|---|---|---|---|",
            f"| **{help_:.2f}** | {imported:.2f} | {ready:.2f} | **{ready / imported:.2f}** "
            f"| {bare / 1e6:.0f} | {idle / 1e6:.0f} | **{idle / bare:.2f}** |",
        ]
    )


def seconds_of(*arguments: str) -> float:
    begun = time.perf_counter()
    subprocess.run(python(arguments), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def memory_of_imports() -> int:
    """Bytes that are a process's own once it has imported all."""
    ready = f"{IMPORTS}; print(flush=True); input()"
    with subprocess.Popen(python(["-c", ready]), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        found = memory_of(process.pid, "Pss_Anon")
        process.communicate(b"\n")
    return found


def python(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, *arguments]
