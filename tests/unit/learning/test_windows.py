"""Rows of a mapped file are asked for before they are wanted, and not again and again."""

import mmap
from pathlib import Path

import pytest
import torch

from app.learning import rows as rows_module
from app.learning import windows as windows_module
from app.learning.rows import MappedFile, Rows
from app.learning.windows import Windows

NUM_ROWS, ROW_BYTES = 5000, 1024
CPU = torch.device("cpu")


class Asked(mmap.mmap):
    """Notes the bytes that were asked for."""

    spans: list[tuple[int, int]]

    def madvise(self, option: int, start: int = 0, length: int | None = None) -> None:
        if option == mmap.MADV_WILLNEED:
            assert length is not None
            self.spans.append((start, start + length))
            super().madvise(option, start, length)
        else:
            super().madvise(option)


@pytest.fixture
def mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Rows, Asked]:
    """Rows that are their own number, in blocks of four."""
    monkeypatch.setattr(windows_module, "WINDOWED_BYTES", 0)
    monkeypatch.setattr(windows_module, "BLOCK_BYTES", 4 * ROW_BYTES)
    monkeypatch.setattr(rows_module, "MAPPED_BYTES", 0)
    monkeypatch.setattr(rows_module, "SCATTERED_ROWS", 50)
    numbers = torch.arange(NUM_ROWS, dtype=torch.float32)[:, None].expand(-1, ROW_BYTES // 4).contiguous()
    (tmp_path / "rows").write_bytes(numbers.numpy().tobytes())
    with (tmp_path / "rows").open("r+b") as file:
        mapping = Asked(file.fileno(), 0)
    mapping.spans = []
    inputs = torch.frombuffer(mapping, dtype=torch.float32).view(numbers.shape)
    return Rows(inputs, numbers[:, 0], None, MappedFile(mapping, NUM_ROWS, ROW_BYTES)), mapping


def take(rows: Rows, asked: Asked, order: torch.Tensor, first: int, last: int) -> None:
    """These rows are given, and were asked for."""
    found = rows.take(order, first, last, CPU)
    assert found.inputs[:, 7].tolist() == found.targets.tolist() == order[first:last].tolist()
    for row in order[first:last].tolist():
        begin, end = row * ROW_BYTES, (row + 1) * ROW_BYTES
        assert any(start <= begin and end <= stop for start, stop in asked.spans), f"row {row} was not asked for"


def test_each_epoch_asks_for_every_block_once(mapped: tuple[Rows, Asked]) -> None:
    rows, asked = mapped
    for epoch in range(2):
        asked.spans.clear()
        order = Windows(NUM_ROWS, 4).shuffled(torch.Generator().manual_seed(epoch))
        for first in range(0, NUM_ROWS, 300):
            take(rows, asked, order, first, min(first + 300, NUM_ROWS))
        assert sorted(asked.spans) == [(begin, begin + 4096) for begin in range(0, NUM_ROWS * ROW_BYTES, 4096)]


def test_a_window_that_follows_is_asked_for_beforehand(mapped: tuple[Rows, Asked]) -> None:
    rows, asked = mapped
    order = Windows(NUM_ROWS, 4).shuffled(torch.Generator())
    take(rows, asked, order, 0, 10)
    assert len(asked.spans) == 1250, "that of the rows, and the next"
    take(rows, asked, order, 10, 20)
    assert len(asked.spans) == 1250


def test_a_run_that_is_gone_on_with_asks_from_where_it_is(mapped: tuple[Rows, Asked]) -> None:
    rows, asked = mapped
    order = Windows(NUM_ROWS, 4).shuffled(torch.Generator())
    take(rows, asked, order, 4500, 4600)
    assert len(asked.spans) <= 500 // 4 + 250


def test_an_order_that_jumps_about_is_not_read_ahead(
    mapped: tuple[Rows, Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, asked = mapped
    monkeypatch.setattr(rows.file, "_windows", Windows(NUM_ROWS, 4, blocks_per_window=100))
    order = torch.randint(NUM_ROWS, (NUM_ROWS,), generator=torch.Generator())
    found = rows.take(order, 0, 10, CPU)
    assert found.inputs[:, 0].tolist() == order[:10].tolist()
    assert asked.spans == []
