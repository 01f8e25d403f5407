"""A gradient of tensors that have sizes and no memory: what a real one takes, known before anything is allocated.

The eager engine itself is run, so whatever a layer keeps for its backward pass is counted as torch keeps it, under any
precision, in parts, and with activations that are computed again. Shape suffixes: B batch, L length, F features.
"""

import weakref
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

from app.learning.batches import Batching
from app.learning.layers import Recurrent
from app.learning.losses import build_loss
from app.learning.rows import Rows
from app.learning.steps import EagerSteps
from app.specs.training import TrainingSpec

HEAP_BYTES = 32 * 2**20  # a larger piece is the system's own and goes back to it (glibc's M_MMAP_THRESHOLD at most)
HEAP_SHARE = 1.25  # what pieces of the heap take of it, as those that are freed leave gaps
CONVOLUTIONS = (torch.ops.aten.convolution, torch.ops.aten.convolution_backward)  # which lay out one tensor anew
PARTS = 2  # of a step's gradient: the second one is added to the first, and so are all that follow


@dataclass(frozen=True)
class Rehearsal:
    """Of the gradient of one update.

    `peak_bytes`: the most that is alive at once of weights, gradients, rows, and all that lies between them.
    `flops`: of matrix products, convolutions and attention, forward and backward.
    """

    peak_bytes: int
    flops: float


def rehearse(
    spec: TrainingSpec, network: nn.Sequential, num_inputs: int, num_outputs: int, batching: Batching
) -> Rehearsal:
    """The gradient of a whole step of a network on the meta device, which stays as it is."""
    network, ledger = deepcopy(network).train(), Ledger()
    for module in network.modules():
        if isinstance(module, Recurrent):
            module.register_module("rnn", AllPlacesAtOnce(module.rnn))
    whole = min(batching.rows_per_step, batching.num_rows)
    num_rows = min(whole, PARTS * batching.batch_size)
    with FakeTensorMode(allow_non_fake_inputs=True), ledger:
        network.to_empty(device="cpu")
        for tensor in (*network.parameters(), *network.buffers()):
            ledger.add(tensor, tensor.nbytes)
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
    return Rehearsal(ledger.peak + others, ledger.flops * whole / num_rows)


class Ledger(TorchDispatchMode):
    """Counts the memory of all tensors that operations make, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.live = self.peak = 0
        self._counted: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        if count := flop_registry.get(function.overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        made = [value for value in tree_iter(out) if isinstance(value, Tensor)]
        for tensor in made:
            num_bytes = tensor.untyped_storage().nbytes()
            self.add(tensor, num_bytes if num_bytes > HEAP_BYTES else round(HEAP_SHARE * num_bytes))
        if function.overloadpacket in CONVOLUTIONS:
            self.peak = max(self.peak, self.live + max(tensor.nbytes for tensor in made))
        return out

    def add(self, tensor: Tensor, num_bytes: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._counted:
            self._counted.add(key)
            self.live += num_bytes
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key, num_bytes)

    def _forget(self, key: int, num_bytes: int) -> None:
        self._counted.discard(key)
        self.live -= num_bytes


class AllPlacesAtOnce(nn.Module):
    """Takes what a GRU or LSTM takes, without a turn for each place. Its numbers mean nothing."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
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
        gates = F.linear(x_BLF, from_input)
        kept = (gates + F.linear(gates[..., : self.hidden_features], from_state)).sigmoid()
        return kept[..., : self.hidden_features].tanh()
