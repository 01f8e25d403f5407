"""Gradients by hand for the last layers of a network, as far back as they are linear layers and activations.

The arithmetic is that of autograd's kernels, in their order, so gradients are its own, bit for bit. What is saved is
its graph, which takes longer to build and to walk than a small network's arithmetic. What comes before these layers is
left to autograd.
"""

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from app.learning.losses import LossFunction, mean_squared_error
from app.learning.rows import Rows
from app.learning.shortcuts import NO_GRADIENTS, in_a_row

aten = torch.ops.aten

Slope = Callable[[Any, Tensor, Tensor, Tensor], Tensor]
"""`(module, gradient, x, y)` to the gradient of `x`, where `y = module(x)`."""

ACTIVATIONS: dict[type[nn.Module], Slope] = {
    nn.ReLU: lambda module, gradient, x, y: aten.threshold_backward.default(gradient, y, 0),
    nn.Tanh: lambda module, gradient, x, y: aten.tanh_backward.default(gradient, y),
    nn.Sigmoid: lambda module, gradient, x, y: aten.sigmoid_backward.default(gradient, y),
    nn.SiLU: lambda module, gradient, x, y: aten.silu_backward.default(gradient, x),
    nn.GELU: lambda module, gradient, x, y: aten.gelu_backward.default(gradient, x, approximate=module.approximate),
}


def chained(network: nn.Sequential) -> list[nn.Module]:
    """The last layers of a network whose gradients are taken by hand: none where parameters are frozen."""
    if not all(parameter.requires_grad for parameter in network.parameters()):
        return []
    tail = takewhile(lambda module: isinstance(module, (nn.Linear, *ACTIVATIONS)), in_a_row(network)[::-1])
    return list(tail)[::-1]


class Layer(Protocol):
    def forward(self, x: Tensor) -> Tensor: ...

    def backward(self, gradient: Tensor, x: Tensor, y: Tensor, *, wanted: bool) -> Tensor:
        """Sets the gradients of parameters; returns that of `x` where it is wanted."""


class Linear:
    def __init__(self, module: nn.Linear) -> None:
        self.weight, self.bias = module.weight, module.bias

    def forward(self, x: Tensor) -> Tensor:
        return x.mm(self.weight.t()) if self.bias is None else torch.addmm(self.bias, x, self.weight.t())

    def backward(self, gradient: Tensor, x: Tensor, _y: Tensor, *, wanted: bool) -> Tensor:
        self.weight.grad = gradient.t().mm(x)
        if self.bias is not None:
            self.bias.grad = gradient.sum(0)
        return gradient.mm(self.weight) if wanted else gradient


class Activation:
    def __init__(self, module: nn.Module) -> None:
        self.module, self.forward, self.slope = module, module.forward, ACTIVATIONS[type(module)]

    def backward(self, gradient: Tensor, x: Tensor, y: Tensor, *, wanted: bool) -> Tensor:
        return self.slope(self.module, gradient, x, y) if wanted else gradient


class Chain:
    """A network, none of whose parameters are frozen, with its loss."""

    def __init__(self, network: nn.Sequential, loss: LossFunction) -> None:
        modules, tail = in_a_row(network), chained(network)
        self.front = [module.forward for module in modules[: len(modules) - len(tail)]]
        self.front_learns = any(list(module.parameters()) for module in modules[: len(modules) - len(tail)])
        self.layers: Sequence[Layer] = [
            Linear(module) if isinstance(module, nn.Linear) else Activation(module) for module in tail
        ]
        self.loss, self.one = loss, torch.ones(())

    def backward(self, rows: Rows) -> Tensor:
        """The loss of rows `[B, F]`; the parameters, which had no gradients, have those of it."""
        x = rows.inputs
        if not self.front_learns:
            with NO_GRADIENTS:
                for forward in self.front:
                    x = forward(x)
                return self._tail(x, rows)[0]
        for forward in self.front:
            x = forward(x)
        with NO_GRADIENTS:
            loss, gradient = self._tail(x.detach(), rows)
        _walk(x, gradient)
        return loss

    def _tail(self, x: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """The loss, and its gradient of what comes into the chained layers, where that is wanted."""
        passed = [x]
        for layer in self.layers:
            passed.append(layer.forward(passed[-1]))
        loss, gradient = self._loss(passed[-1], rows)
        for index in range(len(self.layers) - 1, -1, -1):
            y = passed.pop()
            gradient = self.layers[index].backward(gradient, passed[-1], y, wanted=index > 0 or self.front_learns)
        return loss, gradient

    def _loss(self, outputs: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """And its gradient of the outputs."""
        if self.loss is mean_squared_error and rows.weights is None:
            differences = outputs - rows.targets
            return (differences * differences).mean(), differences * (2 / outputs.numel())
        leaf = outputs.detach().requires_grad_()
        with torch.enable_grad():
            loss = self.loss(leaf, rows.targets, rows.weights)
        _walk(loss, self.one)
        assert leaf.grad is not None
        return loss.detach(), leaf.grad


def _walk(root: Tensor, gradient: Tensor) -> None:
    """As `root.backward(gradient)`."""
    Variable._execution_engine.run_backward(
        (root,), (gradient,), False, False, (), allow_unreachable=True, accumulate_grad=True
    )
