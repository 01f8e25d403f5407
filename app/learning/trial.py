"""Steps that are only tried out."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def changed_by_steps(network: nn.Module) -> list[Tensor]:
    """All of a network but frozen weights, which a trial need not copy."""
    return [value.detach() for value in network.parameters() if value.requires_grad] + list(network.buffers())


@contextmanager
def taken_back(tensors: list[Tensor], device: torch.device) -> Iterator[None]:
    """What is done within leaves these tensors and torch's RNG, the device's too, as they were, also where it fails."""
    before = [tensor.clone() for tensor in tensors]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            torch._foreach_copy_(tensors, before)
