"""The compiled engine: many steps in one call of machine code on a CPU, a step as one captured graph on a CUDA device.

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

from app.errors import EngineFailed
from app.learning.cuda_graph import CapturedSteps
from app.learning.library import Compilation, CompilationFailed, Libraries, compiler_missing, digest_of
from app.learning.modules import BATCH_NORMS
from app.learning.rows import Rows
from app.learning.run_tensors import Loop, RunTensors
from app.learning.step_graph import trace_loop, trace_step
from app.learning.steps import EagerSteps
from app.learning.update_rules import UPDATE_RULES
from app.specs.training import TrainingSpec

WAIT_SECONDS = 0.2  # for a library, before whoever runs the steps may look at the clock and at requests
MAX_PARAMETERS = 20_000_000  # beyond, a step is all arithmetic, and a compile brings nothing


def why_not_compiled(spec: TrainingSpec, network: nn.Module) -> str | None:
    """The reason why a resolved spec's steps can't be compiled, as a clause; None where they can."""
    modules = list(network.modules())
    recurrent = (nn.RNNBase, nn.MultiheadAttention)
    reasons = {
        "it computes in float32 only": spec.precision != "float32",
        "mixup draws rows in every step": spec.mixup is not None,
        "it keeps all activations": spec.activation_checkpointing,
        f"it has no {spec.optimizer.type}": type(spec.optimizer) not in UPDATE_RULES,
        "nadam keeps a part of its state on the host": spec.optimizer.type == "nadam" and spec.device != "cpu",
        "recurrent layers and attention gain nothing": any(isinstance(module, recurrent) for module in modules),
        "batch norm takes each part of a step by itself": (
            spec.descent.accumulate_steps > 1 and any(isinstance(module, BATCH_NORMS) for module in modules)
        ),
        "large networks gain nothing": sum(value.numel() for value in network.parameters()) > MAX_PARAMETERS,
        "several threads would add up embeddings' gradients in any order": (
            spec.device == "cpu"
            and spec.num_threads != 1
            and any(isinstance(module, nn.Embedding) for module in modules)
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


class CompiledSteps:
    """Steps as `eager` takes them, from step `eager_steps` of the run on in compiled code.

    Args:
        optimizer: the spec that `eager.optimizers` was built from.
        folder: where libraries are kept.
        eager_steps: at least 1, as torch.optim makes its state in its first step.
        compile_seconds: what making a library should take, by `app.learning.cost`.
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
        compile_seconds: float,
        warn: Callable[[str], None],
        leave_gradient: bool = False,
    ) -> None:
        assert eager_steps >= 1
        self.eager, self.optimizer, self.libraries = eager, optimizer, Libraries(folder)
        self.eager_steps, self.compile_seconds, self.warn = eager_steps, compile_seconds, warn
        batching = eager.batching
        last_is_odd = batching.sizes(batching.steps_per_epoch - 1, batching.steps_per_epoch) != [batching.rows_per_step]
        self._end = batching.steps_per_epoch - (last_is_odd or leave_gradient)  # in an epoch, of the compiled steps
        self.steps_done = 0  # of the run; whoever loads a checkpoint sets it
        self._failed = False
        self._tensors: RunTensors | None = None
        self._loop: Loop | None = None
        self._digest = ""
        self._compilation: Compilation | None = None

    def run(self, rows: Rows, order: Tensor | None, first: int, learning_rates: Sequence[float]) -> Tensor:
        """As `Engine.run`, but it may take fewer steps than it was asked for: as many as it returns losses.

        None at all are taken in a call that only waited for the library.
        """
        num = self._num_compiled(first, len(learning_rates))
        if self._end and self.steps_done and not self._failed and self._tensors is None:
            self._prepare(rows)
        if self._failed or not num:
            losses = self._run_eager(rows, order, first, learning_rates)
        elif loop := self._await_loop():
            assert self._tensors is not None
            self.eager.network.zero_grad()  # those of the last eager step give their memory back
            losses = self._tensors.run(loop, rows, order, first, learning_rates[:num], self.steps_done)
        else:
            losses = torch.empty(0)
        self.steps_done += len(losses)
        return losses

    def _num_compiled(self, first: int, num: int) -> int:
        """How many of the next steps are compiled: 0 where the next one is eager."""
        return max(0, min(num, self._end - first)) if self.steps_done >= self.eager_steps else 0

    def _run_eager(self, rows: Rows, order: Tensor | None, first: int, learning_rates: Sequence[float]) -> Tensor:
        if not self._failed and self.steps_done < self.eager_steps:
            learning_rates = learning_rates[: self.eager_steps - self.steps_done]
        return self.eager.run(rows, order, first, learning_rates)

    # ---- the loop

    def _prepare(self, rows: Rows) -> None:
        """Capture the step, or find the library of this shape, or begin to make it."""
        try:
            self._tensors = tensors = RunTensors(self.eager, self.optimizer, rows)
            if self.eager.device.type == "cuda":
                self._loop = CapturedSteps(tensors.recipe, tensors.tensors).run
                return
            step = trace_step(tensors.recipe, tensors.tensors)
            arguments, threads = tensors.tensors.arguments(0, 1), torch.get_num_threads()
            self._digest = digest_of(step, arguments, threads)
            if self._load(tensors):
                return
            if reason := compiler_missing():
                raise CompilationFailed(reason)
            self._compilation = Compilation(
                lambda: self.libraries.compile(
                    self._digest, lambda: trace_loop(step, tensors.tensors), arguments, threads, self.compile_seconds
                )
            )
        except (EngineFailed, torch.OutOfMemoryError):
            raise
        except Exception as error:  # noqa: BLE001 (whatever torch can't trace, it can do eagerly)
            self._give_up(error)

    def _load(self, tensors: RunTensors) -> bool:
        library = self.libraries.load(self._digest)
        if library is not None:
            self._loop = lambda first, last: library.run(tensors.tensors.arguments(first, last))
        return library is not None

    def _await_loop(self) -> Loop | None:
        """The loop; None while its library is being made, and for ever where that failed."""
        if self._compilation is not None:
            assert self._tensors is not None
            try:
                if not self._compilation.finished(WAIT_SECONDS):
                    return None
                if not self._load(self._tensors):
                    raise CompilationFailed("the library that was made can't be loaded")
            except CompilationFailed as error:
                self._give_up(error)
            self._compilation = None
        return self._loop

    def _give_up(self, error: Exception) -> None:
        self._failed, self._tensors = True, None
        text = str(error) if isinstance(error, CompilationFailed) else f"{type(error).__name__}: {error}"
        self.warn(f"training goes on without the compiled engine: {text.splitlines()[0][:500]}")
