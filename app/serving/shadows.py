"""Versions that are asked what another has answered, only to be compared with it.

Nothing here makes an answer wait: rows are encoded and predicted anew in a thread of low priority, after the answer is
known, and what would have to wait behind too much is dropped. Shape suffixes: N rows, T targets, L classes.
"""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import numpy as np
import structlog
from torch import Tensor

from app.serving.cache import ModelCache
from app.serving.served_model import ServedModel
from app.serving.statistics import Request
from app.storage.counters import Counters

MAX_WAITING_REQUESTS = 16
MAX_WAITING_ROWS = 16_384
RELATIVE_TOLERANCE = 0.01  # numbers that are nearer than this agree
NICENESS = 10

Encode = Callable[[ServedModel], Tensor]
"""The rows of a request, encoded for another version than the one that has answered."""

log = structlog.get_logger("gradserve.shadows")


class Comparison(NamedTuple):
    """`difference`: the sum over rows of the mean absolute difference of numbers; of labels it is 0."""

    num_agreed: int
    difference: float
    seconds: float


class Shadows:
    """One for each process. All methods are called on its event loop."""

    def __init__(self, cache: ModelCache, counters: Counters) -> None:
        self._cache, self._counters = cache, counters
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="shadow", initializer=_step_back)
        self._num_requests = self._num_rows = 0
        self._failed: set[tuple[str, str]] = set()

    def offer(self, request: Request, values: Tensor, encode: Encode) -> None:
        """Have the request's shadow, if it has one, asked for the rows that were just answered with `values`."""
        if request.shadow is None:
            return
        answer_seconds = request.compute_seconds()
        num_rows = len(values)
        if self._num_requests and (
            self._num_requests >= MAX_WAITING_REQUESTS or self._num_rows + num_rows > MAX_WAITING_ROWS
        ):
            self._count(request, "requests_total", 1, "dropped")
            return
        self._num_requests += 1
        self._num_rows += num_rows
        asking = asyncio.get_running_loop().run_in_executor(
            self._executor, self._ask, request.model, request.shadow, values, encode
        )
        asking.add_done_callback(partial(self._conclude, request, num_rows, answer_seconds))

    def _ask(self, answered: ServedModel, version: str, values: Tensor, encode: Encode) -> Comparison:
        shadow = self._cache.get(answered.name, version)
        started = time.perf_counter()
        others = shadow.model.predict(encode(shadow))
        return compare(answered, values, shadow, others, time.perf_counter() - started)

    def _conclude(
        self, request: Request, num_rows: int, answer_seconds: float, asked: "asyncio.Future[Comparison]"
    ) -> None:
        self._num_requests -= 1
        self._num_rows -= num_rows
        if asked.cancelled():
            return
        if error := asked.exception():
            self._count(request, "requests_total", 1, "failed")
            self._tell(request, error)
            return
        found = asked.result()
        self._count(request, "requests_total", 1, "compared")
        self._count(request, "rows_total", num_rows)
        self._count(request, "agreed_rows_total", found.num_agreed)
        self._count(request, "difference_total", found.difference)
        self._count(request, "compute_seconds_total", answer_seconds, "answer")
        self._count(request, "compute_seconds_total", found.seconds, "shadow")

    def _count(self, request: Request, fact: str, amount: float, *labels: str) -> None:
        assert request.shadow is not None
        model = request.model
        cell = self._counters.cell(f"gradserve_shadow_{fact}", model.name, model.version, request.shadow, *labels)
        self._counters.values[cell] += amount

    def _tell(self, request: Request, error: BaseException) -> None:
        """Once for each pair: they fail by the thousand."""
        assert request.shadow is not None
        pair = (request.model.name, request.shadow)
        if pair not in self._failed:
            self._failed.add(pair)
            log.warning("a shadow can't be compared", model=pair[0], version=pair[1], error=repr(error))

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)


def compare(one: ServedModel, values: Tensor, other: ServedModel, others: Tensor, seconds: float) -> Comparison:
    """How far two versions say the same of the same rows.

    Raises:
        ValueError: they predict different things.
    """
    task = one.model.signature.task
    if task != other.model.signature.task:
        raise ValueError(f"a {task} model can't be compared with a {other.model.signature.task} model")
    if task == "regression":
        numbers_NT, others_NT = values.numpy(), others.numpy()
        if numbers_NT.shape != others_NT.shape:
            raise ValueError(f"{numbers_NT.shape[1]} targets can't be compared with {others_NT.shape[1]}")
        agreed = np.isclose(numbers_NT, others_NT, rtol=RELATIVE_TOLERANCE, equal_nan=True).all(axis=1)
        difference = np.nan_to_num(np.abs(numbers_NT - others_NT).mean(axis=1), posinf=0.0).sum()
        return Comparison(int(agreed.sum()), float(difference), seconds)
    labels, other_labels = _labels(one, values), _labels(other, others)
    return Comparison(sum(map(lambda a, b: a == b, labels, other_labels)), 0.0, seconds)


def _labels(model: ServedModel, values: Tensor) -> list[object]:
    """What is said of each row: a label, or the set of those that apply."""
    said = model.answer(values)["predictions"]
    if model.model.signature.task != "multilabel":
        return list(said)
    classes = model.model.signature.classes or ()
    return [{label for label, applies in zip(classes, row, strict=True) if applies} for row in said]


def _step_back() -> None:
    """Let answers have the processor first."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
