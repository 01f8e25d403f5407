"""Requests in flight share a forward pass: whatever waits when the network is free goes through together.

Limits count rows. A request of more rows than a pass takes goes through in parts, between which others have their turn;
one that would have to wait behind too much is refused at once, unless rows of it are answered already. Shape suffixes:
N rows, F encoded numbers.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from app.errors import Overloaded
from app.serving.served_model import ServedModel
from app.serving.statistics import Request

MAX_ROWS_ON_LOOP = 64  # more rows than that are computed in a thread, so that the event loop stays free
MAX_PARAMETERS_ON_LOOP = 1_000_000


class Limits(NamedTuple):
    """Of a pass, and of what may be under way for a version at once; a request that nothing is before always passes."""

    batch_rows: int = 8192
    queued_rows: int = 1_000_000
    queued_bytes: int = 2**30


class Waiting:
    """A request's rows, those of them that are on their way, and what has come of them."""

    def __init__(self, request: Request, inputs_NF: Tensor, future: asyncio.Future[Tensor]) -> None:
        self.request, self.inputs, self.future = request, inputs_NF, future
        self.num_taken, self.values = 0, list[Tensor]()
        self.since_ns = time.perf_counter_ns()

    def take(self, num_rows: int) -> Tensor:
        part = self.inputs[self.num_taken : self.num_taken + num_rows]
        self.num_taken += len(part)
        return part

    def give(self, values: Tensor, started_ns: int, took_ns: int) -> None:
        self.values.append(values)
        self.request.took("queue", started_ns - self.since_ns)
        self.request.took("compute_infer", took_ns)
        self.since_ns = started_ns + took_ns
        if self.num_taken == len(self.inputs) and not self.future.done():
            self.future.set_result(values if len(self.values) == 1 else torch.cat(self.values))


class Piece(NamedTuple):
    """A request's part in a pass."""

    waiting: Waiting
    inputs: Tensor


class Line:
    """Those who wait for a version, and how much of it is under way; `busy` while a thread computes."""

    def __init__(self) -> None:
        self.waiting: deque[Waiting] = deque()
        self.num_rows = self.num_bytes = 0
        self.busy = False
        self.rows_per_second = 0.0

    def check(self, num_rows: int, num_bytes: int, limits: Limits) -> None:
        """Raise Overloaded where more would be under way, with these rows, than may be."""
        is_more = self.num_rows + num_rows > limits.queued_rows or self.num_bytes + num_bytes > limits.queued_bytes
        if self.num_rows and is_more:
            seconds = self.num_rows / self.rows_per_second if self.rows_per_second else 1.0
            raise Overloaded(
                f"{self.num_rows} rows wait for this model already; try again later",
                retry_after_seconds=min(60, max(1, round(seconds))),
            )

    def enter(self, inputs: Tensor) -> None:
        self.num_rows += len(inputs)
        self.num_bytes += inputs.nbytes

    def leave(self, one: Waiting) -> None:
        self.num_rows -= len(one.inputs)
        self.num_bytes -= one.inputs.nbytes
        if one.future.cancelled() and one in self.waiting:
            self.waiting.remove(one)

    def next_pieces(self, max_rows: int) -> list[Piece]:
        """The rows of the next pass. A request that has more of them goes to the end of the line."""
        pieces: list[Piece] = []
        while self.waiting and max_rows:
            one = self.waiting.popleft()
            if one.future.done():
                continue
            pieces.append(Piece(one, one.take(max_rows)))
            max_rows -= len(pieces[-1].inputs)
            if one.num_taken < len(one.inputs):
                self.waiting.append(one)
        return pieces


class Batcher:
    """One for each process. All methods are called on its event loop."""

    def __init__(
        self, executor: ThreadPoolExecutor, executed: Callable[[ServedModel], None], limits: Limits | None = None
    ) -> None:
        self._executor, self._limits = executor, limits or Limits()
        self._executed = executed  # is called after each forward pass
        self._lines: dict[ServedModel, Line] = {}

    def check(self, model: ServedModel, num_rows: int) -> None:
        """Raise Overloaded where so many rows would find no place, before anybody encodes them."""
        if line := self._lines.get(model):
            line.check(num_rows, 0, self._limits)

    async def predict(self, request: Request, inputs: Tensor) -> Tensor:
        """Values or probabilities `[N, ·]` of encoded rows `[N, F]`; each caller gets its own rows.

        The request is told how long it waited, and how long the forward passes took that it shared.

        Raises:
            Overloaded
        """
        model = request.model
        line = self._lines.setdefault(model, Line())
        if not request.num_rows:
            line.check(len(inputs), inputs.nbytes, self._limits)
        line.enter(inputs)
        request.num_rows += len(inputs)
        loop = asyncio.get_running_loop()
        one = Waiting(request, inputs, loop.create_future())
        line.waiting.append(one)
        if len(line.waiting) == 1 and not line.busy:
            loop.call_soon(self._run, model, line)
        try:
            return await one.future
        finally:
            line.leave(one)
            if not line.num_rows and not line.busy:
                self._lines.pop(model, None)

    def _run(self, model: ServedModel, line: Line) -> None:
        if line.busy or not (pieces := line.next_pieces(self._limits.batch_rows)):
            return
        inputs = pieces[0].inputs if len(pieces) == 1 else torch.cat([piece.inputs for piece in pieces])
        started_ns = time.perf_counter_ns()
        if len(inputs) <= MAX_ROWS_ON_LOOP and model.num_bytes <= 4 * MAX_PARAMETERS_ON_LOOP:
            try:
                self._deliver(pieces, model.model.predict(inputs), started_ns)
            except Exception as error:  # noqa: BLE001 (those who wait for it get it)
                _fail(pieces, error)
            if line.waiting:
                asyncio.get_running_loop().call_soon(self._run, model, line)
            return
        line.busy = True
        running = asyncio.get_running_loop().run_in_executor(self._executor, model.model.predict, inputs)
        running.add_done_callback(lambda done: self._finish(model, line, pieces, started_ns, done))

    def _finish(
        self, model: ServedModel, line: Line, pieces: list[Piece], started_ns: int, done: "asyncio.Future[Tensor]"
    ) -> None:
        line.busy = False
        if error := done.exception():
            _fail(pieces, error)
        else:
            self._deliver(pieces, done.result(), started_ns)
            line.rows_per_second = len(done.result()) * 1e9 / (time.perf_counter_ns() - started_ns)
        if line.waiting:
            self._run(model, line)
        elif not line.num_rows:  # all who waited have gone
            self._lines.pop(model, None)

    def _deliver(self, pieces: list[Piece], values: Tensor, started_ns: int) -> None:
        took_ns = time.perf_counter_ns() - started_ns
        self._executed(pieces[0].waiting.request.model)
        parts = [values] if len(pieces) == 1 else values.split([len(piece.inputs) for piece in pieces])
        for piece, part in zip(pieces, parts, strict=True):
            piece.waiting.give(part, started_ns, took_ns)


def _fail(pieces: list[Piece], error: BaseException) -> None:
    for piece in pieces:
        if not piece.waiting.future.done():
            piece.waiting.future.set_exception(error)
