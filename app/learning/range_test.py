"""The learning rate range test (Smith 2017): rates grow from step to step; the loss tells which is too much."""

import math

from torch import Tensor

from app.learning.rows import Rows
from app.learning.steps import EagerSteps

NUM_STEPS = 100
LOWEST, HIGHEST = 1e-6, 1.0
SMOOTHING = 0.9
BLOWN_UP = 4.0  # times the least loss so far
SAFETY = 10.0  # how far below the rate of the least loss
FALLBACK = 1e-3


def find_learning_rate(engine: EagerSteps, rows: Rows, order: Tensor | None) -> float:
    """A tenth of the rate at which the smoothed loss was least, before it blew up.

    Takes up to `NUM_STEPS` steps over the rows; the caller restores weights, optimizer and RNG.
    """
    ratio = (HIGHEST / LOWEST) ** (1 / (NUM_STEPS - 1))
    smoothed, least, best = 0.0, math.inf, FALLBACK
    for step in range(NUM_STEPS):
        rate = LOWEST * ratio**step
        loss = engine.run(rows, order, step % engine.batching.steps_per_epoch, [rate]).item()
        smoothed = SMOOTHING * smoothed + (1 - SMOOTHING) * loss
        corrected = smoothed / (1 - SMOOTHING ** (step + 1))
        if not math.isfinite(loss) or corrected > BLOWN_UP * abs(least):
            break
        if corrected < least:
            least, best = corrected, rate / SAFETY
    return float(f"{best:.3g}")
