"""The compiled engine: many steps in one call of machine code, on a CPU.

It takes the same steps as the eager engine and works on the same network and optimizers, so a checkpoint knows nothing
of it. A run starts with eager steps while its library is made; at a step that is known beforehand it moves over, and
waits there if need be. Every compiled step runs the same instructions however steps come in calls. So a run that was
killed and goes on ends with the weights of one that was not. An epoch's last step is eager where it has other rows
than the others.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from app.learning.library import Compilation, CompilationFailed, Libraries, Library, compiler_missing, digest_of
from app.learning.rows import Rows
from app.learning.step_graph import StepRecipe, StepTensors, trace_loop, trace_step, unflatten
from app.learning.steps import EagerSteps
from app.learning.update_rules import UPDATE_RULES
from app.specs.training import TrainingSpec

WAIT_SECONDS = 0.2  # for a library, before whoever runs the steps may look at the clock and at requests
MAX_STREAM_BYTES = 2 * 2**20  # rows of one call; they should stay in a core's cache
MAX_STEPS_PER_CALL = 1024
MAX_PARAMETERS = 20_000_000  # beyond, a step is all arithmetic, and the vectors' copies are worth saving


def why_not_compiled(spec: TrainingSpec, network: nn.Module) -> str | None:
    """The reason why a resolved spec's steps can't be compiled, as a clause; None where they can."""
    modules = list(network.modules())
    recurrent = (nn.RNNBase, nn.MultiheadAttention)
    reasons = {
        "it is for the CPU": spec.device != "cpu",
        "it computes in float32 only": spec.precision != "float32",
        "mixup draws rows in every step": spec.mixup is not None,
        f"it has no {spec.optimizer.type}": type(spec.optimizer) not in UPDATE_RULES,
        "recurrent layers and attention gain nothing": any(isinstance(module, recurrent) for module in modules),
        "large networks gain nothing": sum(value.numel() for value in network.parameters()) > MAX_PARAMETERS,
        "several threads would add up embeddings' gradients in any order": (
            spec.num_threads != 1 and any(isinstance(module, nn.Embedding) for module in modules)
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


class CompiledSteps:
    """Steps as `eager` takes them, from step `eager_steps` of the run on in compiled code.

    Args:
        optimizer: the spec that `eager.optimizers` was built from.
        folder: where libraries are kept.
        eager_steps: at least 1, as torch.optim makes its state in its first step.
        warn: is told in a sentence if the run has to stay eager.
        leave_gradient: an epoch's last step is eager, so that parameters have the gradient of it.
    """

    def __init__(
        self,
        eager: EagerSteps,
        optimizer: Any,
        folder: Path,
        *,
        eager_steps: int,
        warn: Callable[[str], None],
        leave_gradient: bool = False,
    ) -> None:
        assert eager_steps >= 1
        self.eager, self.optimizer, self.libraries = eager, optimizer, Libraries(folder)
        self.eager_steps, self.warn, self.leave_gradient = eager_steps, warn, leave_gradient
        self.steps_done = 0  # of the run; whoever loads a checkpoint sets it
        self._failed = False
        self._tensors: RunTensors | None = None
        self._library: Library | None = None
        self._digest = ""
        self._compilation: Compilation | None = None

    def run(self, rows: Rows, order: Tensor | None, first: int, learning_rates: Sequence[float]) -> Tensor:
        """As `Engine.run`, but it may take fewer steps than it was asked for: as many as it returns losses.

        None at all are taken in a call that only waited for the library.
        """
        num = self._num_compiled(first, len(learning_rates))
        if self.steps_done and not self._failed and self._tensors is None:
            self._prepare(rows)
        if self._failed or not num:
            losses = self._run_eager(rows, order, first, learning_rates)
        elif library := self._await_library():
            assert self._tensors is not None
            losses = self._tensors.run(library, rows, order, first, learning_rates[:num], self.steps_done)
        else:
            losses = torch.empty(0)
        self.steps_done += len(losses)
        return losses

    def _num_compiled(self, first: int, num: int) -> int:
        """How many of the next steps are compiled: 0 where the next one is eager."""
        batching = self.eager.batching
        last_is_odd = batching.sizes(batching.steps_per_epoch - 1, batching.steps_per_epoch) != [batching.rows_per_step]
        end = batching.steps_per_epoch - (last_is_odd or self.leave_gradient)
        return max(0, min(num, end - first)) if self.steps_done >= self.eager_steps else 0

    def _run_eager(self, rows: Rows, order: Tensor | None, first: int, learning_rates: Sequence[float]) -> Tensor:
        if not self._failed and self.steps_done < self.eager_steps:
            learning_rates = learning_rates[: self.eager_steps - self.steps_done]
        return self.eager.run(rows, order, first, learning_rates)

    # ---- the library

    def _prepare(self, rows: Rows) -> None:
        """Find the library of this shape, or begin to make it."""
        try:
            self._tensors = tensors = RunTensors(self.eager, self.optimizer, rows)
            step = trace_step(tensors.recipe, tensors.tensors)
            arguments, threads = tensors.tensors.arguments(0, 1), torch.get_num_threads()
            self._digest = digest_of(step, arguments, threads)
            self._library = self.libraries.load(self._digest)
            if self._library is None:
                if reason := compiler_missing():
                    raise CompilationFailed(reason)
                self._compilation = Compilation(
                    lambda: self.libraries.compile(
                        self._digest, lambda: trace_loop(step, tensors.tensors), arguments, threads
                    )
                )
        except Exception as error:  # noqa: BLE001 (whatever torch can't trace, it can do eagerly)
            self._give_up(error)

    def _await_library(self) -> Library | None:
        """The library; None while it is being made, and for ever where that failed."""
        if self._compilation is not None:
            try:
                if not self._compilation.finished(WAIT_SECONDS):
                    return None
                self._library = self.libraries.load(self._digest)
                if self._library is None:
                    raise CompilationFailed("the library that was made can't be loaded")
            except CompilationFailed as error:
                self._give_up(error)
            self._compilation = None
        return self._library

    def _give_up(self, error: Exception) -> None:
        self._failed = True
        text = str(error) if isinstance(error, CompilationFailed) else f"{type(error).__name__}: {error}"
        self.warn(f"training goes on without the compiled engine: {text.splitlines()[0][:500]}")


class Joined:
    """Tensors laid end to end in one vector; or one 0-dim tensor for 0-dim tensors that are all the same."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = [part.detach() for part in parts]
        if self.parts[0].ndim == 0:
            self.tensor = self.parts[0].clone()
            self.views = [self.tensor] * len(parts)
        else:
            self.tensor = torch.cat([part.flatten() for part in self.parts])
            self.views = list(unflatten(self.tensor, {str(index): part for index, part in enumerate(parts)}).values())

    def gather(self) -> None:
        torch._foreach_copy_(self.views, self.parts)

    def scatter(self) -> None:
        torch._foreach_copy_(self.parts, self.views)


class RunTensors:
    """The network's and the optimizer's tensors in the form that a library works on, and room for rows."""

    def __init__(self, eager: EagerSteps, optimizer: Any, rows: Rows) -> None:
        self.eager, self.optimizer, self.rule = eager, optimizer, UPDATE_RULES[type(optimizer)]
        network, parameters = eager.network, eager.parameters
        kept = [eager.optimizers[0].state[parameter] for parameter in parameters]
        self.counters = [slots["step"] for slots in kept if "step" in slots]
        slots = sorted(name for name, value in kept[0].items() if name != "step" and value is not None)
        self.joined = [Joined(parameters), *(Joined([slots_of[name] for slots_of in kept]) for name in slots)]
        if eager.average is not None:
            self.joined.append(Joined(list(eager.average.average.values())))
        self.recipe = StepRecipe(
            network,
            eager.loss,
            optimizer,
            eager.max_grad_norm,
            tuple(slots),
            tuple(self._scalars_by_name([0.0], 1)),
            has_weights=rows.weights is not None,
            has_average=eager.average is not None,
            has_dropout=any(isinstance(module, nn.Dropout) and module.p > 0 for module in network.modules()),
        )
        num_rows = eager.batching.rows_per_step
        num_steps = max(1, min(MAX_STEPS_PER_CALL, MAX_STREAM_BYTES // (num_rows * rows.inputs[:1].nbytes)))
        parts = [part for part in (rows.inputs, rows.targets, rows.weights) if part is not None]
        self.streams = [part.new_zeros(num_steps, num_rows, *part.shape[1:]) for part in parts]
        self.seeds = torch.zeros(num_steps, dtype=torch.int64)
        self.scalars = torch.zeros(num_steps, len(self.recipe.scalars))
        self.tensors = StepTensors(
            state=[*(joined.tensor for joined in self.joined), *network.buffers()],
            fixed=[value.detach() for value in network.parameters() if not value.requires_grad],
            streams=[*self.streams, *([self.seeds] if self.recipe.has_dropout else []), self.scalars],
            losses=torch.zeros(num_steps),
        )

    def run(
        self, library: Library, rows: Rows, order: Tensor | None, first: int, rates: Sequence[float], steps_done: int
    ) -> Tensor:
        """Take the steps `first`, `first + 1`, … of an epoch; all of them have the usual number of rows."""
        for joined in self.joined:
            joined.gather()
        scalars = torch.stack(list(self._scalars_by_name(rates, steps_done + 1).values()), dim=1)
        losses = torch.empty(len(rates))
        room = len(self.tensors.losses)
        for begin in range(0, len(rates), room):
            num = min(room, len(rates) - begin)
            self._fill(rows, order, first + begin, num)
            self.scalars[:num] = scalars[begin : begin + num]
            library.run(self.tensors.arguments(0, num))
            losses[begin : begin + num] = self.tensors.losses[:num]
        for joined in self.joined:
            joined.scatter()
        for counter in self.counters:
            counter += len(rates)
        if self.eager.average is not None:
            self.eager.average.num_updates += len(rates)
        return losses

    def _fill(self, rows: Rows, order: Tensor | None, first: int, num: int) -> None:
        """Put the rows of `num` steps in place, and a seed for each."""
        size = self.eager.batching.rows_per_step
        block = rows.take(order, first * size, (first + num) * size, torch.device("cpu"))
        parts = [part for part in (block.inputs, block.targets, block.weights) if part is not None]
        for stream, part in zip(self.streams, parts, strict=True):
            stream[:num].copy_(part.view(num, size, *part.shape[1:]))
        rows.release()
        if self.recipe.has_dropout:
            self.seeds[:num] = torch.randint(2**62, (num,))  # as many draws as steps, however they come in calls

    def _scalars_by_name(self, rates: Sequence[float], step: int) -> dict[str, Tensor]:
        """The update rule's, for steps counted from `step`, as float32 `[S]`."""
        steps = torch.arange(step, step + len(rates), dtype=torch.float64)
        scalars = self.rule.scalars(self.optimizer, torch.tensor(rates, dtype=torch.float64), steps)
        if self.eager.average is not None:
            scalars["average_decay"] = ((1 + steps) / (10 + steps)).clamp(max=self.eager.average.decay)
        return {name: value.float() for name, value in scalars.items()}
