"""Short ways into torch: what its public calls do around the work takes longer than all of a small network's step."""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Variable


class Backward:
    """As `loss.backward()` of a scalar, without looking at arguments that are always the same."""

    def __init__(self, device: torch.device) -> None:
        self.one = torch.ones((), device=device)

    def __call__(self, loss: Tensor) -> None:
        Variable._execution_engine.run_backward(
            (loss,), (self.one,), False, False, (), allow_unreachable=True, accumulate_grad=True
        )


def step_of(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    """As `optimizer.step`, without hooks and marks for the profiler."""
    step = inspect.unwrap(type(optimizer).step)

    def update() -> None:
        torch._C._set_grad_enabled(False)
        try:
            step(optimizer)
        finally:
            torch._C._set_grad_enabled(True)

    return update
