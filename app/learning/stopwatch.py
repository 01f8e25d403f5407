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

    The caller restores weights, optimizer and RNG.
    """
    num_steps = 1
    _timed(engine, rows, order, num_steps)  # makes the optimizer's state, and whatever else is made once
    seconds = _timed(engine, rows, order, num_steps)
    num_steps = max(1, min(engine.batching.steps_per_epoch, int(ROUND_SECONDS / seconds)))
    return min(_timed(engine, rows, order, num_steps) for _ in range(NUM_ROUNDS))


def _timed(engine: EagerSteps, rows: Rows, order: Tensor | None, num_steps: int) -> float:
    begun = time.perf_counter()
    engine.run(rows, order, 0, [LEARNING_RATE] * num_steps)
    return (time.perf_counter() - begun) / num_steps
