"""From layer specs to an nn.Module.

Modules are first built on the meta device, where shapes are inferred and parameters counted without memory, then
given memory and initial weights. Shape suffixes: B batch, F features.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from app.errors import ShapeMismatch
from app.specs import network as specs
from app.specs.base import Spec

Shape = tuple[int, ...]
"""The shape of one row, without the batch."""

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "selu": nn.SELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "log_sigmoid": nn.LogSigmoid,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "hardtanh": nn.Hardtanh,
    "softsign": nn.Softsign,
    "tanhshrink": nn.Tanhshrink,
    "identity": nn.Identity,
}


class Linear(nn.Linear):
    """A linear layer that remembers how its weight is to start."""

    def __init__(self, in_features: int, out_features: int, bias: bool, init: str | None) -> None:
        super().__init__(in_features, out_features, bias)
        self.init = init


class Residual(nn.Module):
    """`shortcut(x) + body(x)`."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.shortcut(x) + self.body(x)
        return out


def _linear(spec: specs.Linear, shape: Shape, _pointer: str) -> nn.Module:
    return Linear(shape[-1], spec.out_features, spec.bias, spec.init)


def _batch_norm(spec: specs.BatchNorm, shape: Shape, _pointer: str) -> nn.Module:
    return nn.BatchNorm1d(shape[0], eps=spec.eps, momentum=spec.momentum, affine=spec.affine)


def _residual(spec: specs.Residual, shape: Shape, pointer: str) -> nn.Module:
    body = _sequence(spec.layers, shape, f"{pointer}/layers")
    out = _shape_after(body, shape, pointer)
    if len(out) != len(shape):
        raise ShapeMismatch.at(
            pointer, f"a residual block got {list(shape)} a row, and its layers turn that into {list(out)}"
        )
    return Residual(body, nn.Identity() if out == shape else nn.Linear(shape[-1], out[-1], bias=False))


LAYERS: dict[type[Spec], Callable[[Any, Shape, str], nn.Module]] = {
    specs.Linear: _linear,
    specs.Activation: lambda spec, shape, pointer: ACTIVATIONS[spec.type](),
    specs.LeakyReLU: lambda spec, shape, pointer: nn.LeakyReLU(spec.negative_slope),
    specs.ELU: lambda spec, shape, pointer: (nn.ELU if spec.type == "elu" else nn.CELU)(spec.alpha),
    specs.GELU: lambda spec, shape, pointer: nn.GELU(spec.approximate),
    specs.Softplus: lambda spec, shape, pointer: nn.Softplus(spec.beta),
    specs.PReLU: lambda spec, shape, pointer: nn.PReLU(init=spec.init),
    specs.Dropout: lambda spec, shape, pointer: nn.Dropout(spec.p),
    specs.BatchNorm: _batch_norm,
    specs.LayerNorm: lambda spec, shape, pointer: nn.LayerNorm(shape[-1], spec.eps, spec.affine),
    specs.Residual: _residual,
}


def build_network(spec: specs.LayeredNetwork, front: nn.Module, num_inputs: int, num_outputs: int) -> nn.Sequential:
    """The network on the meta device: `front` takes `[B, num_inputs]`, the layers give `[B, num_outputs]`.

    Raises:
        ShapeMismatch: naming the layer that does not fit.
    """
    assert not spec.head, "the spec is resolved"
    with torch.device("meta"):
        shape = _shape_after(front.to("meta"), (num_inputs,), "/network")
        body = _sequence(spec.layers, shape, "/network/layers")
        out = _shape_after(body, shape, "/network/layers")
    if out != (num_outputs,):
        last = f"/network/layers/{max(0, len(spec.layers) - 1)}"
        raise ShapeMismatch.at(last, f"the last layer gives {list(out)} a row, and the target needs [{num_outputs}]")
    return nn.Sequential(front, *body)


def _sequence(layers: Sequence[Any], shape: Shape, pointer: str) -> nn.Sequential:
    modules = []
    for index, layer in enumerate(layers):
        module = LAYERS[type(layer)](layer, shape, f"{pointer}/{index}")
        shape = _shape_after(module, shape, f"{pointer}/{index}")
        modules.append(module)
    return nn.Sequential(*modules)


def _shape_after(module: nn.Module, shape: Shape, pointer: str) -> Shape:
    try:
        with torch.no_grad():
            out: Tensor = module(torch.empty((2, *shape), device="meta"))
    except (RuntimeError, ValueError, IndexError) as error:
        raise ShapeMismatch.at(pointer, f"the layer does not fit its input of {list(shape)} a row: {error}") from error
    return tuple(out.shape[1:])


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# ---- initial weights

Fill = Callable[[Tensor, specs.InitSpec], object]


def _lecun_normal(weight: Tensor, _spec: specs.InitSpec) -> object:
    return nn.init.normal_(weight, std=1 / math.sqrt(weight[0].numel()))


INITIALIZERS: dict[str, Fill] = {
    "kaiming_uniform": lambda weight, spec: nn.init.kaiming_uniform_(weight, nonlinearity="relu"),
    "kaiming_normal": lambda weight, spec: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    "xavier_uniform": lambda weight, spec: nn.init.xavier_uniform_(weight),
    "xavier_normal": lambda weight, spec: nn.init.xavier_normal_(weight),
    "lecun_normal": _lecun_normal,
    "orthogonal": lambda weight, spec: nn.init.orthogonal_(weight),
    "normal": lambda weight, spec: nn.init.normal_(weight, std=spec.std),
    "truncated_normal": lambda weight, spec: nn.init.trunc_normal_(
        weight, std=spec.std, a=-2 * spec.std, b=2 * spec.std
    ),
    "uniform": lambda weight, spec: nn.init.uniform_(weight, -spec.std, spec.std),
    "zeros": lambda weight, spec: nn.init.zeros_(weight),
    "ones": lambda weight, spec: nn.init.ones_(weight),
}


def initialize(network: nn.Module, init: specs.InitSpec, device: torch.device | str = "cpu") -> nn.Module:
    """Give a meta network memory on `device`, and its initial weights from torch's global generator of the CPU.

    Matrices are drawn by `init.weight`, biases by `init.bias`; every other module resets itself, as norms and
    embeddings do.
    """
    network.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, nn.Linear):
            INITIALIZERS[getattr(module, "init", None) or init.weight](module.weight, init)
            if module.bias is not None:
                INITIALIZERS[init.bias](module.bias, init)
        elif callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    return network.to(device)
