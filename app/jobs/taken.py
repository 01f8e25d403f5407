"""What a worker has taken of memory, beyond what it shares with who forked it."""

from pathlib import Path

PROC = Path("/proc")


def taken_bytes(pid: int) -> int | None:
    """Since it was forked; None where nobody can tell, as of one that has ended."""
    try:
        return max(0, 1024 * (_status(pid, "RssAnon") - _status(_status(pid, "PPid"), "RssAnon")))
    except OSError:
        return None


def _status(pid: int, name: str) -> int:
    lines = (PROC / str(pid) / "status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
