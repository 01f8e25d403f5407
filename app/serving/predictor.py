"""The one way from rows to predictions, whatever protocol they came by."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import polars as pl
import structlog
from anyio import CapacityLimiter, to_thread
from torch import Tensor

from app.errors import CorruptVersion, Overloaded
from app.learning.devices import usable_cores
from app.learning.rows import Rows
from app.learning.targets import row_weights
from app.serving.batcher import Batcher, Limits
from app.serving.cache import ModelCache
from app.serving.encode import encode_rows
from app.serving.recent import Recent
from app.serving.routing import Route, route
from app.serving.served_model import ServedModel
from app.serving.shadows import Encode, Shadows
from app.serving.small import SmallRequests
from app.serving.statistics import Request, Statistics

T = TypeVar("T")

MAX_THREADS = 4
MAX_LOADS = 4  # at once; other threads than these are left for what waits for no version
MAX_CELLS_ON_LOOP = 5_000  # smaller inputs are encoded at once, which takes less than handing them to a thread

log = structlog.get_logger("gradserve.predictor")


@asynccontextmanager
async def in_time(seconds: float | None) -> AsyncIterator[None]:
    """Ends what is waited for within it after so many seconds; None: never.

    Raises:
        Overloaded
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise Overloaded(f"there was no answer within the timeout of {seconds} s", code="deadline_exceeded") from error


class Predictor:
    def __init__(
        self, cache: ModelCache, statistics: Statistics, *, limits: Limits | None = None, num_threads: int | None = None
    ) -> None:
        """`num_threads`: for what takes long; None: as many as the processor has cores, which more would be slower."""
        self.cache = cache
        self._recent = Recent(cache.store)
        self.statistics = statistics
        self._shadows = Shadows(cache, statistics.counters)
        self.small = SmallRequests(statistics)
        num_threads = num_threads or min(MAX_THREADS, max(2, usable_cores()))
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="predict")
        self._loading = CapacityLimiter(MAX_LOADS)
        self._batcher = Batcher(self._executor, statistics.executed, limits)

    async def request(self, name: str, selector: str | None, key: str | None) -> Request:
        """A request for a version by number, by alias (which may have a canary), or None for the newest.

        Raises:
            ModelNotFound, VersionNotFound, CorruptVersion
        """
        if found := self._recent.get((name, selector)):
            return Request(found)
        chosen = route(self.cache.store, name, selector, key)
        if found := self._at_hand(name, selector, chosen):
            return Request(found)
        try:
            return Request(await self.load(name, chosen.version), chosen.shadow)
        except CorruptVersion as error:
            if chosen.instead is None:
                raise
            log.warning("a canary can't be loaded", model=name, version=chosen.version, detail=error.detail)
            return Request(await self.load(name, chosen.instead))

    def at_hand(self, name: str, selector: str | None) -> ServedModel | None:
        """The version that any request for this one gets, if it is in memory.

        Raises:
            ModelNotFound, VersionNotFound, CorruptVersion
        """
        if found := self._recent.get((name, selector)):
            return found
        return self._at_hand(name, selector, route(self.cache.store, name, selector))

    def _at_hand(self, name: str, selector: str | None, chosen: Route) -> ServedModel | None:
        if chosen.drawn or not (found := self.cache.peek(name, chosen.version)):
            return None
        self._recent.add((name, selector), found)
        return found

    async def load(self, name: str, version: str | None) -> ServedModel:
        """A version, from memory or from disk: by number, of an alias the one that it points to, or None for the
        newest that can be loaded.

        Raises:
            ModelNotFound, VersionNotFound, CorruptVersion
        """
        if found := self.cache.peek(name, version):
            return found
        return await to_thread.run_sync(self.cache.get, name, version, limiter=self._loading)  # it waits for the disk

    async def predict(self, request: Request, inputs: list[Any]) -> Tensor:
        """Values in the target's units `[N, T]`, or probabilities `[N, L]`.

        Raises:
            ShapeMismatch, UnknownColumn, InvalidInput, Overloaded
        """
        features, signature = request.model.model.features, request.model.model.signature
        self._batcher.check(request.model, len(inputs))
        with request.part("compute_input"):
            if len(inputs) * len(signature.inputs) <= MAX_CELLS_ON_LOOP:
                encoded = encode_rows(features, signature, inputs)
            else:
                encoded = await self.in_thread(encode_rows, features, signature, inputs)
        return await self.predict_encoded(
            request, encoded, lambda other: encode_rows(other.model.features, other.model.signature, inputs)
        )

    async def predict_encoded(self, request: Request, inputs: Tensor, encode: Encode) -> Tensor:
        """As `predict`, of rows that are encoded already `[N, F]`; `encode` does that for a shadow of the version.

        Raises:
            Overloaded
        """
        values = await self._batcher.predict(request, inputs)
        self._shadows.offer(request, values, encode)
        return values

    def evaluate(
        self, model: ServedModel, inputs: pl.DataFrame, targets: pl.DataFrame, weights: pl.Series | None
    ) -> dict[str, Any]:
        """Loss and metrics of rows, with the model's columns as `fit_column` gives them, that lack nothing.

        Raises:
            BadData: labels that the model does not know, or rates below zero.
        """
        known, spec = model.model.targets, model.model.spec
        truth = known.truth(targets)
        own_N = None if weights is None else weights.cast(pl.Float32).to_numpy()
        weights_N = row_weights(spec.loss, known, truth.numpy(), own_N)
        rows = Rows(model.model.features.transform(inputs), known.transform(targets), weights_N)
        return model.evaluate(rows, truth)

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    def close(self) -> None:
        self._shadows.close()
        self._executor.shutdown(wait=False, cancel_futures=True)
