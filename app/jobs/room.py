"""Whether the memory that a job was foretold to take is free, beside jobs that run and have not taken all of theirs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from app.jobs.taken import taken_bytes
from app.learning.devices import memory_left_bytes
from app.learning.memory import Memory
from app.storage.jobs import Job


@dataclass(frozen=True)
class Needs:
    """What a run takes at most, and where; `pid` is its process, once there is one."""

    memory: Memory
    device: str = "cpu"
    pid: int | None = None

    @property
    def outstanding_bytes(self) -> int:
        """What of the machine's memory it has yet to take."""
        taken = None if self.pid is None else taken_bytes(self.pid)
        return max(0, self.memory.new_bytes - (taken or 0))


def needs_of(job: Job) -> Needs:
    """Nothing, for a job of an earlier release, which foretold nothing that was kept."""
    return Needs(Memory(**(job.memory or {"host_bytes": 0})), str(job.spec.get("device", "cpu")))


def why_wait(needs: Needs, beside: Sequence[Needs]) -> str | None:
    """A sentence, if a run does not find room beside others. Beside none it is to start, whatever is left."""
    if not beside:
        return None
    memory = needs.memory
    left = memory_left_bytes() - sum(other.outstanding_bytes for other in beside)
    if memory.new_bytes > left:
        return _sentence(memory.new_bytes, "this machine", len(beside))
    on_card = [other for other in beside if other.device == needs.device]
    if memory.card_bytes and on_card:
        total = torch.cuda.get_device_properties(needs.device).total_memory
        if memory.card_bytes > total - sum(other.memory.card_bytes for other in on_card):
            return _sentence(memory.card_bytes, needs.device, len(on_card))
    return None


def _sentence(num_bytes: int, place: str, num_others: int) -> str:
    others = "the job that runs" if num_others == 1 else f"the {num_others} jobs that run"
    return f"it takes about {num_bytes / 2**30:.1f} GiB of memory, which {place} does not have left beside {others}"
