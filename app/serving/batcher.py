"""Requests in flight share a forward pass: whatever waits when the network is free goes through together."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from app.serving.served_model import ServedModel
from app.serving.statistics import Request

MAX_ROWS_ON_LOOP = 64  # more rows than that are computed in a thread, so that the event loop stays free
MAX_PARAMETERS_ON_LOOP = 1_000_000


class Waiting(NamedTuple):
    inputs: Tensor
    future: asyncio.Future[Tensor]
    request: Request
    since_ns: int


class Batcher:
    """One for each process. All methods are called on its event loop."""

    def __init__(self, executor: ThreadPoolExecutor, executed: Callable[[ServedModel], None]) -> None:
        self._executor = executor
        self._executed = executed  # is called after each forward pass
        self._waiting: dict[ServedModel, list[Waiting]] = {}
        self._busy: set[ServedModel] = set()

    async def predict(self, request: Request, inputs: Tensor) -> Tensor:
        """Values or probabilities `[N, ·]` of encoded rows `[N, F]`; each caller gets its own rows.

        The request is told how long it waited, and how long the forward pass took that it shared.
        """
        model = request.model
        future: asyncio.Future[Tensor] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(model, [])
        waiting.append(Waiting(inputs, future, request, time.perf_counter_ns()))
        if len(waiting) == 1 and model not in self._busy:
            asyncio.get_running_loop().call_soon(self._run, model)
        return await future

    def _run(self, model: ServedModel) -> None:
        batch = [waiting for waiting in self._waiting.pop(model, []) if not waiting.future.done()]
        if not batch:
            return
        started_ns = time.perf_counter_ns()
        inputs = batch[0].inputs if len(batch) == 1 else torch.cat([waiting.inputs for waiting in batch])
        if len(inputs) <= MAX_ROWS_ON_LOOP and model.num_bytes <= 4 * MAX_PARAMETERS_ON_LOOP:
            try:
                self._deliver(batch, model.model.predict(inputs), started_ns)
            except Exception as error:  # noqa: BLE001 (those who wait for it get it)
                self._fail(batch, error)
            return
        self._busy.add(model)
        running = asyncio.get_running_loop().run_in_executor(self._executor, model.model.predict, inputs)
        running.add_done_callback(lambda done: self._finish(model, batch, done, started_ns))

    def _finish(
        self, model: ServedModel, batch: list[Waiting], done: "asyncio.Future[Tensor]", started_ns: int
    ) -> None:
        self._busy.discard(model)
        if error := done.exception():
            self._fail(batch, error)
        else:
            self._deliver(batch, done.result(), started_ns)
        if model in self._waiting:
            self._run(model)

    def _deliver(self, batch: list[Waiting], values: Tensor, started_ns: int) -> None:
        took_ns = time.perf_counter_ns() - started_ns
        self._executed(batch[0].request.model)
        parts = [values] if len(batch) == 1 else values.split([len(waiting.inputs) for waiting in batch])
        for waiting, part in zip(batch, parts, strict=True):
            if not waiting.future.done():  # its client may have gone meanwhile
                waiting.request.took("queue", started_ns - waiting.since_ns)
                waiting.request.took("compute_infer", took_ns)
                waiting.future.set_result(part)

    @staticmethod
    def _fail(batch: list[Waiting], error: BaseException) -> None:
        for waiting in batch:
            if not waiting.future.done():
                waiting.future.set_exception(error)
