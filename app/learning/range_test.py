"""The learning rate range test (Smith 2017): rates grow from step to step; the loss tells which is too much."""

import math

import torch
from torch import Tensor, nn

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


class Snapshot:
    """A network's state and torch's RNG, to go back to after a trial, which leaves frozen weights as they are."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        frozen = {name for name, value in network.named_parameters() if not value.requires_grad}
        state = network.state_dict()
        self.state = {name: value.detach().clone() for name, value in state.items() if name not in frozen}
        self.rng = torch.get_rng_state()

    def restore(self) -> None:
        self.network.load_state_dict(self.network.state_dict() | self.state)
        torch.set_rng_state(self.rng)
