"""The eager engine: one update after another, each a few torch calls on tensors that are already in place."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from app.learning.averaging import WeightAverage
from app.learning.batches import Batching
from app.learning.chain import Chain, chained
from app.learning.losses import LossFunction
from app.learning.modules import BATCH_NORMS
from app.learning.network import FROZEN, set_to_learn
from app.learning.optimizers import Optimizers, set_learning_rate
from app.learning.rows import Rows
from app.learning.shortcuts import Backward, forward_of, step_of

MAX_GATHER_BYTES = 64 * 2**20  # rows of several steps are gathered at once, up to this much


class Engine(Protocol):
    """Takes steps; both engines give the same losses."""

    def run(self, rows: Rows, order: Tensor | None, first: int, learning_rates: Sequence[float]) -> Tensor:
        """Steps number `first`, `first + 1`, … of an epoch, one per learning rate; returns their losses `[S]`.

        It may take fewer, also none, and returns as many losses.
        """


class EagerSteps:
    def __init__(
        self,
        network: nn.Sequential,
        loss: LossFunction,
        optimizers: Optimizers,
        batching: Batching,
        *,
        max_grad_norm: float | None,
        precision: str = "float32",
        mixup: float | None = None,
        average: WeightAverage | None = None,
        recompute: bool = False,
    ) -> None:
        self.mixup, self.average, self.recompute = mixup, average, recompute
        self.network, self.loss, self.optimizers, self.batching = network, loss, optimizers, batching
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.max_grad_norm = max_grad_norm
        self.device = self.parameters[0].device if self.parameters else torch.device("cpu")
        self.forward = forward_of(network)
        self.backward, self.updates = Backward(self.device), [step_of(optimizer) for optimizer in optimizers]
        self.autocast: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if precision in ("bfloat16", "float16"):
            self.autocast = torch.autocast(self.device.type, dtype=getattr(torch, precision))
        self.scaler = torch.amp.GradScaler(self.device.type) if precision == "float16" else None
        self.copies = torch.cuda.Stream() if self.device.type == "cuda" else None
        self.chain: Chain | None = None
        by_hand = self.device.type == "cpu" and precision == "float32" and mixup is None and not recompute
        if by_hand and chained(network):
            self.chain = Chain(network, loss)
        self.learning_rate: float | None = None

    def run(self, rows: Rows, order: Tensor | None, first: int, learning_rates: Sequence[float]) -> Tensor:
        if len(learning_rates) == 1:
            return self._step(self._arrived(self._fetch(rows, order, (first, first + 1))), learning_rates[0]).view(1)
        at_once = max(1, MAX_GATHER_BYTES // (max(1, rows.inputs[:1].nbytes) * self.batching.rows_per_step))
        last = first + len(learning_rates)
        spans = [(begin, min(begin + at_once, last)) for begin in range(first, last, at_once)]
        losses: list[Tensor] = []
        upcoming = self._fetch(rows, order, spans[0])
        for span, following in zip(spans, [*spans[1:], None], strict=True):
            block = self._arrived(upcoming)
            losses += self._block(block, self.batching.sizes(*span), learning_rates[span[0] - first : span[1] - first])
            if following is not None:  # while a card is still busy with this block
                upcoming = self._fetch(rows, order, following)
        return torch.stack(losses)

    def _fetch(self, rows: Rows, order: Tensor | None, span: tuple[int, int]) -> Rows:
        """The rows of these steps; those that come from the host to a card do so beside its work."""
        if self.copies is None or rows.inputs.device == self.device:
            self.copies = None
            return rows.take(order, *self.batching.bounds(*span), self.device)
        with torch.cuda.stream(self.copies):
            return rows.take(order, *self.batching.bounds(*span), self.device)

    def _arrived(self, block: Rows) -> Rows:
        if self.copies:
            now = torch.cuda.current_stream()
            now.wait_stream(self.copies)
            for part in (block.inputs, block.targets, block.weights):
                if part is not None:
                    part.record_stream(now)
        return block

    def _block(self, block: Rows, sizes: list[int], learning_rates: Sequence[float]) -> list[Tensor]:
        if len(sizes) == 1:
            return [self._step(block, learning_rates[0])]
        return [self._step(rows, rate) for rows, rate in zip(block.split(sizes), learning_rates, strict=True)]

    def _step(self, rows: Rows, learning_rate: float) -> Tensor:
        if learning_rate != self.learning_rate:
            set_learning_rate(self.optimizers, learning_rate)
            self.learning_rate = learning_rate
        for parameter in self.parameters:
            parameter.grad = None
        loss = self.gradient(rows.aligned())
        if self.scaler:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self._update()
        return loss

    def _update(self) -> None:
        if self.scaler:
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)  # which leaves out a step whose gradients overflowed
            self.scaler.update()
        else:
            for update in self.updates:
                update()
        if self.average is not None:
            self.average.update()

    def gradient(self, rows: Rows) -> Tensor:
        """Add a step's gradient to `grad` of the parameters; returns the mean loss."""
        sizes = self.batching.parts(len(rows)) if len(rows) > self.batching.batch_size else ()
        if len(sizes) < 2:
            return self.chain.backward(rows) if self.chain else self._backward(rows, None)
        return self._accumulated(rows, list(sizes))

    def _accumulated(self, rows: Rows, sizes: list[int]) -> Tensor:
        """The gradient of the mean over all rows, in parts: the same as in one part."""
        total = torch.zeros((), device=self.device)
        for part in rows.split(sizes):
            total += self._backward(part, len(part) / len(rows))
        return total

    def _backward(self, rows: Rows, share: float | None) -> Tensor:
        loss = self._mixed_loss(rows) if self.mixup is not None else self._loss(rows)
        if share is not None:
            loss = loss * share
        self.backward(self.scaler.scale(loss) if self.scaler else loss)
        return loss.detach()

    def _loss(self, rows: Rows) -> Tensor:
        with self.autocast:
            outputs = self._through(self.network, rows.inputs) if self.recompute else self.forward(rows.inputs)
        return self.loss(outputs.float(), rows.targets, rows.weights)

    @torch.no_grad()
    def mean_loss(self, rows: Rows) -> float:
        """Of rows on the engine's device, without dropout, in parts of a gradient's rows or some more.

        Batch norms go by these parts.
        """
        self.network.eval()
        for module in self.network.modules():
            if isinstance(module, BATCH_NORMS) and FROZEN not in vars(module):
                module.train()
        num_parts = max(1, len(rows) // max(2, self.batching.batch_size))
        sizes = [len(part) for part in rows.targets.tensor_split(num_parts)]
        total = sum(len(part) * self._loss(part).item() for part in rows.split(sizes))
        set_to_learn(self.network)
        return total / len(rows)

    def _through(self, network: nn.Sequential, x: Tensor) -> Tensor:
        if self.recompute:
            *before, layers = network
            assert isinstance(layers, nn.Sequential)
            num_segments = max(1, math.isqrt(len(layers)))
            size = len(layers) // num_segments
            last = size * (num_segments - 1)  # where the segment begins whose activations are kept
            x = nn.Sequential(*before)(x)
            for start in range(0, last, max(1, size)):
                x = _recomputed(layers[start : start + size], x)
            out: Tensor = layers[last:](x)
        else:
            out = network(x)
        return out

    def _mixed_loss(self, rows: Rows) -> Tensor:
        """Rows are mixed after the `input` part, where category codes have become numbers."""
        assert self.mixup is not None
        share = float(torch._sample_dirichlet(torch.full((2,), self.mixup))[0])
        order = torch.randperm(len(rows), device=self.device)
        partners = rows.take(order, 0, len(rows), self.device)
        with self.autocast:
            x, rest = self.network[0](rows.inputs), self.network[1:]
            assert isinstance(rest, nn.Sequential)
            outputs = self._through(rest, torch.lerp(x[order], x, share))
        one = self.loss(outputs.float(), rows.targets, rows.weights)
        other = self.loss(outputs.float(), partners.targets, partners.weights)
        return share * one + (1 - share) * other


def _recomputed(segment: nn.Module, x: Tensor) -> Tensor:
    """Outputs of a segment that is computed again in the backward pass, in which its batch norms learn nothing."""
    out: Tensor = checkpoint(
        segment, x, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _statistics_kept(segment))
    )
    return out


@contextlib.contextmanager
def _statistics_kept(network: nn.Module) -> Iterator[None]:
    norms = [module for module in network.modules() if isinstance(module, BATCH_NORMS)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
