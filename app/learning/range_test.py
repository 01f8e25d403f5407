"""The learning rate range test (Smith 2017): rates grow, step by step; the loss tells which is too much.

It is the loss of the same rows all along, as the rows of a single step tell more of themselves than of the rate.
"""

import math

from torch import Tensor

from app.learning.rows import Rows
from app.learning.steps import EagerSteps

NUM_RATES = 100
ROWS_PER_RATE = 32  # learnt from with each rate, at least
PROBE_ROWS = 256  # by which rates are judged
LOWEST, HIGHEST = 1e-6, 10.0
SMOOTHING = 0.9
BLOWN_UP = 4.0  # times the least loss so far
SAFETY = 10.0  # how far below the rate of the least loss
LEAST_GAIN = 0.01  # of the loss at first: what is less is no learning


def find_learning_rate(engine: EagerSteps, rows: Rows, order: Tensor | None) -> float | None:
    """A tenth of the rate at which the smoothed loss was least, before it blew up; None where it never got much less.

    Each rate has a step, or several where they see few rows; the caller restores weights, optimizer and RNG.
    """
    probe = rows.take(order, max(0, len(rows) - PROBE_ROWS), len(rows), engine.device)
    ratio = (HIGHEST / LOWEST) ** (1 / (NUM_RATES - 1))
    first = least = engine.mean_loss(probe)
    smoothed, best = 0.0, None
    steps_per_epoch = engine.batching.steps_per_epoch
    num_steps = max(1, min(ROWS_PER_RATE // engine.batching.rows_per_step, steps_per_epoch))
    for number in range(NUM_RATES):
        rate = LOWEST * ratio**number
        for step in range(number * num_steps, (number + 1) * num_steps):
            engine.run(rows, order, step % steps_per_epoch, [rate])
        loss = engine.mean_loss(probe)
        smoothed = SMOOTHING * smoothed + (1 - SMOOTHING) * loss
        corrected = smoothed / (1 - SMOOTHING ** (number + 1))
        if not math.isfinite(loss) or corrected > BLOWN_UP * abs(least):
            break
        if corrected < least:
            least, best = corrected, rate / SAFETY
    return float(f"{best:.3g}") if best and first - least >= LEAST_GAIN * abs(first) else None
