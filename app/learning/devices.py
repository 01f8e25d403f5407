"""What there is to train on: processor cores, cards, and their memory."""

import os
import platform
import resource
from pathlib import Path

import torch

from app.errors import InvalidInput, TooLarge
from app.learning.memory import Memory


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


def memory_limit_bytes() -> int:
    """What this machine, the control groups that the process is in, and its own limit leave to a process."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *control_group_limits()]
    limits += [limit for limit in resource.getrlimit(resource.RLIMIT_DATA) if limit != resource.RLIM_INFINITY]
    return min(limits)


def control_group_limits(process: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Of the group of a process and all around it, in either version of control groups."""
    limits = []
    for line in process.read_text().splitlines() if process.exists() else ():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            top, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        inner = top / group.lstrip("/")  # within a container, where it may be seen as the top
        files = [folder / name for folder in (inner, *inner.parents) if folder == top or top in folder.parents]
        texts = [file.read_text().strip() for file in files if file.exists()]
        limits += [int(text) for text in texts if text.isdigit()]
    return limits


def require_room(memory: Memory, device: str) -> None:
    """Raise TooLarge where a run would not fit, with what it would take and what there is."""
    places = [(memory.host_bytes, memory_limit_bytes(), "this machine")]
    if device != "cpu":
        places.append((memory.card_bytes, torch.cuda.get_device_properties(device).total_memory, device))
    for needed, there, where in places:
        if needed > there:
            raise TooLarge(
                f"this run would take about {needed / 2**30:.1f} GiB, and {where} has {there / 2**30:.1f} GiB",
                code="would_not_fit",
            )


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
