"""What there is to train on: processor cores, cards, and their memory."""

import os
import platform
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from app.errors import InvalidInput, TooLarge
from app.learning.memory import Memory

MEMINFO = Path("/proc/meminfo")


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve_device(device: str) -> str:
    """`auto` and `cuda` to a device that is there.

    Raises:
        InvalidInput: there is none of that kind.
    """
    num_cards = torch.cuda.device_count()
    if device == "cpu" or (device == "auto" and not num_cards):
        return "cpu"
    index = int(device.partition(":")[2] or 0)
    if index >= num_cards:
        have = f"it has {num_cards} CUDA device(s)" if num_cards else "it has no CUDA device"
        raise InvalidInput.at("/device", f"this machine has no {device}: {have}; use cpu or auto")
    return f"cuda:{index}"


def set_float32_precision(precision: str, device: torch.device) -> None:
    """How a run's float32 numbers are multiplied: to the last bit, or on a card, where less is asked for, as TF32.

    So is what is judged between the steps of a run in half the bits, which would wait for it otherwise.
    """
    rounds = device.type == "cuda" and precision != "float32"
    torch.set_float32_matmul_precision("high" if rounds else "highest")  # of products alone
    torch.backends.cudnn.allow_tf32 = rounds


def memory_limit_bytes() -> int:
    """What this machine, the control groups that the process is in, and its own limit leave to a process at most."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limits += [group.limit_bytes for group in control_groups()]
    limits += [limit for limit in resource.getrlimit(resource.RLIMIT_DATA) if limit != resource.RLIM_INFINITY]
    return min(limits)


def memory_left_bytes() -> int:
    """What another process may take of it now, beside all that take some; pages of files are given back for it."""
    lines = MEMINFO.read_text().splitlines() if MEMINFO.exists() else []
    left = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    left += [group.limit_bytes - group.used_bytes for group in control_groups()]
    return max(0, min([memory_limit_bytes(), *left]))


@dataclass(frozen=True)
class ControlGroup:
    """A group with a limit of memory, and what its processes have taken of it, without pages of files."""

    limit_bytes: int
    used_bytes: int


def control_groups(
    process: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> list[ControlGroup]:
    """The group of a process and all around it that have limits, in either version of control groups."""
    groups = []
    for line in process.read_text().splitlines() if process.exists() else ():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            top, limit, usage, files = root, "memory.max", "memory.current", ("active_file", "inactive_file")
        elif "memory" in controllers.split(","):
            top, limit, usage = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            files = ("total_active_file", "total_inactive_file")
        else:
            continue
        inner = top / group.lstrip("/")  # within a container, where it may be seen as the top
        for folder in (inner, *inner.parents):
            if folder == top or top in folder.parents:
                text = _text(folder / limit)
                if text.isdigit():
                    used = int(_text(folder / usage) or 0) - _of_files(folder / "memory.stat", files)
                    groups.append(ControlGroup(int(text), max(0, used)))
    return groups


def _of_files(stat: Path, names: tuple[str, ...]) -> int:
    counts = dict(line.split() for line in _text(stat).splitlines())
    return sum(int(counts.get(name, 0)) for name in names)


def _text(path: Path) -> str:
    """What stands in a file; nothing where there is none."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""


def require_room(memory: Memory, device: str, *, busy: Callable[[], bool]) -> list[str]:
    """Raise TooLarge where a run would not fit, with what it would take and what there is.

    `busy`: whether other jobs run. What they take comes back before the run begins, or may: then a sentence says so.
    """
    there = memory_limit_bytes()
    needed = f"this run would take about {memory.host_bytes / 2**30:.1f} GiB"
    if memory.host_bytes > there:
        raise TooLarge(f"{needed}, and this machine has {there / 2**30:.1f} GiB", code="would_not_fit")
    if device != "cpu":
        on_card = card_bytes(device)
        if memory.card_bytes > on_card:
            raise TooLarge(
                f"this run would take about {memory.card_bytes / 2**30:.1f} GiB, "
                f"and {device} has {on_card / 2**30:.1f} GiB",
                code="would_not_fit",
            )
    left = memory_left_bytes()
    if memory.new_bytes <= left:
        return []
    found = f"{needed}, {memory.new_bytes / 2**30:.1f} GiB of it anew, and of this machine's {there / 2**30:.1f} GiB "
    if busy():
        return [f"{found}{left / 2**30:.1f} GiB are left while other jobs run; it waits for them"]
    raise TooLarge(f"{found}{left / 2**30:.1f} GiB are left beside what runs on it", code="would_not_fit")


def card_bytes(device: str) -> int:
    """The memory of a card; 0 of the CPU."""
    return 0 if device == "cpu" else torch.cuda.get_device_properties(device).total_memory


def devices() -> list[dict[str, str | int]]:
    """What this machine can train on, with memory in bytes."""
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cpu: dict[str, str | int] = {"device": "cpu", "name": platform.machine(), "memory_bytes": memory}
    return [cpu] + [
        {"device": f"cuda:{index}", "name": card.name, "memory_bytes": card.total_memory}
        for index, card in enumerate(cards)
    ]


def memory_of_cards() -> list[tuple[int, int]]:
    """Bytes of each CUDA device that are free, and all of them."""
    return [torch.cuda.mem_get_info(index) for index in range(torch.cuda.device_count())]


def free_cards() -> None:
    """Give back what torch keeps of cards' memory, which other processes may want."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
