"""The network's and the optimizer's tensors as a compiled loop works on them, and room for rows."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from app.learning.rows import ALIGNED_BYTES, Rows
from app.learning.step_graph import StepRecipe, StepTensors, unflatten
from app.learning.steps import EagerSteps
from app.learning.update_rules import UPDATE_RULES

MAX_STREAM_BYTES = 2**21  # rows of one call; they should stay in a core's cache
CARD_STREAM_BYTES = 2**26  # on a card, which waits between calls
MAX_STEPS_PER_CALL = 1024
MIN_ALONE = 2**16  # numbers of a parameter that is not laid end to end with others

Loop = Callable[[int, int], None]
"""Takes the steps at these places of the streams, the last one exclusive."""


class Joined:
    """Tensors laid end to end in one vector, or a tensor by itself; one 0-dim tensor for 0-dim ones, all the same."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = [part.detach() for part in parts]
        if self.parts[0].ndim == 0:
            self.tensor = self.parts[0].clone()
            self.views = [self.tensor] * len(parts)
        elif len(parts) == 1 and self.parts[0].is_contiguous():
            self.tensor = self.parts[0].view(-1)
            self.parts, self.views = [], []
        else:
            self.tensor = torch.cat([part.flatten() for part in self.parts])
            self.views = list(unflatten(self.tensor, {str(index): part for index, part in enumerate(parts)}).values())

    def gather(self) -> None:
        if self.parts:
            torch._foreach_copy_(self.views, self.parts)

    def scatter(self) -> None:
        if self.parts:
            torch._foreach_copy_(self.parts, self.views)


def _grouped(parameters: Sequence[Tensor]) -> list[list[int]]:
    """Places of parameters that share a vector.

    Small ones are updated together, by one kernel. Of large ones copies would cost more than kernels of their own:
    into the vector and back with every call, and of their gradients in every step.
    """
    small = [index for index, parameter in enumerate(parameters) if parameter.numel() < MIN_ALONE]
    alone = [[index] for index, parameter in enumerate(parameters) if parameter.numel() >= MIN_ALONE]
    return [small, *alone] if small else alone


def _stream(like: Tensor, num_steps: int, num_rows: int, device: torch.device) -> Tensor:
    """Room `[S, N, …]` for the rows of steps, each of which begins where a vector of the processor may."""
    shape = (num_rows, *like.shape[1:])
    size = math.prod(shape)
    unit = ALIGNED_BYTES // like.element_size()
    room = like.new_zeros(num_steps, -(-size // unit) * unit, device=device)
    stream: Tensor = room[:, :size].unflatten(1, shape)
    return stream


class RunTensors:
    """The network's and the optimizer's tensors in the form that a loop works on, and room for rows."""

    def __init__(self, eager: EagerSteps, optimizer: Any, rows: Rows) -> None:
        self.eager, self.optimizer, self.rule = eager, optimizer, UPDATE_RULES[type(optimizer)]
        network, parameters, device = eager.network, eager.parameters, eager.device
        kept = [eager.optimizers[0].state[parameter] for parameter in parameters]
        self.counters = [slots["step"] for slots in kept if "step" in slots]
        slots = sorted(name for name, value in kept[0].items() if name != "step" and value is not None)
        kinds = [parameters, *([slots_of[name] for slots_of in kept] for name in slots)]
        if eager.average is not None:
            kinds.append(list(eager.average.average.values()))
        groups = _grouped(parameters)
        self.joined = [Joined([tensors[index] for index in group]) for group in groups for tensors in kinds]
        names = [name for name, value in network.named_parameters() if value.requires_grad]
        self.recipe = StepRecipe(
            network,
            eager.loss,
            optimizer,
            eager.max_grad_norm,
            tuple(tuple(names[index] for index in group) for group in groups),
            tuple(slots),
            tuple(self._scalars_by_name([0.0], 1)),
            has_weights=rows.weights is not None,
            has_average=eager.average is not None,
            has_seeds=device.type == "cpu"
            and any(isinstance(module, nn.Dropout) and module.p > 0 for module in network.modules()),
        )
        num_rows = eager.batching.rows_per_step
        stream_bytes = CARD_STREAM_BYTES if device.type == "cuda" else MAX_STREAM_BYTES
        num_steps = max(1, min(MAX_STEPS_PER_CALL, stream_bytes // (num_rows * rows.inputs[:1].nbytes)))
        parts = [part for part in (rows.inputs, rows.targets, rows.weights) if part is not None]
        self.streams = [_stream(part, num_steps, num_rows, device) for part in parts]
        self.seeds = torch.zeros(num_steps, dtype=torch.int64, device=device)
        self.scalars = torch.zeros(num_steps, len(self.recipe.scalars), device=device)
        self.tensors = StepTensors(
            state=[*(joined.tensor for joined in self.joined), *network.buffers()],
            fixed=[value.detach() for value in network.parameters() if not value.requires_grad],
            streams=[*self.streams, *([self.seeds] if self.recipe.has_seeds else []), self.scalars],
            losses=torch.zeros(num_steps, device=device),
        )

    def run(
        self, loop: Loop, rows: Rows, order: Tensor | None, first: int, rates: Sequence[float], steps_done: int
    ) -> Tensor:
        """Take the steps `first`, `first + 1`, … of an epoch; all of them have the usual number of rows."""
        for joined in self.joined:
            joined.gather()
        scalars = torch.stack(list(self._scalars_by_name(rates, steps_done + 1).values()), dim=1)
        losses = torch.empty(len(rates), device=self.eager.device)
        room = len(self.tensors.losses)
        for begin in range(0, len(rates), room):
            num = min(room, len(rates) - begin)
            self._fill(rows, order, first + begin, num)
            self.scalars[:num] = scalars[begin : begin + num]
            loop(0, num)
            losses[begin : begin + num] = self.tensors.losses[:num]
        for joined in self.joined:
            joined.scatter()
        if self.counters:
            torch._foreach_add_(self.counters, len(rates))
        if self.eager.average is not None:
            self.eager.average.num_updates += len(rates)
        return losses

    def _fill(self, rows: Rows, order: Tensor | None, first: int, num: int) -> None:
        """Put the rows of `num` steps in place, and a seed for each."""
        size = self.eager.batching.rows_per_step
        block = rows.take(order, first * size, (first + num) * size, self.eager.device)
        parts = [part for part in (block.inputs, block.targets, block.weights) if part is not None]
        for stream, part in zip(self.streams, parts, strict=True):
            stream[:num].copy_(part.view(num, size, *part.shape[1:]))
        if self.recipe.has_seeds:
            self.seeds[:num] = torch.randint(2**62, (num,))  # as many draws as steps, however they come in calls

    def _scalars_by_name(self, rates: Sequence[float], step: int) -> dict[str, Tensor]:
        """The update rule's, for steps counted from `step`, as float32 `[S]`."""
        steps = torch.arange(step, step + len(rates), dtype=torch.float64)
        scalars = self.rule.scalars(self.optimizer, torch.tensor(rates, dtype=torch.float64), steps)
        if self.eager.average is not None:
            scalars["average_decay"] = ((1 + steps) / (10 + steps)).clamp(max=self.eager.average.decay)
        return {name: value.float() for name, value in scalars.items()}
