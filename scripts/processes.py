"""The processes of a service by what they do, found through /proc."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Role = Literal["main", "api", "forkserver", "worker", "other"]


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    role: Role


def processes_of(pid: int) -> list[Process]:
    """The process with its descendants, parents first.

    `main` was started by whoever runs the service; `api` are those that it starts with `--workers`.
    """
    found: list[Process] = []
    waiting = [(pid, 0, "main")]
    while waiting:
        number, parent, above = waiting.pop(0)
        role: Role = "main" if not parent else _role(_command(number), above)
        found.append(Process(number, parent, role))
        waiting += [(child, number, role) for child in _children(number)]
    return found


def with_role(pid: int, role: Role) -> list[int]:
    return [process.pid for process in processes_of(pid) if process.role == role]


def supervisor_of(pid: int) -> int | None:
    """The process that reigns: it has started the fork server."""
    return next((process.parent for process in processes_of(pid) if process.role == "forkserver"), None)


def is_alive(pid: int) -> bool:
    """Neither gone nor a zombie."""
    try:
        return _stat(pid)[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def has_open(pid: int, name: str) -> bool:
    """Whether the process has a file of this name open."""
    try:
        return any(fd.readlink().name == name for fd in Path(f"/proc/{pid}/fd").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return False


def _role(command: str, above: str) -> Role:
    if "app.jobs.forkserver" in command:
        return {"forkserver": "worker", "worker": "other"}.get(above, "forkserver")  # type: ignore[return-value]
    return "api" if "spawn_main" in command else "other"


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _children(pid: int) -> list[int]:
    """Of all threads: a child belongs to the one that made it."""
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def _stat(pid: int) -> list[str]:
    """From the state on: fields 3 and up of proc(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def memory_of(pid: int, kind: str = "Anonymous") -> int:
    """Bytes in memory, by a line of proc(5)'s smaps_rollup; 0 where the process has gone.

    `Anonymous` is its own, whoever shares it for a moment after a fork; `Pss_File` is its share of the files that it
    maps, which depends on who else on the machine maps them; `Pss` is its share of all.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


def num_descriptors(pid: int) -> int:
    """Open files and connections; 0 where the process has gone."""
    return len(open_files(pid))


def open_files(pid: int) -> list[str]:
    """What a process has open, by path, or as `socket:[…]`; nothing where it has gone."""
    found = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                found.append(str(entry.readlink()))
    return found
