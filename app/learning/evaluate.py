"""Forward passes without gradients, in batches that bound memory."""

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from app.learning.losses import LossFunction
from app.learning.metrics import METRICS, ClassMetrics
from app.learning.network import set_to_learn
from app.learning.rows import Rows
from app.learning.targets import Targets
from app.specs.table import Label

MAX_JUDGED = 2**20  # outputs that are judged at once: losses and metrics take several times their size for a moment
MAX_ACTIVATIONS = {"cpu": 2**20, "cuda": 2**24}
"""Numbers of the widest layer that one forward pass may hold."""
CACHED_ACTIVATIONS, LEAST_ROWS = 2**17, 2048
"""A processor is quickest where they stay in its cache, if that doesn't leave its matrices too few rows."""

_WIDTHS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def forward_all(network: nn.Module, inputs: Tensor, *, device: torch.device | None = None) -> Tensor:
    """Outputs `[N, O]` on the CPU for inputs `[N, F]`; the network is left in evaluation mode."""
    network.eval()
    with torch.inference_mode():
        size = rows_at_once(network, inputs, device or inputs.device)
        parts = [network(part.to(device) if device else part).float().cpu() for part in inputs.split(size)]
    return torch.cat(parts) if parts else torch.empty(0)


def rows_at_once(network: nn.Module, inputs: Tensor, device: torch.device) -> int:
    """Rows `[N, F]` that one forward pass takes on a device."""
    width = _WIDTHS.get(network)
    if width is None and not len(inputs):
        return 1
    if width is None:
        width = _WIDTHS[network] = _width(network, inputs[:1].to(device))
    most = max(1, MAX_ACTIVATIONS[device.type] // width)
    return min(most, max(LEAST_ROWS, CACHED_ACTIVATIONS // width)) if device.type == "cpu" else most


def _width(network: nn.Module, row: Tensor) -> int:
    """The most numbers that a layer makes of one row, which goes through the network to see it.

    A network's first forward pass is its owner's, before others share it, so nobody else meets the hooks.
    """
    widths = [row.numel()]

    def look(module: nn.Module, _inputs: Any, outputs: Any) -> None:
        output: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs  # others come with states
        widths.append(output.numel())
        if isinstance(module, nn.MultiheadAttention):  # each place looks at each
            widths.append(module.num_heads * output.shape[1] ** 2)

    hooks = [module.register_forward_hook(look) for module in network.modules()]
    try:
        network(row)
    finally:
        for hook in hooks:
            hook.remove()
    return max(1, *widths)


class Judgement:
    """The task's metrics of outputs that come part by part, in the order of `truth`."""

    def __init__(self, targets: Targets, truth: Tensor) -> None:
        self._metrics = METRICS[targets.signature.task]()
        self._targets, self._truth, self._begin = targets, truth, 0

    def add(self, outputs: Tensor) -> None:
        """Outputs `[n, O]` of the next rows."""
        end = self._begin + len(outputs)
        self._metrics.add(self._targets.activate(outputs).cpu(), self._truth[self._begin : end])
        self._begin = end

    def values(self) -> dict[str, float]:
        return self._metrics.values()

    def only_label(self) -> Label | None:
        """The label that all rows are taken for, though they have several."""
        only = self._metrics.only_class() if isinstance(self._metrics, ClassMetrics) else None
        return None if only is None else self._targets.classes[only]


@torch.no_grad()
def mean_loss(network: nn.Module, loss: LossFunction, rows: Rows, judgement: Judgement | None = None) -> float:
    """The loss over all rows, whose outputs `judgement` sees; puts the network back into the mode it was in."""
    training, device = network.training, next(network.parameters()).device
    network.eval()
    mean, total = 0.0, 0
    for outputs, targets, weights in _judged(network, rows, device):
        total += len(outputs)
        mean += (loss(outputs, targets, weights).item() - mean) * (len(outputs) / total)  # exact of one part
        if judgement is not None:
            judgement.add(outputs)
    if training:
        set_to_learn(network)
    return mean


def _judged(network: nn.Module, rows: Rows, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Outputs, targets and weights of the next rows: of as many as are `MAX_JUDGED` outputs, or a pass.

    Outputs go into one tensor: small ones that stay between the passes' large ones would leave gaps in the heap.
    """
    at_once = rows_at_once(network, rows.inputs, device)
    outputs, begin, end = torch.empty(0), 0, 0
    for inputs in rows.inputs.split(at_once):
        part = network(inputs.to(device)).float()
        rows.release()
        if begin == end:
            num_passes = -(-MAX_JUDGED // (part[0].numel() * at_once))
            outputs = part.new_empty(min(num_passes * at_once, len(rows) - begin), *part.shape[1:])
        outputs[end - begin : end - begin + len(part)] = part
        end += len(part)
        if end - begin == len(outputs):
            weights = rows.weights[begin:end].to(device) if rows.weights is not None else None
            yield outputs, rows.targets[begin:end].to(device), weights
            begin = end
