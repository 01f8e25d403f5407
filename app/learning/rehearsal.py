"""A gradient of tensors that have sizes and no memory: what a real one takes, known before anything is allocated.

The eager engine itself is run, so whatever a layer keeps for its backward pass is counted as torch keeps it, under any
precision, in parts, and with activations that are computed again. Shape suffixes: B batch, L length, F features.
"""

import math
import weakref
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from app.learning.allocator import MAX_BLOCK_BYTES
from app.learning.batches import Batching
from app.learning.losses import build_loss
from app.learning.modules import Recurrent
from app.learning.rows import Rows
from app.learning.steps import EagerSteps
from app.specs.training import TrainingSpec

aten = torch.ops.aten
KEPT_FREE_BYTES = 2 * MAX_BLOCK_BYTES  # what the heap keeps of what is free at its end
HEAP_SHARE = 1.25  # what pieces of the heap take of it, as those that are freed leave gaps
PICKED = {aten.embedding, aten.index_select, aten.index}  # these read as much as they give
ONLY_ALLOCATED = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}
ONLY_WRITTEN = {aten.zero_, aten.fill_, aten.copy_, aten.zeros_like, aten.ones_like, aten.full_like, aten.new_zeros}
PLACE_OPERATIONS = {nn.GRU: 30, nn.LSTM: 10}  # of a layer at a place, forward and backward
PARTS = 2  # of a step's gradient: the second one is added to the first, and so are all that follow


@dataclass(frozen=True)
class Rehearsal:
    """Of the gradient of one update.

    `peak_bytes`: the most that is alive at once of weights, gradients, rows, and all that lies between them.
    `flops`: of matrix products, convolutions and attention, forward and backward. `moved_bytes`: what all its
    `num_operations` read and write.
    """

    peak_bytes: int
    flops: float
    moved_bytes: float
    num_operations: float


def rehearse(
    spec: TrainingSpec, network: nn.Sequential, num_inputs: int, num_outputs: int, batching: Batching
) -> Rehearsal:
    """The gradient of a whole step of a network on the meta device, which stays as it is."""
    network, ledger = deepcopy(network).train(), Ledger()
    for module in network.modules():
        if isinstance(module, Recurrent):
            module.register_module("rnn", AllPlacesAtOnce(module.rnn, ledger))
    whole = min(batching.rows_per_step, batching.num_rows)
    num_rows = min(whole, PARTS * batching.batch_size)
    with FakeTensorMode(allow_non_fake_inputs=True), ledger:
        network.to_empty(device="cpu")
        for tensor in (*network.parameters(), *network.buffers()):
            ledger.add(tensor, share=1)
        classes = spec.loss.type == "cross_entropy"
        targets = torch.empty(num_rows, dtype=torch.int64) if classes else torch.empty(num_rows, num_outputs)
        engine = EagerSteps(
            network,
            build_loss(spec.loss),
            [],
            batching,
            max_grad_norm=None,
            precision=spec.precision,
            recompute=spec.activation_checkpointing,
        )
        engine.gradient(Rows(torch.empty(num_rows, num_inputs), targets))
    others = 4 * (num_inputs + num_outputs) * (whole - num_rows)
    times = whole / num_rows
    return Rehearsal(
        peak_bytes=ledger.peak + others,
        flops=ledger.flops * times,
        moved_bytes=ledger.moved_bytes * times,
        num_operations=ledger.num_operations * times,
    )


class Ledger(TorchDispatchMode):
    """Counts what operations do, and the memory of all tensors that they make, for as long as these live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.moved_bytes = self.num_operations = 0
        self._large = self._heap = 0  # what lives now, in pieces of the system's own and of the heap
        self._moments: list[tuple[int, int]] = [(0, 0)]
        self._counted: set[int] = set()

    @property
    def peak(self) -> int:
        """The most memory at any moment; the heap keeps some of what was freed for the next who needs it."""
        most = max(heap for _, heap in self._moments)
        return max(large + min(most, heap + KEPT_FREE_BYTES) for large, heap in self._moments)

    def __torch_dispatch__(
        self, function: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        if count := flop_registry.get(function.overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        made = [value for value in tree_iter(out) if isinstance(value, Tensor)]
        given = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
        moved = moved_bytes(function, given, made)
        self.moved_bytes += moved
        self.num_operations += moved > 0
        for tensor in made:
            self.add(tensor, share=HEAP_SHARE)
        if anew := laid_out_anew(function, args, made):
            large, heap = _pieces(anew)
            self._moments.append((self._large + large, self._heap + heap))
        return out

    def add(self, tensor: Tensor, *, share: float) -> None:
        """Pieces of the heap take `share` times their size of it."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._counted:
            self._counted.add(key)
            large, heap = _pieces([storage.nbytes()])
            heap = round(share * heap)
            self._change(large, heap)
            weakref.finalize(storage, self._forget, key, large, heap)

    def _forget(self, key: int, large: int, heap: int) -> None:
        self._counted.discard(key)
        self._change(-large, -heap)

    def _change(self, large: int, heap: int) -> None:
        self._large, self._heap = self._large + large, self._heap + heap
        self._moments.append((self._large, self._heap))


def _pieces(sizes: Sequence[int]) -> tuple[int, int]:
    """Bytes of those that are the system's own, and of those of the heap."""
    large = sum(size for size in sizes if size >= MAX_BLOCK_BYTES)
    return large, sum(sizes) - large


def moved_bytes(function: Any, given: Sequence[Tensor], made: Sequence[Tensor]) -> int:
    """What an operation reads of the tensors that it is given, and writes of those that it makes or changes."""
    storages = {tensor.untyped_storage()._cdata for tensor in given}
    looks_only = not function._schema.is_mutable and all(tensor.untyped_storage()._cdata in storages for tensor in made)
    if looks_only or function.overloadpacket in ONLY_ALLOCATED:
        return 0
    written = sum(map(_in_memory, made))
    if function.overloadpacket in PICKED:
        return 2 * written
    read = given[1:] if function.overloadpacket in ONLY_WRITTEN else given
    return written + sum(map(_in_memory, read))


def _in_memory(tensor: Tensor) -> int:
    """Bytes of a tensor, each counted once: one that was expanded has the same number at many places."""
    once = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return math.prod(once) * tensor.itemsize


def laid_out_anew(function: Any, args: tuple[Any, ...], made: Sequence[Tensor]) -> list[int]:
    """Sizes of what oneDNN's convolutions take beside what they are given and make, as they put it in another order.

    First the inputs, then the outputs; backward, inputs and gradient at once.
    """
    if function.overloadpacket is aten.convolution:
        return [max(args[0].nbytes, made[0].nbytes)]
    if function.overloadpacket is aten.convolution_backward:
        return [tensor.nbytes for tensor in args[:2]]
    return []


class AllPlacesAtOnce(nn.Module):
    """Takes what a GRU or LSTM takes, without a turn for each place. Its numbers mean nothing."""

    def __init__(self, rnn: nn.RNNBase, ledger: Ledger) -> None:
        super().__init__()
        self.ledger, self.place_operations = ledger, PLACE_OPERATIONS[type(rnn)]
        self.weights = nn.ParameterList(value for layer in rnn.all_weights for value in layer if value.ndim > 1)
        self.hidden_features, self.bidirectional = rnn.hidden_size, rnn.bidirectional

    def forward(self, x_BLF: Tensor) -> tuple[Tensor, Tensor]:
        pairs = list(zip(self.weights[::2], self.weights[1::2], strict=True))
        last: list[Tensor] = []
        step = 2 if self.bidirectional else 1
        for first in range(0, len(pairs), step):
            outs = [self._direction(x_BLF, *pair) for pair in pairs[first : first + step]]
            last += [out[:, -1] for out in outs]
            x_BLF = torch.cat(outs, dim=2)
        return x_BLF, torch.stack(last)

    def _direction(self, x_BLF: Tensor, from_input: Tensor, from_state: Tensor) -> Tensor:
        self.ledger.num_operations += self.place_operations * x_BLF.shape[1]
        gates = F.linear(x_BLF, from_input)
        kept = (gates + F.linear(gates[..., : self.hidden_features], from_state)).sigmoid()
        return kept[..., : self.hidden_features].tanh()
