"""Graphs as shared libraries: made ahead of time by a process beside the run, kept in a folder, loaded in no time.

A library's file is named by a digest of all that it was made from, so a run finds what another run of the same shape
has left. It is machine code that this service wrote: the folder is as trusted as the program, and nobody else may
write to it. Nothing is pickled.
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import select
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

FORMAT = 1
MAX_LIBRARIES = 200
MAX_COMPILE_SECONDS = 300.0
OPTIONS: dict[str, Any] = {  # what the loop checks once, its turns need not
    "size_asserts": False,
    "alignment_asserts": False,
    "scalar_asserts": False,
    "compile_threads": 1,
    "cpp.vec_isa_ok": True,  # what the processor says it has; trying it out takes seconds
    "aot_inductor.precompile_headers": False,  # 300 MB on disk that save a second
}


class CompilationFailed(Exception):
    """Says why in a sentence."""


class Library:
    """A compiled loop. It holds the interpreter's lock, so a call should be of milliseconds."""

    def __init__(self, path: Path) -> None:
        self._runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(path), 1)

    def run(self, arguments: list[Tensor]) -> None:
        self._runner.run(arguments)


def digest_of(graph: fx.GraphModule, tensors: Sequence[Tensor], num_threads: int) -> str:
    """Of a graph, the shapes and places of numbers that it is for, and the machine."""
    parts = [FORMAT, torch.__version__, _processor(), num_threads, graph.code]
    parts += [(tuple(tensor.shape), tensor.stride(), tensor.dtype) for tensor in tensors]
    parts += [(name, value.tolist()) for name, value in graph.named_buffers()]
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]


def _processor() -> str:
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


class Libraries:
    """The folder of libraries."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._pace = self.folder / "pace"

    def path(self, digest: str) -> Path:
        return self.folder / f"{digest}.so"

    def load(self, digest: str) -> Library | None:
        """The library, or None where there is none that can be loaded."""
        path = self.path(digest)
        if not path.exists():
            return None
        try:
            library = Library(path)
        except RuntimeError:  # cut short or of another build: made anew
            path.unlink(missing_ok=True)
            return None
        os.utime(path)
        return library

    def compile(
        self,
        digest: str,
        graph: Callable[[], fx.GraphModule],
        arguments: list[Tensor],
        threads: int,
        expected_seconds: float,
    ) -> None:
        """Make the library of a graph, in a process of its own: it takes seconds and sets the compiler's environment.

        One at a time on a machine: of many runs of one shape the first one's library serves all.

        Args:
            expected_seconds: what it should take of a core; how many times as much it took is this machine's pace from
                now on. By the clock, one compile beside other work would keep runs from compiling long after.

        Raises:
            Exception: whatever the compiler says.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.path(digest).exists():
                begun = _processor_seconds()
                self._compile(digest, graph, arguments, threads)
                self._note_pace((_processor_seconds() - begun) / expected_seconds)

    def pace(self) -> float | None:
        """How many times as much as expected the last compile took; None where there was none."""
        with contextlib.suppress(FileNotFoundError, ValueError):  # or a file that lost its content with the power
            return float(self._pace.read_text())
        return None

    def _note_pace(self, pace: float) -> None:
        new = self._pace.with_suffix(".new")
        new.write_text(f"{pace:.3f}")
        new.replace(self._pace)

    def _compile(self, digest: str, graph: Callable[[], fx.GraphModule], arguments: list[Tensor], threads: int) -> None:
        from torch import _inductor as inductor  # a second, and a hundred megabytes

        self._tidy()
        kept = self.folder / "compiler"
        kept.mkdir(exist_ok=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.tempdir = str(kept)
        with tempfile.TemporaryDirectory(prefix="building-", dir=self.folder) as scratch:
            options = OPTIONS | {"cpp.threads": threads, "aot_inductor.output_path": f"{scratch}/library.so"}
            with torch.no_grad():
                made = inductor.aot_compile(graph(), tuple(arguments), options=options)
            Path(str(made)).replace(self.path(digest))

    def _tidy(self) -> None:
        """Forget the libraries that were not used for longest, and what killed compilers have left."""
        found = sorted(self.folder.glob("*.so"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in found[MAX_LIBRARIES:]:
            path.unlink(missing_ok=True)
        for left in self.folder.glob("building-*"):
            shutil.rmtree(left, ignore_errors=True)


def _processor_seconds() -> float:
    """Of this process, and of those that it has waited for, as for a compiler."""
    return sum(os.times()[:4])


def compiler_missing() -> str | None:
    """A sentence, where this machine can't compile."""
    name = os.environ.get("CXX", "g++")
    if not hasattr(os, "fork"):
        return "this system can't fork a process to compile in"
    return None if shutil.which(name) else f"there is no C++ compiler ({name}) on this machine"


class Compilation:
    """Work in a child process, which has all that its parent has at the moment it is started.

    A child whose parent is killed finishes, and the run that goes on from a checkpoint finds the library.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._deadline = time.monotonic() + MAX_COMPILE_SECONDS
        self._read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 3.12 warns of threads; they are idle, and the child makes none
            self._pid = os.fork()
        if self._pid == 0:
            _be_the_child(work, write)
        os.close(write)

    def finished(self, seconds: float) -> bool:
        """Whether the work is done, after waiting so long for it at most.

        Raises:
            CompilationFailed
        """
        if time.monotonic() > self._deadline:
            os.kill(self._pid, signal.SIGKILL)
        elif not select.select([self._read], [], [], seconds)[0]:
            return False
        message = b""
        while part := os.read(self._read, 1 << 16):
            message += part
        os.close(self._read)
        _, status = os.waitpid(self._pid, 0)
        if status:
            reason = message.decode(errors="replace").strip() or f"the compiler ended with status {status}"
            raise CompilationFailed(reason)
        return True


def _be_the_child(work: Callable[[], None], write: int) -> None:
    status = 1
    try:
        _let_go_of_files(write)
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)  # the parent's other threads are not here
        work()
        status = 0
    except BaseException as error:  # noqa: BLE001 (the parent tells)
        text = f"{type(error).__name__}: {error}".splitlines()
        os.write(write, text[0][:1000].encode())
    finally:
        os._exit(status)


def _let_go_of_files(write: int) -> None:
    """Locks and sockets are the parent's. Their numbers stay taken, as objects in this process still close them."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in [int(entry.name) for entry in Path("/dev/fd").iterdir()]:
        if number not in (0, 1, 2, write, null):
            with contextlib.suppress(OSError):  # the listing's own, which is closed by now
                os.fstat(number)
                os.dup2(null, number, inheritable=False)
