"""Optimizer specs to torch.optim. Fused kernels are taken where torch has them."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from app.specs import optimizers as specs
from app.specs.base import Spec

Optimizers = list[torch.optim.Optimizer]
"""All but Muon are one optimizer; Muon leaves the vectors to a second."""


def _betas(spec: Any) -> dict[str, Any]:
    return {"betas": (spec.beta1, spec.beta2), "eps": spec.eps, "weight_decay": spec.weight_decay}


def _sgd(spec: specs.SGD) -> dict[str, Any]:
    keys = ("momentum", "dampening", "nesterov", "weight_decay")
    return {key: getattr(spec, key) for key in keys}


def _rmsprop(spec: specs.RMSprop) -> dict[str, Any]:
    return {key: getattr(spec, key) for key in ("alpha", "eps", "momentum", "centered", "weight_decay")}


def _adagrad(spec: specs.Adagrad) -> dict[str, Any]:
    keys = ("initial_accumulator_value", "eps", "weight_decay")
    return {key: getattr(spec, key) for key in keys} | {"lr_decay": spec.learning_rate_decay}


OPTIMIZERS: dict[type[Spec], tuple[Callable[..., torch.optim.Optimizer], Callable[[Any], dict[str, Any]]]] = {
    specs.SGD: (torch.optim.SGD, lambda spec: _sgd(spec) | {"fused": True}),
    specs.Adam: (torch.optim.Adam, lambda spec: _betas(spec) | {"amsgrad": spec.amsgrad, "fused": True}),
    specs.AdamW: (torch.optim.AdamW, lambda spec: _betas(spec) | {"amsgrad": spec.amsgrad, "fused": True}),
    specs.RMSprop: (torch.optim.RMSprop, _rmsprop),
    specs.Adagrad: (torch.optim.Adagrad, _adagrad),
    specs.Adadelta: (
        torch.optim.Adadelta,
        lambda spec: {"rho": spec.rho, "eps": spec.eps, "weight_decay": spec.weight_decay},
    ),
    specs.NAdam: (torch.optim.NAdam, lambda spec: _betas(spec) | {"momentum_decay": spec.momentum_decay}),
    specs.RAdam: (torch.optim.RAdam, _betas),
    specs.Adamax: (torch.optim.Adamax, _betas),
    specs.Muon: (
        torch.optim.Muon,
        lambda spec: {"momentum": spec.momentum, "nesterov": spec.nesterov, "weight_decay": spec.weight_decay},
    ),
}


def build_optimizers(spec: Any, parameters: Iterable[nn.Parameter], scaled: bool = False) -> Optimizers:
    """The optimizer of `spec` over `parameters`; for Muon, AdamW takes those that are no matrices.

    `scaled`: steps whose gradients overflow are left out. Where the first one is, torch's fused SGD goes on with
    whatever was in the memory that its momentum is kept in.
    """
    build, options = OPTIMIZERS[type(spec)]
    parameters = list(parameters)
    if scaled and isinstance(spec, specs.SGD):
        options = _sgd
    if not isinstance(spec, specs.Muon):
        return [build(parameters, lr=spec.learning_rate, **options(spec))]
    matrices = [parameter for parameter in parameters if parameter.ndim == 2]
    others = [parameter for parameter in parameters if parameter.ndim != 2]
    rest = specs.AdamW(learning_rate=spec.learning_rate, weight_decay=0.0)
    optimizers = [build(matrices, lr=spec.learning_rate, **options(spec))] if matrices else []
    return optimizers + (build_optimizers(rest, others) if others else [])


def set_learning_rate(optimizers: Optimizers, learning_rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate


# ---- on disk: tensors by name, the rest is in the spec


def export_state(optimizers: Optimizers) -> dict[str, Tensor]:
    """All state as tensors named `optimizer.<which>.<parameter>.<entry>`; Python numbers become float64 tensors."""
    return {
        f"optimizer.{which}.{index}.{key}": value
        if isinstance(value, Tensor)
        else torch.tensor(value, dtype=torch.float64)
        for which, optimizer in enumerate(optimizers)
        for index, entries in optimizer.state_dict()["state"].items()
        for key, value in entries.items()
        if value is not None
    }


def load_state(optimizers: Optimizers, tensors: dict[str, Tensor]) -> None:
    """The opposite of `export_state`, bit for bit."""
    for which, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Any]] = {}
        for name, tensor in tensors.items():
            prefix, _, rest = name.partition(f"optimizer.{which}.")
            if not prefix and rest:
                index, _, key = rest.partition(".")
                state.setdefault(int(index), {})[key] = _as_kept(tensor)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _as_kept(tensor: Tensor) -> Tensor | float:
    """torch keeps Python numbers for some entries; they were written as float64 scalars."""
    return tensor.item() if tensor.dtype == torch.float64 and tensor.ndim == 0 else tensor
