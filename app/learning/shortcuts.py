"""Short ways into torch: what its public calls do around the work takes longer than all of a small network's step."""

import inspect
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable

mse_loss: Callable[[Tensor, Tensor], Tensor] = torch.ops.aten.mse_loss.default
"""The mean, of tensors whose shapes are known to be the same."""


class Backward:
    """As `loss.backward()` of a scalar, without looking at arguments that are always the same."""

    def __init__(self, device: torch.device) -> None:
        self.one = torch.ones((), device=device)

    def __call__(self, loss: Tensor) -> None:
        Variable._execution_engine.run_backward(
            (loss,), (self.one,), False, False, (), allow_unreachable=True, accumulate_grad=True
        )


class NoGradients:
    """As `torch.no_grad()`, for code around which gradients are on."""

    def __enter__(self) -> None:
        torch._C._set_grad_enabled(False)

    def __exit__(self, *_error: object) -> None:
        torch._C._set_grad_enabled(True)


NO_GRADIENTS = NoGradients()


def forward_of(network: nn.Sequential) -> Callable[[Tensor], Tensor]:
    """As calling the network, without looking for hooks at its modules, which have none in training."""
    layers = [module.forward for module in in_a_row(network)]

    def forward(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x

    return forward


def in_a_row(network: nn.Sequential) -> list[nn.Module]:
    """The modules of a sequence of sequences."""
    parts = (in_a_row(part) if type(part) is nn.Sequential else [part] for part in network)
    return list(chain.from_iterable(parts))


def step_of(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    """As `optimizer.step`, without hooks and marks for the profiler; fused kernels are called by themselves."""
    step = inspect.unwrap(type(optimizer).step)
    (group,) = optimizer.param_groups
    fused = FUSED.get(type(optimizer)) if group.get("fused") else None
    on_cpu = all(parameter.device.type == "cpu" for parameter in group["params"])

    def update() -> None:
        with NO_GRADIENTS:
            if fused is None or not on_cpu or not fused(optimizer.param_groups[0], optimizer.state):
                step(optimizer)

    return update


# ---- fused kernels, once torch.optim has made their state; each returns whether it could be called

Group = dict[str, Any]
State = dict[Tensor, dict[str, Any]]


def _sgd(group: Group, state: State) -> bool:
    parameters, momentum = group["params"], group["momentum"]
    gradients = [parameter.grad for parameter in parameters]
    if any(gradient is None for gradient in gradients) or (momentum and len(state) < len(parameters)):
        return False
    torch._fused_sgd_(
        parameters,
        gradients,
        [state[parameter]["momentum_buffer"] for parameter in parameters] if momentum else [],
        weight_decay=group["weight_decay"],
        momentum=momentum,
        lr=group["lr"],
        dampening=group["dampening"],
        nesterov=group["nesterov"],
        maximize=False,
        is_first_step=False,
    )
    return True


def _adam(group: Group, state: State) -> bool:
    parameters = group["params"]
    gradients = [parameter.grad for parameter in parameters]
    if any(gradient is None for gradient in gradients) or len(state) < len(parameters):
        return False
    slots = [state[parameter] for parameter in parameters]
    steps = [slot["step"] for slot in slots]
    torch._foreach_add_(steps, 1)
    kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
    beta1, beta2 = group["betas"]
    kernel(
        parameters,
        gradients,
        [slot["exp_avg"] for slot in slots],
        [slot["exp_avg_sq"] for slot in slots],
        [slot["max_exp_avg_sq"] for slot in slots] if group["amsgrad"] else [],
        steps,
        amsgrad=group["amsgrad"],
        lr=group["lr"],
        beta1=beta1,
        beta2=beta2,
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
    return True


FUSED: dict[type[torch.optim.Optimizer], Callable[[Group, State], bool]] = {
    torch.optim.SGD: _sgd,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
}
