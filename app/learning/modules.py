"""Modules that torch does not have. Shape suffixes: B batch, L length, D features of a place."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from app.learning.halves import has_units

Shape = tuple[int, ...]
"""The shape of one row, without the batch."""

HAS_BFLOAT16 = has_units("bfloat16", "cpu")  # asked here, as a rehearsal would take the question for an operation
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class Linear(nn.Linear):
    """A linear layer that remembers how its weight is to start."""

    def __init__(self, in_features: int, out_features: int, bias: bool, init: str | None) -> None:
        super().__init__(in_features, out_features, bias)
        self.init = init


class Residual(nn.Module):
    """`shortcut(x) + body(x)`."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.shortcut(x) + self.body(x)
        return out


class Parallel(nn.Module):
    """All branches of the same input, side by side or added up."""

    def __init__(self, branches: Sequence[nn.Module], merge: str) -> None:
        super().__init__()
        self.branches, self.merge = nn.ModuleList(branches), merge

    def forward(self, x: Tensor) -> Tensor:
        outs = [branch(x) for branch in self.branches]
        return torch.cat(outs, dim=1) if self.merge == "concatenate" else torch.stack(outs).sum(0)


class Function(nn.Module):
    """A module without parameters, from a function."""

    def __init__(self, function: Callable[[Tensor], Tensor], name: str) -> None:
        super().__init__()
        self.function, self.name = function, name

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return self.name


class WholeNumbers(nn.Embedding):
    """An embedding of floats that are whole numbers; those out of range, which only an ONNX file is given, are taken
    to the nearest in range.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.long().clamp(0, self.num_embeddings - 1))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.1)


class PositionalEmbedding(nn.Module):
    def __init__(self, shape_LD: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape_LD))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return x_BLD + self.weight


class Recurrent(nn.Module):
    """A GRU or LSTM `[B, L, D]`: all outputs, or the last layer's last state of each direction."""

    def __init__(self, rnn: nn.RNNBase, output: str) -> None:
        super().__init__()
        self.rnn, self.output = rnn, output

    def forward(self, x_BLD: Tensor) -> Tensor:
        if x_BLD.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            if dtype == torch.float16 or not HAS_BFLOAT16:
                x_BLD = x_BLD.to(dtype)  # else torch takes kernels that few processors have
        outputs, state = self.rnn(x_BLD)
        if self.output == "sequence":
            sequence: Tensor = outputs
            return sequence
        hidden = state[0] if isinstance(self.rnn, nn.LSTM) else state
        return torch.cat(tuple(hidden[-2:] if self.rnn.bidirectional else hidden[-1:]), dim=1)


class SelfAttention(nn.Module):
    def __init__(self, features: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(features, num_heads, dropout=dropout, batch_first=True)

    def forward(self, x_BLD: Tensor) -> Tensor:
        out: Tensor = self.attention(x_BLD, x_BLD, x_BLD, need_weights=False)[0]
        return out


def reshape(shape: Shape) -> nn.Module:
    return Function(lambda x: x.reshape(x.shape[0], *shape), f"reshape {list(shape)}")  # shape[0] may be symbolic
