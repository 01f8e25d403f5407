"""Small requests of plain numbers that are in flight together share a pass, from their rows to their answers."""

import asyncio
import time
from collections import deque
from typing import Any, NamedTuple

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
    """One for each process. All methods are called on its event loop.

    A request waits for those that come in the same turn of the loop. Where none did in the turn before, as with a
    single client, it is answered at once: the wait would be longer than its pass.
    """

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._waiting: dict[ServedModel, deque[Waiting]] = {}
        self._num_begun = 0  # in this turn
        self._were_alone = False

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
        if not self._num_begun:
            loop.call_soon(self._end_turn)
        self._num_begun += 1
        one = Waiting(packed, len(rows), loop.create_future(), began_ns, time.perf_counter_ns())
        self._waiting.setdefault(model, deque()).append(one)
        if self._were_alone:
            self._run(model)
        return one.future

    def _end_turn(self) -> None:
        self._were_alone, self._num_begun = self._num_begun == 1, 0
        for model in list(self._waiting):
            self._run(model)

    def _run(self, model: ServedModel) -> None:
        """Answer those who wait; what is more than a pass takes comes next, after whatever else the loop has to do."""
        batch: list[Waiting] = []
        room, waiting = MAX_ROWS_AT_ONCE, self._waiting[model]
        while waiting and room >= waiting[0].num_rows:
            batch.append(waiting.popleft())
            room -= batch[-1].num_rows
        if waiting:
            asyncio.get_running_loop().call_soon(self._run, model)
        else:
            del self._waiting[model]
        try:
            self._answer(model, batch)
        except Exception as error:  # noqa: BLE001 (those who wait for it get it)
            for one in batch:
                if not one.future.done():
                    one.future.set_exception(error)

    def _answer(self, model: ServedModel, batch: list[Waiting]) -> None:
        assert model.dense
        started_ns = time.perf_counter_ns()
        values = model.dense.predict(b"".join([one.packed for one in batch]))
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
