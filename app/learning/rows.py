"""Encoded rows: what learning and evaluation go through, in memory or in a mapped file."""

import mmap
from dataclasses import dataclass

import torch
from torch import Tensor

from app.learning.windows import Windows, windows_of

MAPPED_BYTES = 256 * 2**20  # of a mapped file, which may be in memory at once
ALIGNED_BYTES = 64  # where matrices begin that libraries round alike: elsewhere they take other instructions
SCATTERED_ROWS = MAPPED_BYTES // 2**16  # a row that is read comes with the pages around it: 16 of them on Linux


class MappedFile:
    """What inputs `[num_rows, F]` that are too many for memory are in."""

    def __init__(self, mapping: mmap.mmap, num_rows: int, row_bytes: int) -> None:
        self._mapping, self._row_bytes = mapping, row_bytes
        self._windows = windows_of(num_rows, row_bytes)
        self._first = self._asked = 0  # of the order: where was last read from, and up to where has been asked for
        self.in_windows = False

    def release(self) -> None:
        """Let go of the pages that were read; the system may keep them as long as it has room."""
        self._mapping.madvise(mmap.MADV_DONTNEED)

    def turn_to(self, order: Tensor | None, first: int, last: int) -> None:
        """Rows `first` to `last` of an order are wanted now: let go of those before, and have the next windows read.

        Without an order, or in one that jumps about as draws with replacement do, nothing is known of what follows.
        """
        if self._windows is None or order is None:
            self.in_windows = False
        else:
            self._read_ahead(self._windows, order, first, last)
        if not self.in_windows:
            self.release()

    def _read_ahead(self, windows: Windows, order: Tensor, first: int, last: int) -> None:
        if first <= self._first or first > self._asked:  # another epoch, or one that is gone on with
            self._asked = first
        self._first = first
        while self._asked < min(last + windows.rows_per_window, len(order)):
            blocks = windows.blocks_of(order[self._asked : self._asked + windows.rows_per_window])
            self._asked += windows.rows_per_window
            self.in_windows = len(blocks) <= 2 * windows.blocks_per_window
            if self.in_windows:
                self.release()
                self._ask(blocks, windows.rows_per_block * self._row_bytes)

    def _ask(self, blocks: list[int], num_bytes: int) -> None:
        for block in blocks:
            begin = block * num_bytes // mmap.PAGESIZE * mmap.PAGESIZE
            end = min((block + 1) * num_bytes, len(self._mapping))
            self._mapping.madvise(mmap.MADV_WILLNEED, begin, end - begin)


@dataclass(slots=True)
class Rows:
    """Training or validation rows: `inputs [N, F]`, `targets [N]` or `[N, T]`, `weights [N]` or None.

    The mean weight is 1. `file` is what the inputs are in, where they are too many for memory.
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor | None = None
    file: MappedFile | None = None

    def release(self) -> None:
        """Let go of the mapped file's pages that were read."""
        if self.file is not None:
            self.file.release()

    def __len__(self) -> int:
        return self.inputs.shape[0]

    @property
    def num_bytes(self) -> int:
        return sum(part.nbytes for part in (self.inputs, self.targets, self.weights) if part is not None)

    def take(self, order: Tensor | None, first: int, last: int, device: torch.device) -> "Rows":
        """Rows `first` to `last` of an order; a view where there is no order."""
        if self.file is not None:
            self.file.turn_to(order, first, last)
        if order is None and last - first == len(self) and self.inputs.device == device:
            return self
        if order is None:
            picked = [
                part[first:last] if part is not None else None for part in (self.inputs, self.targets, self.weights)
            ]
        else:
            index = order[first:last]
            others = (self.targets, self.weights)
            picked = [self._gathered(index.to(self.inputs.device))]
            picked += [part.index_select(0, index.to(part.device)) if part is not None else None for part in others]
        inputs, targets, weights = (_send(part, device) if part is not None else None for part in picked)
        assert inputs is not None
        assert targets is not None
        return Rows(inputs, targets, weights)

    def _gathered(self, index: Tensor) -> Tensor:
        """The inputs of these rows; of a mapped file, so few at a time that little of it is in memory at once."""
        if self.file is None or self.file.in_windows or self.inputs.nbytes <= MAPPED_BYTES:
            return self.inputs.index_select(0, index)
        gathered = self.inputs.new_empty(len(index), self.inputs.shape[1])
        for part, room in zip(index.split(SCATTERED_ROWS), gathered.split(SCATTERED_ROWS), strict=True):
            torch.index_select(self.inputs, 0, part, out=room)
            self.release()
        return gathered

    def to(self, device: torch.device) -> "Rows":
        """On another device; rows of a mapped file, or too many for it, stay and go there block by block."""
        if self.file is not None or self.num_bytes > room_on(device):
            return self
        weights = self.weights.to(device) if self.weights is not None else None
        return Rows(self.inputs.to(device), self.targets.to(device), weights)

    def aligned(self) -> "Rows":
        """The same rows, whose inputs do not begin in the middle of a block of `ALIGNED_BYTES`."""
        if self.inputs.storage_offset() * self.inputs.element_size() % ALIGNED_BYTES == 0:
            return self
        return Rows(self.inputs.clone(), self.targets, self.weights)

    def split(self, sizes: list[int]) -> list["Rows"]:
        weights = self.weights.split(sizes) if self.weights is not None else [None] * len(sizes)
        return [Rows(*part) for part in zip(self.inputs.split(sizes), self.targets.split(sizes), weights, strict=True)]


def room_on(device: torch.device) -> float:
    """How many bytes of rows may stay on a device: half of what a card has free."""
    return torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else float("inf")


def _send(part: Tensor, device: torch.device) -> Tensor:
    """To a card through pinned memory, which the copy does not have to be waited for."""
    if device.type == "cuda" and part.device.type == "cpu":
        return part.pin_memory().to(device, non_blocking=True)
    return part.to(device)
