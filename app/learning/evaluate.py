"""Forward passes without gradients, in batches that bound memory."""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from app.learning.losses import LossFunction
from app.learning.rows import Rows

MAX_ACTIVATIONS = {"cpu": 2**20, "cuda": 2**24}
"""Numbers of the widest layer that one forward pass may hold; a processor is quickest where they stay in its cache."""

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
    return max(1, MAX_ACTIVATIONS[device.type] // width)


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


@torch.no_grad()
def mean_loss(network: nn.Module, loss: LossFunction, rows: Rows) -> tuple[float, Tensor]:
    """The loss over all rows and the outputs `[N, O]`; puts the network back into the mode it was in."""
    training, device = network.training, next(network.parameters()).device
    network.eval()
    outputs = []
    for part in rows.inputs.split(rows_at_once(network, rows.inputs, device)):
        outputs.append(network(part.to(device)))
        rows.release()
    everything = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    weights = rows.weights.to(device) if rows.weights is not None else None
    value = loss(everything.float(), rows.targets.to(device), weights).item()
    network.train(training)
    return value, everything
