"""How often a caller may ask: a bucket of tokens each, in the memory of one process."""

import math
import time
from collections.abc import Callable

BURST_SECONDS = 2.0  # what a caller that was quiet may send at once, in seconds of its rate


class RateLimit:
    """`per_second` requests of each caller, and a burst after a pause; 0 is no limit.

    There are as many buckets as keys were ever used, so nobody without a key can make them more.
    """

    def __init__(self, per_second: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_second = per_second
        self._most = max(1.0, per_second * BURST_SECONDS)
        self._clock = clock
        self._buckets: dict[str | None, tuple[float, float]] = {}

    def take(self, caller: str | None) -> int:
        """0 where the request may pass, else the whole seconds after which the next one may."""
        now = self._clock()
        tokens, since = self._buckets.get(caller, (self._most, now))
        tokens = min(self._most, tokens + (now - since) * self.per_second)
        passes = tokens >= 1
        self._buckets[caller] = (tokens - passes, now)
        return 0 if passes else math.ceil((1 - tokens) / self.per_second)
