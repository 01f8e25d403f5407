"""A training step as a graph of tensor operations, and the loop over many of them as one graph.

Shape suffixes: S steps that fit into a call, R rows a step, P trainable parameters of a group in one vector, K scalars
of the update rule.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn
from torch._higher_order_ops.while_loop import while_loop_op
from torch._ops import OpOverload
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from app.learning.losses import LossFunction
from app.learning.update_rules import UPDATE_RULES

aten = torch.ops.aten


@dataclass(frozen=True)
class StepRecipe:
    """All that a step is, but for its tensors."""

    network: nn.Module
    loss: LossFunction
    optimizer: Any
    max_grad_norm: float | None
    groups: tuple[tuple[str, ...], ...]  # names of the trainable parameters, those that lie in one vector together
    slots: tuple[str, ...]  # of the optimizer
    scalars: tuple[str, ...]  # of its update rule, and `average_decay` where weights are averaged
    has_weights: bool  # of the rows
    has_average: bool  # of the parameters
    has_seeds: bool  # for dropout


@dataclass
class StepTensors:
    """What steps read and write.

    `state` is changed in place: of one group after another the parameters `[P]`, the optimizer's slots `[P]` or 0-dim,
    and the average of the parameters `[P]` where there is one, then the network's buffers. `fixed` are the frozen
    parameters. `streams` have a place for each step: inputs `[S, R, …]`, targets `[S, R, …]`, weights `[S, R]` and
    seeds `[S]` where there are any, and scalars `[S, K]`. `losses` is `[S]`.
    """

    state: list[Tensor]
    fixed: list[Tensor]
    streams: list[Tensor]
    losses: Tensor

    def arguments(self, first: int, last: int) -> list[Tensor]:
        """Of the loop over the steps `first` to `last` (exclusive)."""
        return [torch.tensor(first), torch.tensor(last), *self.state, self.losses, *self.fixed, *self.streams]


class Dropout(TorchFunctionMode):
    """Dropout whose masks follow from a seed: a graph can't draw from torch's generator in every turn of a loop.

    Without a seed, masks are drawn from the device's generator, which a captured step goes on with by itself.
    """

    def __init__(self, seed: Tensor | None) -> None:
        super().__init__()
        self.seeds = None if seed is None else (seed + number for number in count())

    def __torch_function__(
        self, function: Callable[..., Any], _types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is not F.dropout or not kwargs["p"]:
            return function(*args, **kwargs)
        x, p = args[0], kwargs["p"]
        return torch.where(self._uniform(x) >= p, x / (1 - p), 0.0)

    def _uniform(self, x: Tensor) -> Tensor:
        if self.seeds is None:
            return torch.rand_like(x)
        from torch._inductor.inductor_prims import random  # a second and 70 MB, for those who only plan a run

        uniform: Tensor = random(list(x.shape), next(self.seeds), "rand")
        return uniform


def make_step(recipe: StepRecipe) -> Callable[..., list[Tensor]]:
    """The pure function `(state, fixed, one place of each stream) -> (state, loss)`, all of it as plain tensors."""
    network, rule = recipe.network, UPDATE_RULES[type(recipe.optimizer)]
    trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
    frozen = [name for name, value in network.named_parameters() if not value.requires_grad]
    buffer_names = [name for name, _ in network.named_buffers()]

    kinds = ["parameters", *recipe.slots, *(["average"] if recipe.has_average else [])]

    def step(*tensors: Tensor) -> list[Tensor]:
        given = iter(tensors)
        groups = [dict(zip(kinds, islice(given, len(kinds)), strict=True)) for _ in recipe.groups]
        buffers = {name: next(given).clone() for name in buffer_names}
        fixed = {name: next(given) for name in frozen}
        inputs, targets = next(given), next(given)
        weights = next(given) if recipe.has_weights else None
        seed = next(given) if recipe.has_seeds else None
        scalars = dict(zip(recipe.scalars, next(given).unbind(), strict=True))
        leaves = [group["parameters"].detach().requires_grad_() for group in groups]
        with torch.enable_grad(), Dropout(seed):
            named = buffers | fixed
            for leaf, names in zip(leaves, recipe.groups, strict=True):
                named |= unflatten(leaf, {name: trained[name] for name in names})
            loss = recipe.loss(functional_call(network, named, (inputs,)).float(), targets, weights)
        grads = torch.autograd.grad(loss, leaves, materialize_grads=True)
        if recipe.max_grad_norm is not None:
            norm = torch.stack([torch.linalg.vector_norm(grad) for grad in grads]).norm()
            scale = (recipe.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
            grads = tuple(grad * scale for grad in grads)
        state: list[Tensor] = []
        for group, grad in zip(groups, grads, strict=True):
            slots = {name: group[name] for name in recipe.slots}
            parameters, slots = rule.update(recipe.optimizer, group["parameters"], grad, slots, scalars)
            state += [parameters, *(slots[name] for name in recipe.slots)]
            if recipe.has_average:
                state.append(group["average"] + (1 - scalars["average_decay"]) * (parameters - group["average"]))
        return [*state, *buffers.values(), loss.detach()]

    return step


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Views of a vector, one after another in the given tensors' shapes."""
    pieces = vector.split([value.numel() for value in like.values()])
    return {name: piece.view(value.shape) for piece, (name, value) in zip(pieces, like.items(), strict=True)}


def trace_step(recipe: StepRecipe, tensors: StepTensors) -> fx.GraphModule:
    """The step as a graph, without computing anything."""
    one = [stream[0] for stream in tensors.streams]
    table: dict[OpOverload[Any, Any], Callable[..., Any]] = {aten.addmm.default: _addmm, aten.mm.default: _mm}
    traced = make_fx(make_step(recipe), tracing_mode="fake", decomposition_table=table)
    return traced(*tensors.state, *tensors.fixed, *one)


def _addmm(bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A sum of its own is merged with the activation that follows. A difference, as sums are put back into products."""
    return torch.mm(a, b) - (-bias)


def _mm(a: Tensor, b: Tensor) -> Any:
    """Products with vectors are merged with what is around them, which is worth more than a library's call."""
    if a.shape[1] == 1:
        return a * b
    if b.shape[1] == 1:
        return (a * b.t()).sum(1, keepdim=True)
    if a.shape[0] == 1:
        return (a.t() * b).sum(0, keepdim=True)
    return NotImplemented  # as it is


def trace_loop(step: fx.GraphModule, tensors: StepTensors) -> fx.GraphModule:
    """`StepTensors.arguments` in; all steps are taken and their losses written."""
    num_state, num_fixed, num_steps = len(tensors.state), len(tensors.fixed), len(tensors.losses)

    def unfinished(place: Tensor, last: Tensor, *_rest: Tensor) -> Tensor:
        return place < last

    def body(place: Tensor, _last: Tensor, *rest: Tensor) -> tuple[Tensor]:
        state, losses = rest[:num_state], rest[num_state]
        fixed, streams = rest[num_state + 1 :][:num_fixed], rest[num_state + 1 + num_fixed :]
        at: Any = place.item()
        torch._check(at >= 0)
        torch._check(at < num_steps)
        *after, loss = step(*state, *fixed, *(stream.select(0, at) for stream in streams))
        for tensor, new in zip(state, after, strict=True):
            tensor.copy_(new)
        losses.select(0, at).copy_(loss)
        return (place + 1,)

    written = range(2, 2 + num_state + 1)  # after `place` and `last`: the state and the losses

    def loop(first: Tensor, *rest: Tensor) -> Any:
        return while_loop_op(unfinished, body, (first,), rest, mutated_arg_indices=",".join(map(str, written)))

    with torch.no_grad():
        return make_fx(loop, tracing_mode="fake")(*tensors.arguments(0, 1))
