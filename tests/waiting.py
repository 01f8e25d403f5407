"""Waiting on conditions instead of sleeping."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

SHORTEST_REST_SECONDS, LONGEST_REST_SECONDS = 0.005, 0.1


def until(condition: Callable[[], T], seconds: float = 20.0) -> T:
    """The condition's first truthy value; the test fails where it has none in time.

    It rests four times as long as it looks, and a twentieth of what it has waited, so that looking takes little of what
    is waited for: a request to a service costs both sides far more than a look at a file.
    """
    started = looked_at = time.monotonic()
    deadline = started + seconds
    while not (value := condition()):
        now = time.monotonic()
        assert now < deadline, f"still {value!r} after {seconds} s"
        rest = max(SHORTEST_REST_SECONDS, 4 * (now - looked_at), (now - started) / 20)
        time.sleep(min(rest, LONGEST_REST_SECONDS))
        looked_at = time.monotonic()
    return value
