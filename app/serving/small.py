"""Small requests of plain numbers that are in flight together share a pass, from their rows to their answers."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

from app.serving.dense import Values
from app.serving.served_model import Answer, ServedModel
from app.serving.statistics import Pass, Request, Statistics

MAX_ROWS = 64  # of a request
MAX_ROWS_AT_ONCE = 1024  # of a pass, which the event loop waits for
BY_ROW = ("predictions", "probabilities")

Then = Callable[[Answer | Exception], None]


class Packed(NamedTuple):
    """A request's rows, and when it began with them and was done, as `perf_counter_ns`."""

    rows: bytes
    num_rows: int
    begun_ns: int
    packed_ns: int


class SmallRequests:
    """One for each process. All methods are called on its event loop.

    A request waits for those that come in the same turn of the loop. Where none did in the turn before, as with a
    single client, it is answered at once: the wait would be longer than its pass.
    """

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._waiting: dict[ServedModel, deque[tuple[Packed, Then]]] = {}
        self._num_begun = 0  # in this turn
        self._were_alone = False

    def answer(self, request: Request, rows: list[Any]) -> "asyncio.Future[Answer] | None":
        """What `ServedModel.answer` says of rows as JSON had them; None where this is not the place for them."""
        packed = self.pack(request.model, rows)
        if packed is None or request.shadow is not None:
            return None
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def settle(answer: Answer | Exception) -> None:
            if future.done():  # its client has gone meanwhile
                return
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

        self.begin(request.model, packed, settle)
        return future

    def pack(self, model: ServedModel, rows: list[Any]) -> Packed | None:
        """Rows as `begin` takes them; None where this is not the place for them."""
        begun_ns = time.perf_counter_ns()
        if model.dense is None or self._statistics.traces_requests or not 0 < len(rows) <= MAX_ROWS:
            return None
        packed = model.dense.pack(rows)
        return None if packed is None else Packed(packed, len(rows), begun_ns, time.perf_counter_ns())

    def begin(self, model: ServedModel, packed: Packed, then: Then) -> None:
        """Call `then`, now or soon, with what `ServedModel.answer` says of rows, or with what went wrong."""
        if not self._num_begun:
            asyncio.get_running_loop().call_soon(self._end_turn)
        self._num_begun += 1
        if self._were_alone and model not in self._waiting:
            self._answer(model, [packed], [then])
        else:
            self._waiting.setdefault(model, deque()).append((packed, then))

    def _end_turn(self) -> None:
        self._were_alone, self._num_begun = self._num_begun == 1, 0
        for model in list(self._waiting):
            self._run(model)

    def _run(self, model: ServedModel) -> None:
        """Answer those who wait; what is more than a pass takes comes next, after whatever else the loop has to do."""
        if model not in self._waiting:  # those who came later took these with them
            return
        batch, thens = list[Packed](), list[Then]()
        room, waiting = MAX_ROWS_AT_ONCE, self._waiting[model]
        while waiting and room >= waiting[0][0].num_rows:
            packed, then = waiting.popleft()
            batch.append(packed)
            thens.append(then)
            room -= packed.num_rows
        if waiting:
            asyncio.get_running_loop().call_soon(self._run, model)
        else:
            del self._waiting[model]
        self._answer(model, batch, thens)

    def _answer(self, model: ServedModel, batch: list[Packed], thens: list[Then]) -> None:
        started_ns = time.perf_counter_ns()
        try:
            assert model.dense
            values = model.dense.predict(b"".join([one.rows for one in batch]))
            computed_ns = time.perf_counter_ns()
            answers = _answers(model, values, batch)
        except Exception as error:  # noqa: BLE001 (those who wait for it get it)
            for then in thens:
                then(error)
            return
        ended_ns = time.perf_counter_ns()
        for then, answer in zip(thens, answers, strict=True):
            then(answer)
        begun_ns, packed_ns = [one.begun_ns for one in batch], [one.packed_ns for one in batch]
        ended = ended_ns, time.time_ns() // 1_000_000
        self._statistics.passed(Pass(model, len(values), begun_ns, packed_ns, started_ns, computed_ns, *ended))


def _answers(model: ServedModel, values: Values, batch: list[Packed]) -> list[Answer]:
    """To each request what `ServedModel.answer` says of its rows."""
    said = model.answer(values)
    by_row = {key: _as_list(said[key]) for key in BY_ROW if key in said}
    if len(batch) == 1:
        return [said | by_row]
    ends = list(accumulate(one.num_rows for one in batch))
    return [
        said | {key: part[end - one.num_rows : end] for key, part in by_row.items()}
        for one, end in zip(batch, ends, strict=True)
    ]


def _as_list(values: Any) -> list[Any]:
    """For so few of them, lists become JSON sooner than arrays."""
    return values if isinstance(values, list) else values.tolist()
