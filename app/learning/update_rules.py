"""What torch.optim does in a step, as pure functions of tensors, so that a compiler can put many steps in one graph.

A rule has two halves. `scalars` is what follows from the learning rate and the number of the step alone; it works in
float64 on tensors of any shape, so that those of many steps are known before the first. `update` is what is done to
each parameter; all of it is elementwise, so a vector of all parameters may be given as one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from app.specs import optimizers as specs
from app.specs.base import Spec

Scalars = dict[str, Tensor]
"""By name; float64 `[S]` for S steps, or one step's as 0-dim tensors of the parameters' type."""

Slots = dict[str, Tensor]
"""What torch.optim keeps of a parameter under these names: shaped like it, or 0-dim."""


class UpdateRule(NamedTuple):
    """`scalars(spec, learning_rate, step)` with steps counted from 1, and `update(spec, param, grad, slots, scalars)`.

    `update` returns the parameter and its slots as they are after the step; the slots that it is given are those which
    torch.optim has after at least one step (the counter `step` is left to the caller).
    """

    scalars: Callable[[Any, Tensor, Tensor], Scalars]
    update: Callable[[Any, Tensor, Tensor, Slots, Scalars], tuple[Tensor, Slots]]


def _decayed(spec: Any, param: Tensor, grad: Tensor) -> Tensor:
    return grad + spec.weight_decay * param if spec.weight_decay else grad


def _mean(old: Tensor, new: Tensor, share: float) -> Tensor:
    """The moving mean with `share` of the old, as torch.lerp computes it."""
    return old + (1 - share) * (new - old)


def _mean_square(old: Tensor, new: Tensor, share: float) -> Tensor:
    return share * old + (1 - share) * new * new


def _only_rate(_spec: Any, learning_rate: Tensor, _step: Tensor) -> Scalars:
    return {"rate": learning_rate}


# ---- one rule after another, as in torch.optim


def _sgd(spec: specs.SGD, param: Tensor, grad: Tensor, slots: Slots, at: Scalars) -> tuple[Tensor, Slots]:
    grad = _decayed(spec, param, grad)
    if not spec.momentum:
        return param - at["rate"] * grad, {}
    momentum = spec.momentum * slots["momentum_buffer"] + (1 - spec.dampening) * grad
    direction = grad + spec.momentum * momentum if spec.nesterov else momentum
    return param - at["rate"] * direction, {"momentum_buffer": momentum}


def _adam_scalars(spec: Any, learning_rate: Tensor, step: Tensor) -> Scalars:
    scalars = {
        "rate": learning_rate / (1 - spec.beta1**step),
        "unbias_root": (1 - spec.beta2**step).rsqrt(),
    }
    if isinstance(spec, specs.AdamW):
        scalars["shrink"] = 1 - learning_rate * spec.weight_decay
    return scalars


def _adam(spec: Any, param: Tensor, grad: Tensor, slots: Slots, at: Scalars) -> tuple[Tensor, Slots]:
    if isinstance(spec, specs.AdamW):
        param = param * at["shrink"]
    else:
        grad = _decayed(spec, param, grad)
    slots = _moments(spec, grad, slots) | {name: slots[name] for name in slots if name == "max_exp_avg_sq"}
    square = slots["exp_avg_sq"]
    if spec.amsgrad:
        square = slots["max_exp_avg_sq"] = torch.maximum(slots["max_exp_avg_sq"], square)
    return param - at["rate"] * slots["exp_avg"] / (square.sqrt() * at["unbias_root"] + spec.eps), slots


def _moments(spec: Any, grad: Tensor, slots: Slots) -> Slots:
    return {
        "exp_avg": _mean(slots["exp_avg"], grad, spec.beta1),
        "exp_avg_sq": _mean_square(slots["exp_avg_sq"], grad, spec.beta2),
    }


def _rmsprop(spec: specs.RMSprop, param: Tensor, grad: Tensor, slots: Slots, at: Scalars) -> tuple[Tensor, Slots]:
    grad = _decayed(spec, param, grad)
    square = _mean_square(slots["square_avg"], grad, spec.alpha)
    after = {"square_avg": square}
    if spec.centered:
        after["grad_avg"] = _mean(slots["grad_avg"], grad, spec.alpha)
        square = square - after["grad_avg"] * after["grad_avg"]
    direction = grad / (square.sqrt() + spec.eps)
    if spec.momentum:
        direction = after["momentum_buffer"] = spec.momentum * slots["momentum_buffer"] + direction
    return param - at["rate"] * direction, after


def _adagrad_scalars(spec: specs.Adagrad, learning_rate: Tensor, step: Tensor) -> Scalars:
    return {"rate": learning_rate / (1 + (step - 1) * spec.learning_rate_decay)}


def _adagrad(spec: specs.Adagrad, param: Tensor, grad: Tensor, slots: Slots, at: Scalars) -> tuple[Tensor, Slots]:
    grad = _decayed(spec, param, grad)
    total = slots["sum"] + grad * grad
    return param - at["rate"] * grad / (total.sqrt() + spec.eps), {"sum": total}


def _adadelta(spec: specs.Adadelta, param: Tensor, grad: Tensor, slots: Slots, at: Scalars) -> tuple[Tensor, Slots]:
    grad = _decayed(spec, param, grad)
    square = _mean_square(slots["square_avg"], grad, spec.rho)
    delta = (slots["acc_delta"] + spec.eps).sqrt() / (square + spec.eps).sqrt() * grad
    after = {"square_avg": square, "acc_delta": _mean_square(slots["acc_delta"], delta, spec.rho)}
    return param - at["rate"] * delta, after


def _nadam_scalars(spec: specs.NAdam, learning_rate: Tensor, step: Tensor) -> Scalars:
    def mu(step: Tensor) -> Tensor:
        return spec.beta1 * (1 - 0.5 * 0.96 ** (step * spec.momentum_decay))

    unbias_root = (1 - spec.beta2**step).rsqrt()
    return {"rate": learning_rate, "mu": mu(step), "mu_next": mu(step + 1), "unbias_root": unbias_root}


def _nadam(spec: specs.NAdam, param: Tensor, grad: Tensor, slots: Slots, at: Scalars) -> tuple[Tensor, Slots]:
    grad = _decayed(spec, param, grad)
    product = slots["mu_product"] * at["mu"]
    slots = _moments(spec, grad, slots) | {"mu_product": product}
    direction = (1 - at["mu"]) / (1 - product) * grad + at["mu_next"] / (1 - product * at["mu_next"]) * slots["exp_avg"]
    return param - at["rate"] * direction / (slots["exp_avg_sq"].sqrt() * at["unbias_root"] + spec.eps), slots


def _radam_scalars(spec: specs.RAdam, learning_rate: Tensor, step: Tensor) -> Scalars:
    unbias = 1 - spec.beta2**step
    longest = 2 / (1 - spec.beta2) - 1
    length = longest - 2 * step * spec.beta2**step / unbias  # of the simple average that the moving one amounts to
    ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    rectified = length > 5
    return {
        "rate": learning_rate / (1 - spec.beta1**step),
        "plain": torch.where(rectified, 0.0, 1.0).to(step.dtype),
        "rectified": torch.where(rectified, (ratio * unbias).clamp_min(0).sqrt(), 0.0),
    }


def _radam(spec: specs.RAdam, param: Tensor, grad: Tensor, slots: Slots, at: Scalars) -> tuple[Tensor, Slots]:
    slots = _moments(spec, _decayed(spec, param, grad), slots)
    # `plain` in the denominator keeps 0/0 out of the first steps, where nothing is divided
    denominator = slots["exp_avg_sq"].sqrt() + spec.eps + at["plain"]
    return param - at["rate"] * slots["exp_avg"] * (at["plain"] + at["rectified"] / denominator), slots


def _adamax_scalars(spec: specs.Adamax, learning_rate: Tensor, step: Tensor) -> Scalars:
    return {"rate": learning_rate / (1 - spec.beta1**step)}


def _adamax(spec: specs.Adamax, param: Tensor, grad: Tensor, slots: Slots, at: Scalars) -> tuple[Tensor, Slots]:
    grad = _decayed(spec, param, grad)
    after = {
        "exp_avg": _mean(slots["exp_avg"], grad, spec.beta1),
        "exp_inf": torch.maximum(spec.beta2 * slots["exp_inf"], grad.abs() + spec.eps),
    }
    return param - at["rate"] * after["exp_avg"] / after["exp_inf"], after


UPDATE_RULES: dict[type[Spec], UpdateRule] = {
    specs.SGD: UpdateRule(_only_rate, _sgd),
    specs.Adam: UpdateRule(_adam_scalars, _adam),
    specs.AdamW: UpdateRule(_adam_scalars, _adam),
    specs.RMSprop: UpdateRule(_only_rate, _rmsprop),
    specs.Adagrad: UpdateRule(_adagrad_scalars, _adagrad),
    specs.Adadelta: UpdateRule(_only_rate, _adadelta),
    specs.NAdam: UpdateRule(_nadam_scalars, _nadam),
    specs.RAdam: UpdateRule(_radam_scalars, _radam),
    specs.Adamax: UpdateRule(_adamax_scalars, _adamax),
}
"""All but Muon, whose update is no elementwise one."""
