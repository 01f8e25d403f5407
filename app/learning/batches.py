"""Which rows each step sees. The order of an epoch follows from seed and epoch alone, so nothing of it is stored.

Full batch, mini-batch and stochastic descent are one rule with another number of rows a step.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from app.learning.windows import Windows, windows_of
from app.specs.descent import DescentSpec

DRAWS_AT_ONCE = 2**20


@dataclass(frozen=True)
class Batching:
    """`batch_size` rows a gradient, `accumulate_steps` gradients a step; an epoch's last step may see fewer rows.

    `least`: a rest of fewer rows than that joins the batch before it, as batch norm has no variance of one row.
    `windows`: within which rows are shuffled, where they are too many to be shuffled as a whole.
    """

    num_rows: int
    batch_size: int
    accumulate_steps: int = 1
    shuffle: bool = True
    least: int = 1
    windows: Windows | None = None

    @cached_property
    def rows_per_step(self) -> int:
        return self.batch_size * self.accumulate_steps

    @cached_property
    def steps_per_epoch(self) -> int:
        whole, rest = divmod(self.num_rows, self.rows_per_step)
        return max(1, whole + (rest >= self.least))

    def bounds(self, first: int, last: int) -> tuple[int, int]:
        """The rows of steps `first` to `last` (exclusive) of an epoch."""
        end = self.num_rows if last >= self.steps_per_epoch else last * self.rows_per_step
        return first * self.rows_per_step, end

    def sizes(self, first: int, last: int) -> list[int]:
        """How many rows each of these steps sees."""
        begin, end = self.bounds(first, last)
        sizes = [self.rows_per_step] * (last - first)
        sizes[-1] += end - begin - sum(sizes)
        return sizes

    def parts(self, num_rows: int) -> list[int]:
        """The sizes of the gradients that make up a step of `num_rows` rows."""
        whole, rest = divmod(num_rows, self.batch_size)
        parts = [self.batch_size] * whole + [rest] * (rest > 0)
        return [*parts[:-2], parts[-2] + rest] if 0 < rest < self.least and whole else parts


def plan_batches(spec: DescentSpec, num_rows: int, *, row_bytes: int = 0, least: int = 1) -> Batching:
    """`row_bytes`: of a row's inputs; without it, rows are shuffled as a whole, however many they are."""
    if spec.variant == "full_batch":
        return Batching(num_rows, num_rows, shuffle=False)  # the order of a sum's terms is no choice
    assert spec.batch_size is not None
    windows = windows_of(num_rows, row_bytes)
    return Batching(num_rows, min(spec.batch_size, num_rows), spec.accumulate_steps, spec.shuffle, least, windows)


def epoch_order(
    batching: Batching, seed: int, epoch: int, device: torch.device, shares: Tensor | None = None
) -> Tensor | None:
    """The rows `[num_rows]` of this epoch (from 0) in order, or None for the order they are in.

    A permutation; with `shares` (`add_up`), draws with replacement, each row as likely as its chance says.
    """
    if shares is None and not batching.shuffle:
        return None
    generator = torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + epoch + 1) % 2**63)
    dtype = torch.int32 if batching.num_rows < 2**31 else torch.int64  # the draws are the same
    if shares is not None:
        order = torch.empty(batching.num_rows, dtype=dtype)
        for part in order.split(DRAWS_AT_ONCE):
            draws = torch.rand(len(part), dtype=torch.float64, generator=generator)
            torch.searchsorted(shares, draws, out_int32=dtype == torch.int32, out=part)
        return order.to(device)
    if batching.windows is not None:
        return batching.windows.shuffled(generator).to(device)
    return torch.randperm(batching.num_rows, generator=generator, dtype=dtype).to(device)


def add_up(chances: Tensor) -> Tensor:
    """Chances `[num_rows]` of rows to be drawn, in place, as the share that each row and those before it have.

    Draws by these are those of `torch.multinomial`, which knows 2²⁴ rows at most, bit for bit.
    """
    shares = chances.cumsum_(0)
    return shares.div_(shares[-1].clone())
