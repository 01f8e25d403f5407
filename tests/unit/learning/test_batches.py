"""The law of batches: each epoch sees every row once, in an order that follows from seed and epoch alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from app.learning import batches
from app.learning.batches import Batching, add_up, epoch_order, plan_batches
from app.learning.rows import Rows
from app.learning.steps import EagerSteps
from app.learning.windows import Windows, windows_of
from app.specs.descent import DescentSpec

CPU = torch.device("cpu")


@st.composite
def batchings(draw: st.DrawFn) -> Batching:
    num_rows = draw(st.integers(1, 60))
    batch_size = min(num_rows, draw(st.integers(1, 70)))
    windows = draw(st.none() | st.builds(Windows, st.just(num_rows), st.integers(1, 9), st.integers(1, 9)))
    return Batching(
        num_rows, batch_size, draw(st.integers(1, 4)), draw(st.booleans()), draw(st.integers(1, 2)), windows
    )


class Recorder(nn.Module):
    """Notes the rows of each forward pass; a row is its own number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen: list[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append([int(row) for row in x[:, 0]])
        return x * self.weight


def passes_of_an_epoch(batching: Batching, order: Tensor | None, cuts: list[int]) -> list[list[int]]:
    """The rows of each forward pass of the eager engine, which is asked for steps in chunks of these sizes."""
    network = Recorder()
    numbers = torch.arange(batching.num_rows, dtype=torch.float32)[:, None]
    engine = EagerSteps(
        nn.Sequential(network), lambda outputs, targets, weights: outputs.mean(), [], batching, max_grad_norm=None
    )
    step = 0
    while step < batching.steps_per_epoch:
        num = min(cuts[step % len(cuts)], batching.steps_per_epoch - step)
        assert len(engine.run(Rows(numbers, numbers), order, step, [0.1] * num)) == num
        step += num
    return network.seen


@given(batchings(), st.integers(0, 2**53), st.integers(0, 1000), st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_each_epoch_sees_every_row_once(batching: Batching, seed: int, epoch: int, cuts: list[int]) -> None:
    order = epoch_order(batching, seed, epoch, CPU)
    seen = [row for rows in passes_of_an_epoch(batching, order, cuts) for row in rows]
    assert sorted(seen) == list(range(batching.num_rows))
    assert seen == (list(range(batching.num_rows)) if order is None else order.tolist())


@given(batchings())
def test_no_gradient_sees_too_many_or_too_few(batching: Batching) -> None:
    sizes = [len(rows) for rows in passes_of_an_epoch(batching, None, [100])]
    assert max(sizes) <= batching.batch_size + batching.least - 1
    assert min(sizes) >= min(batching.least, batching.batch_size)
    assert sizes[:-1] == [batching.batch_size] * (len(sizes) - 1)


@given(batchings(), st.data())
def test_a_step_is_the_same_in_any_chunk(batching: Batching, data: st.DataObject) -> None:
    num = batching.steps_per_epoch
    sizes = batching.sizes(0, num)
    assert sum(sizes) == batching.num_rows
    assert max(sizes) < batching.rows_per_step + batching.least
    assert min(sizes) >= min(batching.least, batching.rows_per_step, batching.num_rows)
    first = data.draw(st.integers(0, num - 1))
    last = data.draw(st.integers(first + 1, num))
    assert batching.sizes(first, last) == sizes[first:last]
    assert batching.bounds(first, last) == (sum(sizes[:first]), sum(sizes[:last]))
    for size in sizes:
        assert sum(batching.parts(size)) == size


@given(st.integers(1, 200), st.integers(0, 2**53), st.integers(0, 10**6))
def test_the_order_follows_from_seed_and_epoch(num_rows: int, seed: int, epoch: int) -> None:
    torch.rand(3)  # whatever else was drawn
    one = epoch_order(Batching(num_rows, 7), seed, epoch, CPU)
    torch.rand(5)
    other = epoch_order(Batching(num_rows, 1, 3), seed, epoch, CPU)
    assert one is not None
    assert other is not None
    assert torch.equal(one, other)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        tuple(order.tolist())
        for seed in range(10)
        for epoch in range(10)
        if (order := epoch_order(Batching(50, 10), seed, epoch, CPU)) is not None
    }
    assert len(orders) == 100


def test_unshuffled_rows_stay_as_they_are() -> None:
    assert epoch_order(Batching(50, 10, shuffle=False), 0, 0, CPU) is None


def test_drawn_rows_are_as_likely_as_their_chances() -> None:
    shares = add_up(torch.tensor([1.0] * 90 + [9.0] * 10, dtype=torch.float64))
    drawn = [epoch_order(Batching(100, 10, shuffle=False), 0, epoch, CPU, shares) for epoch in range(50)]
    rows = torch.cat([order for order in drawn if order is not None])
    assert len(rows) == 5000
    assert (rows >= 90).double().mean().item() == pytest.approx(0.5, abs=0.03)
    again = epoch_order(Batching(100, 10), 0, 0, CPU, shares)  # after all those draws
    assert again is not None
    assert again.tolist() == rows[:100].tolist()


@given(num_rows=st.integers(1, 300), num_classes=st.integers(1, 5), seed=st.integers(0, 2**40))
def test_draws_are_those_of_a_multinomial_distribution(num_rows: int, num_classes: int, seed: int) -> None:
    codes = torch.randint(num_classes, [num_rows], generator=torch.Generator().manual_seed(seed))
    chances = 1.0 / torch.bincount(codes).double()[codes]
    generator = torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + 1) % 2**63)
    expected = torch.multinomial(chances, num_rows, replacement=True, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "DRAWS_AT_ONCE", 64)
        order = epoch_order(Batching(num_rows, 7), seed, 0, CPU, add_up(chances))
    assert order is not None
    assert order.tolist() == expected.tolist()


def test_rows_beyond_what_a_multinomial_distribution_can_have_are_drawn() -> None:
    num_rows = 2**24 + 2
    chances = torch.full([num_rows], 1e-15, dtype=torch.float64)
    chances[-2:] = 1.0
    order = epoch_order(Batching(1000, 10), 0, 0, CPU, add_up(chances))
    assert order is not None
    assert set(order.tolist()) == {num_rows - 2, num_rows - 1}


@pytest.mark.parametrize(
    ("descent", "expected"),
    [
        ({"variant": "full_batch"}, Batching(10, 10, 1, shuffle=False)),
        ({"variant": "full_batch", "shuffle": True}, Batching(10, 10, 1, shuffle=False)),
        ({"variant": "stochastic", "batch_size": 1}, Batching(10, 1, 1)),
        ({"variant": "mini_batch", "batch_size": 4}, Batching(10, 4, 1)),
        ({"variant": "mini_batch", "batch_size": 64}, Batching(10, 10, 1)),
        ({"variant": "mini_batch", "batch_size": 4, "accumulate_steps": 2}, Batching(10, 4, 2)),
        ({"variant": "mini_batch", "batch_size": 4, "shuffle": False}, Batching(10, 4, 1, shuffle=False)),
    ],
)
def test_variants_are_one_rule(descent: dict[str, object], expected: Batching) -> None:
    assert plan_batches(DescentSpec.model_validate(descent), 10) == expected


def test_a_window_has_rows_of_so_many_blocks_from_anywhere() -> None:
    """And of no block rows twice, so that a table that is sorted comes in good order."""
    windows = Windows(100_000, rows_per_block=10, blocks_per_window=100)
    order = windows.shuffled(torch.Generator().manual_seed(0))
    assert [len(windows.blocks_of(rows)) for rows in order.split(1000)] == [100] * 100
    for rows in order.split(1000):
        assert rows.min() < 10_000
        assert rows.max() > 90_000
        assert abs(rows.float().mean() - 50_000) < 15_000
        assert (rows.diff() == 1).sum() < 20, "neighbours that stayed neighbours"
    assert not torch.equal(order, windows.shuffled(torch.Generator().manual_seed(1)))


def test_only_rows_that_are_too_many_come_in_windows() -> None:
    assert windows_of(2**20, 256) is None
    assert windows_of(2**20 + 1, 256) == Windows(2**20 + 1, 128)
    assert windows_of(10**5, 10**6) == Windows(10**5, 1), "which is a shuffle as a whole"
    descent = DescentSpec(variant="mini_batch", batch_size=8)
    assert plan_batches(descent, 2**21, row_bytes=256).windows == Windows(2**21, 128)
    assert plan_batches(descent, 2**21).windows is None
    assert plan_batches(DescentSpec(variant="full_batch"), 2**21, row_bytes=256).windows is None
