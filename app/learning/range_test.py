"""The learning rate range test (Smith 2017): rates grow, step by step; the loss tells which is too much."""

import math

from torch import Tensor

from app.learning.rows import Rows
from app.learning.steps import EagerSteps

NUM_RATES = 100
ROWS_PER_RATE = 32  # the loss of fewer rows tells more of the rows than of the rate
LOWEST, HIGHEST = 1e-6, 1.0
SMOOTHING = 0.9
BLOWN_UP = 4.0  # times the least loss so far
SAFETY = 10.0  # how far below the rate of the least loss
FALLBACK = 1e-3


def find_learning_rate(engine: EagerSteps, rows: Rows, order: Tensor | None) -> float:
    """A tenth of the rate at which the smoothed loss was least, before it blew up.

    Each rate has a step, or several where they see few rows; the caller restores weights, optimizer and RNG.
    """
    ratio = (HIGHEST / LOWEST) ** (1 / (NUM_RATES - 1))
    smoothed, least, best = 0.0, math.inf, FALLBACK
    steps_per_epoch = engine.batching.steps_per_epoch
    num_steps = max(1, min(ROWS_PER_RATE // engine.batching.rows_per_step, steps_per_epoch))
    for number in range(NUM_RATES):
        rate = LOWEST * ratio**number
        steps = range(number * num_steps, (number + 1) * num_steps)
        losses = [engine.run(rows, order, step % steps_per_epoch, [rate]).item() for step in steps]
        loss = sum(losses) / num_steps
        smoothed = SMOOTHING * smoothed + (1 - SMOOTHING) * loss
        corrected = smoothed / (1 - SMOOTHING ** (number + 1))
        if not math.isfinite(loss) or corrected > BLOWN_UP * abs(least):
            break
        if corrected < least:
            least, best = corrected, rate / SAFETY
    return float(f"{best:.3g}")
