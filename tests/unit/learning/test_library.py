"""Libraries on disk, and the process that makes them."""

import fcntl
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from app.learning.library import MAX_LIBRARIES, Compilation, CompilationFailed, Libraries, compiler_missing, digest_of

LONG = 60.0


def graph_of(scale: float) -> fx.GraphModule:
    return make_fx(lambda x: x * scale)(torch.ones(3))


def wait_for(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)  # a named pipe: opening it waits for the other side
    os.close(fd)


def test_digest_is_of_the_graph_its_shapes_and_threads() -> None:
    digest = digest_of(graph_of(2.0), [torch.ones(3)], 1)
    assert digest_of(graph_of(2.0), [torch.zeros(3)], 1) == digest
    others: list[tuple[fx.GraphModule, Tensor, int]] = [
        (graph_of(3.0), torch.ones(3), 1),
        (graph_of(2.0), torch.ones(4), 1),
        (graph_of(2.0), torch.ones(3, dtype=torch.float64), 1),
        (graph_of(2.0), torch.ones(3), 2),
    ]
    digests = {digest_of(graph, [tensor], threads) for graph, tensor, threads in others}
    assert len(digests | {digest}) == 5


def test_a_library_that_is_not_whole_is_forgotten(tmp_path: Path) -> None:
    libraries = Libraries(tmp_path)
    assert libraries.load("some") is None
    libraries.path("some").write_bytes(b"\x7fELF, and then the power went off")
    assert libraries.load("some") is None
    assert not libraries.path("some").exists()


def test_no_compiler_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert compiler_missing() == "there is no C++ compiler (no-such-compiler) on this machine"


def test_a_graph_that_can_not_be_compiled_leaves_nothing(tmp_path: Path) -> None:
    fail_to_compile(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"compiler", "lock"}


def test_a_library_that_another_run_has_made_is_not_made_again(tmp_path: Path) -> None:
    libraries = Libraries(tmp_path)
    libraries.path("some").touch()
    libraries.compile("some", no_graph, [], 1, 10.0)
    assert libraries.pace() is None


def test_a_compile_tells_this_machines_pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what it and its compiler take of a core, not by how long other work makes it wait."""

    def takes_a_while(libraries: Libraries, *_: Any) -> None:
        clock.waited += 1000.0
        clock.own += 10.0
        clock.compiler += 20.0

    clock = SimpleNamespace(waited=100.0, own=5.0, compiler=0.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.waited)
    monkeypatch.setattr(os, "times", lambda: (clock.own, 1.0, clock.compiler, 1.0, clock.waited))
    monkeypatch.setattr(Libraries, "_compile", takes_a_while)
    libraries = Libraries(tmp_path)
    libraries.compile("some", no_graph, [], 1, 10.0)
    assert libraries.pace() == 3.0
    libraries.compile("some", no_graph, [], 1, 60.0)
    assert Libraries(tmp_path).pace() == 0.5


def test_what_is_old_or_half_made_is_removed(tmp_path: Path) -> None:
    for age in range(MAX_LIBRARIES + 2):
        path = tmp_path / f"{age}.so"
        path.touch()
        os.utime(path, (1e9 - age, 1e9 - age))
    (tmp_path / "building-something").mkdir()
    fail_to_compile(tmp_path)
    assert {int(path.stem) for path in tmp_path.glob("*.so")} == set(range(MAX_LIBRARIES))
    assert not (tmp_path / "building-something").exists()


def fail_to_compile(folder: Path) -> None:
    with pytest.raises(CompilationFailed, match="ZeroDivisionError"):
        Compilation(lambda: Libraries(folder).compile("some", no_graph, [], 1, 10.0)).finished(LONG)


def no_graph() -> fx.GraphModule:
    raise ZeroDivisionError


# ---- the process


def test_work_is_done_by_another_process(tmp_path: Path) -> None:
    def work() -> None:
        (tmp_path / "pid").write_text(str(os.getpid()))

    compilation = Compilation(work)
    assert compilation.finished(LONG)
    assert int((tmp_path / "pid").read_text()) != os.getpid()


def test_work_that_goes_on_is_not_finished(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    compilation = Compilation(lambda: wait_for(tmp_path / "gate"))
    assert not compilation.finished(0)
    os.close(os.open(tmp_path / "gate", os.O_WRONLY))
    assert compilation.finished(LONG)


def test_why_work_failed_is_told() -> None:
    def work() -> None:
        raise ValueError("this and that\nand a long story")

    with pytest.raises(CompilationFailed, match=r"^ValueError: this and that$"):
        Compilation(work).finished(LONG)


def test_a_process_that_dies_has_failed() -> None:
    with pytest.raises(CompilationFailed, match="ended with status"):
        Compilation(os.abort).finished(LONG)


def test_a_process_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.learning.library.MAX_COMPILE_SECONDS", -1.0)
    os.mkfifo(tmp_path / "gate")
    with pytest.raises(CompilationFailed, match="ended with status 9"):
        Compilation(lambda: wait_for(tmp_path / "gate")).finished(LONG)


def test_the_process_holds_no_lock_of_its_parent(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    os.mkfifo(tmp_path / "begun")

    def work() -> None:
        os.close(os.open(tmp_path / "begun", os.O_WRONLY))
        wait_for(tmp_path / "gate")

    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    compilation = Compilation(work)
    wait_for(tmp_path / "begun")
    os.close(lock)  # as when the parent is killed
    other = os.open(tmp_path / "lock", os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
    os.close(os.open(tmp_path / "gate", os.O_WRONLY))
    assert compilation.finished(LONG)
