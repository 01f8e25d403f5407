"""The order of rows that are too many to jump about in.

A disk gives 32 KiB in hardly more time than a row. So an epoch goes through blocks of neighbouring rows in random
order, and shuffles the rows of a thousand blocks at a time: a batch has rows from all over the table, and what must be
read is read once an epoch. In memory the order is the same, so that a run learns the same wherever its rows are.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

WINDOWED_BYTES = 256 * 2**20  # of inputs: fewer are shuffled as a whole
BLOCK_BYTES = 2**15


@dataclass(frozen=True)
class Windows:
    """The last block may have fewer rows, and with it the window that it comes into."""

    num_rows: int
    rows_per_block: int
    blocks_per_window: int = 1024

    @cached_property
    def rows_per_window(self) -> int:
        return self.rows_per_block * self.blocks_per_window

    @cached_property
    def num_blocks(self) -> int:
        return -(-self.num_rows // self.rows_per_block)

    def shuffled(self, generator: torch.Generator) -> Tensor:
        """A permutation `[num_rows]`."""
        dtype = torch.int32 if self.num_rows < 2**31 else torch.int64
        within, order, end = torch.arange(self.rows_per_block), torch.empty(self.num_rows, dtype=dtype), 0
        for blocks in torch.randperm(self.num_blocks, generator=generator).split(self.blocks_per_window):
            rows = (blocks[:, None] * self.rows_per_block + within).flatten()
            rows = rows[rows < self.num_rows]
            begin, end = end, end + len(rows)
            order[begin:end] = rows[torch.randperm(len(rows), generator=generator)]
        return order

    def blocks_of(self, rows: Tensor) -> list[int]:
        """The blocks that these rows are in, each once, from first to last."""
        found = torch.zeros(self.num_blocks, dtype=torch.bool)
        found[rows // self.rows_per_block] = True
        return found.nonzero().flatten().tolist()


def windows_of(num_rows: int, row_bytes: int) -> Windows | None:
    """None for rows that are shuffled as a whole."""
    return Windows(num_rows, max(1, BLOCK_BYTES // row_bytes)) if num_rows * row_bytes > WINDOWED_BYTES else None
