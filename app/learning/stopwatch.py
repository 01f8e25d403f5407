"""What a step takes on this machine, as it is now."""

import time

from torch import Tensor

from app.learning.rows import Rows
from app.learning.steps import EagerSteps

NUM_ROUNDS = 5
ROUND_SECONDS = 0.01
LEARNING_RATE = 1e-6  # of steps that are taken back


def step_seconds(engine: EagerSteps, rows: Rows, order: Tensor | None) -> float:
    """What an eager step takes: of a few rounds the fastest, as whatever else a machine does only slows them down.

    They go through the epoch as a run does: rows of a mapped file come in when they are wanted, and not anew for every
    round. The caller restores weights, optimizer and RNG.
    """
    _timed(engine, rows, order, 0, 1)  # makes the optimizer's state, and whatever else is made once
    seconds = _fastest(engine, rows, order, 1, 1)
    num_steps = min(engine.batching.steps_per_epoch - 1, int(ROUND_SECONDS / seconds))
    return _fastest(engine, rows, order, 1 + NUM_ROUNDS, num_steps) if num_steps > 1 else seconds


def _fastest(engine: EagerSteps, rows: Rows, order: Tensor | None, begin: int, num_steps: int) -> float:
    """Of rounds of so many steps from step `begin` of an epoch on; none has the last one, which may be of few rows."""
    num_places = max(1, engine.batching.steps_per_epoch - num_steps)
    firsts = [(begin + index * num_steps) % num_places for index in range(NUM_ROUNDS)]
    return min(_timed(engine, rows, order, first, num_steps) for first in firsts)


def _timed(engine: EagerSteps, rows: Rows, order: Tensor | None, first: int, num_steps: int) -> float:
    begun = time.perf_counter()
    engine.run(rows, order, first, [LEARNING_RATE] * num_steps)
    return (time.perf_counter() - begun) / num_steps
