"""The exponential moving average of weights, which generalises better than the last step's."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Follows the trainable parameters of a network; its other state is taken as it is."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.num_updates = decay, 0
        followed = [(name, value) for name, value in network.named_parameters() if value.requires_grad]
        self.parameters: list[Tensor] = [value for _, value in followed]
        self.average = {name: value.detach().clone() for name, value in followed}

    @torch.no_grad()
    def update(self) -> None:
        """After each step. The first ones count for more, so that the start is soon forgotten."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(list(self.average.values()), self.parameters, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The network holds the average for as long as the block lasts."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        for parameter, average in zip(self.parameters, self.average.values(), strict=True):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)

    def load(self, tensors: dict[str, Tensor], num_updates: int) -> None:
        """Go on from a checkpoint."""
        self.num_updates = num_updates
        for name, value in self.average.items():
            value.copy_(tensors[name])
