"""What two versions say of the same rows, compared."""

import asyncio
import threading
from pathlib import Path

import polars as pl
import pytest
import torch
from torch import Tensor

from app.serving.cache import ModelCache
from app.serving.served_model import ServedModel
from app.serving.shadows import MAX_WAITING_REQUESTS, MAX_WAITING_ROWS, Shadows, compare
from app.serving.statistics import Request
from app.storage.counters import Counters
from app.storage.models import ModelStore
from tests.samples import publish, untrained
from tests.waiting import until

NUMBERS = pl.DataFrame({"x": [1.0, 2.0, 3.0], "y": [0.5, 1.5, 2.75], "z": [1.0, 2.0, 4.0]})
LABELS = pl.DataFrame({"x": [1.0, 2.0, 3.0] * 4, "y": ["a", "b", "c"] * 4})
FLAGS = pl.DataFrame({"x": [1.0, 2.0, 3.0] * 4, "y": [True, False, True] * 4, "z": [False, False, True] * 4})


def served(frame: pl.DataFrame, target: str | list[str] = "y", version: str = "1") -> ServedModel:
    return ServedModel("m", version, untrained(frame, target, data={"features": ["x"]}), 1)


# ---- comparing


def test_numbers_agree_within_a_hundredth() -> None:
    model = served(NUMBERS)
    values = torch.tensor([[1.0], [100.0], [-3.0], [5.0]])
    found = compare(model, values, model, torch.tensor([[1.009], [102.0], [3.0], [5.0]]), 0.5)
    assert (found.num_agreed, found.seconds) == (2, 0.5)
    assert found.difference == pytest.approx(0.009 + 2 + 6, abs=1e-5)


def test_a_row_agrees_where_all_of_its_targets_do() -> None:
    model = served(NUMBERS, ["y", "z"])
    found = compare(model, torch.tensor([[1.0, 2.0], [1.0, 2.0]]), model, torch.tensor([[1.0, 2.0], [1.0, 3.0]]), 0)
    assert found.num_agreed == 1
    assert found.difference == pytest.approx(0.5)


def test_what_is_not_finite_spoils_no_sum() -> None:
    model = served(NUMBERS)
    values = torch.tensor([[float("nan")], [float("inf")], [1.0]])
    found = compare(model, values, model, torch.tensor([[float("nan")], [2.0], [1.0]]), 0)
    assert (found.num_agreed, found.difference) == (2, 0.0)


def test_labels_agree_whatever_their_place() -> None:
    one = served(LABELS)
    other = served(LABELS.with_columns(pl.col("y").replace({"a": "d"})))
    abc, bcd = torch.eye(3), torch.eye(3)
    assert compare(one, abc, one, abc, 0).num_agreed == 3
    assert compare(one, abc[[1, 2, 0]], other, bcd, 0).num_agreed == 2


def test_several_labels_agree_as_sets() -> None:
    model = served(FLAGS, ["y", "z"])
    values = torch.tensor([[0.9, 0.1], [0.9, 0.9]])
    assert compare(model, values, model, torch.tensor([[0.6, 0.4], [0.9, 0.4]]), 0).num_agreed == 1


def test_models_of_different_tasks_are_not_compared() -> None:
    with pytest.raises(ValueError, match="regression"):
        compare(served(NUMBERS), torch.zeros(1, 1), served(LABELS), torch.zeros(1, 3), 0)
    with pytest.raises(ValueError, match="2 targets"):
        compare(served(NUMBERS, ["y", "z"]), torch.zeros(1, 2), served(NUMBERS), torch.zeros(1, 1), 0)


# ---- asking


@pytest.fixture
def counters(tmp_path: Path) -> Counters:
    return Counters(tmp_path / "counters")


@pytest.fixture
def cache(tmp_path: Path, counters: Counters) -> ModelCache:
    store = ModelStore(tmp_path / "models")
    for _ in range(2):
        publish(store, untrained(NUMBERS, data={"features": ["x"]}))
    return ModelCache(store, counters, max_bytes=2**30, device="cpu")


@pytest.fixture
def request_(cache: ModelCache) -> Request:
    return Request(cache.get("m", "1"), shadow="2")


def counted(counters: Counters, fact: str, *labels: str) -> float:
    return counters.read().counts.get((f"gradserve_shadow_{fact}", "m", "1", "2", *labels), 0)


def rows(num_rows: int) -> Tensor:
    return torch.linspace(0, 1, num_rows).reshape(-1, 1)


def test_a_shadow_is_asked_for_the_same_rows(cache: ModelCache, counters: Counters, request_: Request) -> None:
    async def main() -> None:
        shadows = Shadows(cache, counters)
        request_.took("compute_input", 10_000_000)
        request_.took("compute_infer", 20_000_000)
        request_.took("queue", 40_000_000)
        shadows.offer(request_, request_.model.model.predict(rows(5)), lambda other: rows(5))
        await asyncio.to_thread(until, lambda: counted(counters, "requests_total", "compared"))
        shadows.close()

    asyncio.run(main())
    assert counted(counters, "rows_total") == counted(counters, "agreed_rows_total") == 5
    assert counted(counters, "difference_total") == 0
    assert counted(counters, "compute_seconds_total", "answer") == pytest.approx(0.03)
    assert counted(counters, "compute_seconds_total", "shadow") > 0


def test_a_request_without_a_shadow_asks_nobody(cache: ModelCache, counters: Counters) -> None:
    async def main() -> None:
        shadows = Shadows(cache, counters)
        shadows.offer(Request(cache.get("m", "1")), rows(1), lambda other: pytest.fail("it was asked"))
        shadows.close()

    asyncio.run(main())
    assert counters.read().counts == {}


def fails(other: ServedModel) -> Tensor:
    raise ArithmeticError("it fell over")


def test_a_shadow_that_fails_is_counted_and_harms_nobody(
    cache: ModelCache, counters: Counters, request_: Request
) -> None:
    async def main() -> None:
        shadows = Shadows(cache, counters)
        for _ in range(3):
            shadows.offer(request_, rows(2), fails)
        await asyncio.to_thread(until, lambda: counted(counters, "requests_total", "failed") == 3)
        shadows.offer(request_, request_.model.model.predict(rows(2)), lambda other: rows(2))
        await asyncio.to_thread(until, lambda: counted(counters, "requests_total", "compared") == 1)
        shadows.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("num_offered", "num_rows", "num_taken"),
    [(MAX_WAITING_REQUESTS + 5, 1, MAX_WAITING_REQUESTS), (3, MAX_WAITING_ROWS // 2, 2), (2, 2 * MAX_WAITING_ROWS, 1)],
)
def test_what_would_wait_behind_too_much_is_dropped(
    cache: ModelCache, counters: Counters, request_: Request, num_offered: int, num_rows: int, num_taken: int
) -> None:
    gate = threading.Event()

    def wait(other: ServedModel) -> Tensor:
        assert gate.wait(20)
        return rows(num_rows)

    async def main() -> None:
        shadows = Shadows(cache, counters)
        for _ in range(num_offered):
            shadows.offer(request_, rows(num_rows), wait)
        assert counted(counters, "requests_total", "dropped") == num_offered - num_taken
        gate.set()
        await asyncio.to_thread(until, lambda: counted(counters, "requests_total", "compared") == num_taken)
        shadows.offer(request_, rows(num_rows), wait)
        await asyncio.to_thread(until, lambda: counted(counters, "requests_total", "compared") == num_taken + 1)
        shadows.close()

    asyncio.run(main())


def test_closing_leaves_nothing_waiting(cache: ModelCache, counters: Counters, request_: Request) -> None:
    gate, entered = threading.Event(), threading.Event()

    def wait(other: ServedModel) -> Tensor:
        entered.set()
        assert gate.wait(20)
        return rows(1)

    async def main() -> None:
        shadows = Shadows(cache, counters)
        for _ in range(4):
            shadows.offer(request_, rows(1), wait)
        await asyncio.to_thread(entered.wait, 20)
        shadows.close()
        gate.set()
        await asyncio.to_thread(until, lambda: counted(counters, "requests_total", "compared") == 1)

    asyncio.run(main())
    assert counted(counters, "requests_total", "failed") == 0
