"""Small requests of plain numbers that are in flight together share a pass, from their rows to their answers."""

import asyncio
import time
from collections import deque
from typing import Any, NamedTuple

from app.serving.dense import Dense
from app.serving.served_model import Answer, ServedModel
from app.serving.statistics import Part, Request, Statistics

MAX_ROWS = 64  # of a request
MAX_ROWS_AT_ONCE = 1024  # of a pass, which the event loop waits for
BY_ROW = {"predictions", "probabilities"}


class Waiting(NamedTuple):
    packed: bytes
    num_rows: int
    future: asyncio.Future[Answer]
    began_ns: int
    since_ns: int


class SmallRequests:
    """One for each process. All methods are called on its event loop."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._waiting: dict[ServedModel, deque[Waiting]] = {}

    def answer(self, request: Request, rows: list[Any]) -> "asyncio.Future[Answer] | None":
        """What `ServedModel.answer` says of rows as JSON had them; None where this is not the place for them."""
        began_ns, model = time.perf_counter_ns(), request.model
        if (
            model.dense is None
            or self._statistics.traces_requests
            or request.shadow is not None
            or not 0 < len(rows) <= MAX_ROWS
        ):
            return None
        packed = model.dense.pack(rows)
        if packed is None:
            return None
        loop = asyncio.get_running_loop()
        waiting = self._waiting.get(model)
        if waiting is None:
            waiting = self._waiting[model] = deque()
            loop.call_soon(self._run, model, model.dense)
        future: asyncio.Future[Answer] = loop.create_future()
        waiting.append(Waiting(packed, len(rows), future, began_ns, time.perf_counter_ns()))
        return future

    def _run(self, model: ServedModel, dense: Dense) -> None:
        """Answer those who wait; what is more than a pass takes comes next, after whatever else the loop has to do."""
        batch: list[Waiting] = []
        room, waiting = MAX_ROWS_AT_ONCE, self._waiting.pop(model)
        while waiting and room >= waiting[0].num_rows:
            batch.append(waiting.popleft())
            room -= batch[-1].num_rows
        if waiting:
            self._waiting[model] = waiting
            asyncio.get_running_loop().call_soon(self._run, model, dense)
        try:
            self._answer(model, dense, batch)
        except Exception as error:  # noqa: BLE001 (those who wait for it get it)
            for one in batch:
                if not one.future.done():
                    one.future.set_exception(error)

    def _answer(self, model: ServedModel, dense: Dense, batch: list[Waiting]) -> None:
        started_ns = time.perf_counter_ns()
        values = dense.predict(b"".join([one.packed for one in batch]))
        computed_ns = time.perf_counter_ns()
        said = model.answer(values)
        by_row = {key: _as_list(said[key]) for key in BY_ROW & said.keys()}
        ended_ns = time.perf_counter_ns()
        start = 0
        for one in batch:
            end = start + one.num_rows
            if not one.future.done():  # its client may have gone meanwhile
                one.future.set_result(said | {key: part[start:end] for key, part in by_row.items()})
            start = end
        took: dict[Part, int] = {
            "queue": sum(started_ns - one.since_ns for one in batch),
            "compute_input": sum(one.since_ns - one.began_ns for one in batch),
            "compute_infer": len(batch) * (computed_ns - started_ns),
            "compute_output": len(batch) * (ended_ns - computed_ns),
        }
        self._statistics.answered_together(model, start, [ended_ns - one.began_ns for one in batch], took)


def _as_list(values: Any) -> list[Any]:
    """For so few of them, lists become JSON sooner than arrays."""
    return values if isinstance(values, list) else values.tolist()
