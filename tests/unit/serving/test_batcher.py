"""Requests in flight share forward passes, and nothing else."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import polars as pl
import pytest
import torch
from torch import Tensor

from app.errors import Overloaded
from app.learning.model import Model
from app.serving.batcher import Batcher, Limits
from app.serving.served_model import ServedModel
from app.serving.statistics import Request
from tests.samples import untrained

T = TypeVar("T")
FRAME = pl.DataFrame({"a": [0.0, 1.0, 5.0], "b": [3.0, 1.0, 2.0], "y": [0.25, 1.5, 2.5]})
SIZES = [1, 7, 2, 30, 1, 3, 12, 5]
ON_LOOP, IN_THREAD = 1, 10**9


@dataclass
class Watched(Model):
    """Notes the rows of each forward pass; waits at the gate, and fails where it is told to."""

    passes: list[int] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    failing: bool = False

    def predict(self, inputs: Tensor) -> Tensor:
        self.passes.append(len(inputs))
        self.entered.set()
        assert self.gate.wait(20)
        if self.failing:
            raise ArithmeticError("the network fell over")
        return super().predict(inputs)


def served(num_bytes: int, *, gate_open: bool = True) -> tuple[ServedModel, Watched]:
    found = untrained(FRAME, network={"hidden_features": [4]}, init={"weight": "normal"})
    watched = Watched(found.spec, found.features, found.targets, found.network)
    if gate_open:
        watched.gate.set()
    return ServedModel("m", "1", watched, num_bytes), watched


def rows_of(size: int, seed: int = 0) -> Tensor:
    return torch.randn((size, 2), generator=torch.Generator().manual_seed(100 * size + seed))


def run(main: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(main, 30))


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 20)


@pytest.mark.parametrize("num_bytes", [ON_LOOP, IN_THREAD])
def test_each_request_gets_its_own_rows(num_bytes: int) -> None:
    model, watched = served(num_bytes)

    async def main() -> list[Tensor]:
        with ThreadPoolExecutor(2) as executor:
            batcher = Batcher(executor, lambda model: None)
            requests = [batcher.predict(Request(model), rows_of(size, seed)) for seed, size in enumerate(SIZES)]
            return await asyncio.gather(*requests)

    answers = run(main())
    assert sum(watched.passes) == sum(SIZES)
    assert len(watched.passes) == 1
    for seed, (size, answer) in enumerate(zip(SIZES, answers, strict=True)):
        torch.testing.assert_close(answer, model.model.predict(rows_of(size, seed)))


def test_what_comes_while_the_network_is_busy_goes_together() -> None:
    model, watched = served(IN_THREAD, gate_open=False)

    async def main() -> list[Tensor]:
        with ThreadPoolExecutor(2) as executor:
            batcher = Batcher(executor, lambda model: None)
            first = asyncio.create_task(batcher.predict(Request(model), rows_of(3)))
            await until(watched.entered)
            others = [asyncio.create_task(batcher.predict(Request(model), rows_of(size))) for size in (1, 2, 4)]
            await asyncio.sleep(0)
            watched.gate.set()
            return await asyncio.gather(first, *others)

    answers = run(main())
    assert watched.passes == [3, 7]
    for size, answer in zip((3, 1, 2, 4), answers, strict=True):
        torch.testing.assert_close(answer, model.model.predict(rows_of(size)))


def test_models_do_not_wait_for_each_other() -> None:
    slow, watched = served(IN_THREAD, gate_open=False)
    quick, _ = served(ON_LOOP)

    async def main() -> None:
        with ThreadPoolExecutor(2) as executor:
            batcher = Batcher(executor, lambda model: None)
            waiting = asyncio.create_task(batcher.predict(Request(slow), rows_of(3)))
            await until(watched.entered)
            assert len(await batcher.predict(Request(quick), rows_of(5))) == 5
            assert not waiting.done()
            watched.gate.set()
            assert len(await waiting) == 3

    run(main())


@pytest.mark.parametrize("num_bytes", [ON_LOOP, IN_THREAD])
def test_a_cancelled_request_leaves_the_others_whole(num_bytes: int) -> None:
    model, watched = served(num_bytes)

    async def main() -> list[Any]:
        with ThreadPoolExecutor(2) as executor:
            batcher = Batcher(executor, lambda model: None)
            tasks = [asyncio.create_task(batcher.predict(Request(model), rows_of(size))) for size in (3, 1, 4)]
            await asyncio.sleep(0)
            tasks[1].cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

    three, cancelled, four = run(main())
    assert isinstance(cancelled, asyncio.CancelledError)
    torch.testing.assert_close(three, model.model.predict(rows_of(3)))
    torch.testing.assert_close(four, model.model.predict(rows_of(4)))
    assert watched.passes[0] == 7


def test_requests_that_are_cancelled_during_their_pass_leave_the_others_whole() -> None:
    model, watched = served(IN_THREAD, gate_open=False)

    async def main() -> list[Any]:
        with ThreadPoolExecutor(2) as executor:
            batcher = Batcher(executor, lambda model: None)
            tasks = [asyncio.create_task(batcher.predict(Request(model), rows_of(size))) for size in (3, 1, 4)]
            await until(watched.entered)
            tasks[0].cancel()
            watched.gate.set()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert len(await batcher.predict(Request(model), rows_of(2))) == 2
            return found

    cancelled, one, four = run(main())
    assert isinstance(cancelled, asyncio.CancelledError)
    torch.testing.assert_close(one, model.model.predict(rows_of(1)))
    torch.testing.assert_close(four, model.model.predict(rows_of(4)))


@pytest.mark.parametrize("num_bytes", [ON_LOOP, IN_THREAD])
def test_all_requests_cancelled_is_no_pass_and_no_harm(num_bytes: int) -> None:
    model, watched = served(num_bytes)

    async def main() -> None:
        with ThreadPoolExecutor(2) as executor:
            batcher = Batcher(executor, lambda model: None)
            task = asyncio.create_task(batcher.predict(Request(model), rows_of(3)))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert watched.passes == []
            assert len(await batcher.predict(Request(model), rows_of(2))) == 2

    run(main())


@pytest.mark.parametrize("num_bytes", [ON_LOOP, IN_THREAD])
def test_an_error_reaches_all_of_its_batch_and_no_later_one(num_bytes: int) -> None:
    model, watched = served(num_bytes)
    watched.failing = True

    async def main() -> None:
        with ThreadPoolExecutor(2) as executor:
            batcher = Batcher(executor, lambda model: None)
            requests = [batcher.predict(Request(model), rows_of(size)) for size in (3, 1, 4)]
            found = await asyncio.gather(*requests, return_exceptions=True)
            assert [type(error) for error in found] == [ArithmeticError] * 3
            watched.failing = False
            assert len(await batcher.predict(Request(model), rows_of(2))) == 2

    run(main())


# ---- more than a pass takes, and more than may wait


def test_a_request_of_more_rows_than_a_pass_goes_through_in_parts_between_which_others_have_their_turn() -> None:
    model, watched = served(IN_THREAD, gate_open=False)

    async def main() -> list[Tensor]:
        with ThreadPoolExecutor(2) as executor:
            batcher = Batcher(executor, lambda model: None, Limits(batch_rows=4))
            large = asyncio.create_task(batcher.predict(Request(model), rows_of(10)))
            await until(watched.entered)
            small = asyncio.create_task(batcher.predict(Request(model), rows_of(2)))
            small.add_done_callback(lambda _: order.append("small"))
            large.add_done_callback(lambda _: order.append("large"))
            await asyncio.sleep(0)
            watched.gate.set()
            return await asyncio.gather(large, small)

    order: list[str] = []
    answers = run(main())
    assert sum(watched.passes) == 12
    assert max(watched.passes) == 4
    assert order == ["small", "large"]
    for size, answer in zip((10, 2), answers, strict=True):
        torch.testing.assert_close(answer, model.model.predict(rows_of(size)))


@pytest.mark.parametrize("limits", [Limits(queued_rows=5), Limits(queued_bytes=5 * rows_of(1).nbytes)])
def test_what_would_wait_behind_too_much_is_refused_until_somebody_leaves(limits: Limits) -> None:
    model, watched = served(IN_THREAD, gate_open=False)

    async def main() -> None:
        with ThreadPoolExecutor(2) as executor:
            batcher = Batcher(executor, lambda model: None, limits)
            first = asyncio.create_task(batcher.predict(Request(model), rows_of(3)))
            await until(watched.entered)
            second = asyncio.create_task(batcher.predict(Request(model), rows_of(2)))
            await asyncio.sleep(0)
            for _ in range(2):  # the refused one has taken no place
                with pytest.raises(Overloaded) as caught:
                    await batcher.predict(Request(model), rows_of(1))
                assert caught.value.retry_after_seconds >= 1
            second.cancel()
            await asyncio.gather(second, return_exceptions=True)
            third = asyncio.create_task(batcher.predict(Request(model), rows_of(2, seed=1)))
            await asyncio.sleep(0)
            watched.gate.set()
            torch.testing.assert_close(await first, model.model.predict(rows_of(3)))
            torch.testing.assert_close(await third, model.model.predict(rows_of(2, seed=1)))

    run(main())


def test_what_has_been_answered_in_part_is_not_refused_its_rest() -> None:
    model, watched = served(IN_THREAD)

    async def main() -> None:
        with ThreadPoolExecutor(2) as executor:
            batcher = Batcher(executor, lambda model: None, Limits(queued_rows=5))
            table = Request(model)
            await batcher.predict(table, rows_of(3))
            watched.gate.clear()
            watched.entered.clear()
            other = asyncio.create_task(batcher.predict(Request(model), rows_of(5)))
            await until(watched.entered)
            with pytest.raises(Overloaded):
                await batcher.predict(Request(model), rows_of(2))
            rest = asyncio.create_task(batcher.predict(table, rows_of(2)))
            await asyncio.sleep(0)
            watched.gate.set()
            torch.testing.assert_close(await rest, model.model.predict(rows_of(2)))
            await other

    run(main())


def test_a_request_that_nothing_is_before_passes_whatever_its_size() -> None:
    model, _ = served(IN_THREAD)

    async def main() -> None:
        with ThreadPoolExecutor(2) as executor:
            batcher = Batcher(executor, lambda model: None, Limits(batch_rows=4, queued_rows=5, queued_bytes=1))
            for _ in range(2):
                assert len(await batcher.predict(Request(model), rows_of(30))) == 30

    run(main())
