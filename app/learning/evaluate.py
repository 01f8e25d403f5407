"""Forward passes without gradients, in batches that bound memory."""

import torch
from torch import Tensor, nn

from app.learning.losses import LossFunction
from app.learning.rows import Rows

MAX_ACTIVATIONS = 2**24  # numbers of the widest layer that one forward pass may hold


def forward_all(network: nn.Module, inputs: Tensor, *, device: torch.device | None = None) -> Tensor:
    """Outputs `[N, O]` on the CPU for inputs `[N, F]`; the network is left in evaluation mode."""
    network.eval()
    with torch.inference_mode():
        parts = [
            network(part.to(device) if device else part).float().cpu() for part in inputs.split(rows_at_once(network))
        ]
    return torch.cat(parts) if parts else torch.empty(0)


def rows_at_once(network: nn.Module) -> int:
    widest = max((parameter.shape[0] for parameter in network.parameters() if parameter.ndim > 1), default=1)
    return max(1, MAX_ACTIVATIONS // widest)


@torch.no_grad()
def mean_loss(network: nn.Module, loss: LossFunction, rows: Rows) -> tuple[float, Tensor]:
    """The loss over all rows and the outputs `[N, O]`; puts the network back into the mode it was in."""
    training, device = network.training, next(network.parameters()).device
    network.eval()
    outputs = []
    for part in rows.inputs.split(rows_at_once(network)):
        outputs.append(network(part.to(device)))
        rows.release()
    everything = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    weights = rows.weights.to(device) if rows.weights is not None else None
    value = loss(everything.float(), rows.targets.to(device), weights).item()
    network.train(training)
    return value, everything
