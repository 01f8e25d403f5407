"""Small multi-layer perceptrons of plain numbers, for requests of a row or two.

There it is the number of calls that costs, not the arithmetic: NumPy's take half as long as torch's, and the values are
the same up to the rounding of float32. Shape suffixes: N rows, K numbers, O outputs.
"""

import struct
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from app.learning.features import Features, InputColumns
from app.learning.losses import LINKS
from app.learning.model import Model

MAX_PARAMETERS = 2**18  # of a larger network the arithmetic does count

Floats = NDArray[Any]
Values = NDArray[np.float64]
Step = Callable[[Floats], Floats]


class Dense:
    """Made by `of`. Used by one thread at a time."""

    def __init__(self, model: Model, steps: list[Step]) -> None:
        features = model.features
        self._mean = as_row(features.mean if features.standardizes else np.zeros(1))
        self._std = as_row(features.std if features.standardizes else np.ones(1))
        self._width = len(features.columns)
        self._row_bytes = 8 * self._width
        self._pack = struct.Struct(f"{self._width}d").pack
        self._quietly = copy_context()  # costs less than np.errstate each time
        self._quietly.run(np.seterr, over="ignore", invalid="ignore")  # beyond float32 is infinity; its answer is null
        self._steps, self._activate = steps, _activation(model)

    @classmethod
    def of(cls, model: Model) -> "Dense | None":
        """None where the model takes more than plain numbers, or its network is another or a large one."""
        parameters = list(model.network.parameters())
        if not _plain(model.features) or sum(tensor.numel() for tensor in parameters) > MAX_PARAMETERS:
            return None
        if any(tensor.device.type != "cpu" or tensor.dtype != torch.float32 for tensor in parameters):
            return None
        steps = [step_of(module) for module in _leaves(model.network)]
        return None if None in steps else cls(model, [step for step in steps if step is not None])

    def pack(self, rows: list[Any]) -> bytes | None:
        """Rows as JSON had them, or None where they are not all lists of as many numbers as there are columns."""
        try:
            return b"".join([self._pack(*row) for row in rows])
        except (struct.error, TypeError, OverflowError):
            return None

    def predict(self, packed: bytes) -> Values:
        """Values or probabilities `[N, ·]`, as `Model.predict` gives them."""
        rows_NK = np.ndarray((len(packed) // self._row_bytes, self._width), buffer=packed)
        return self._quietly.run(self._forward, rows_NK)

    def _forward(self, rows_NK: Floats) -> Values:
        x: Floats = ((rows_NK - self._mean) / self._std).astype(np.float32)
        for step in self._steps:
            x = step(x)
        return self._activate(x)


def as_row(constants: Any) -> Floats:
    """`[1, ·]`: to a single row, NumPy adds one of the same shape in half the time."""
    return np.reshape(constants, (1, -1))


def _plain(features: Features) -> bool:
    return not features.flagged and all(column.kind == "numeric" for column in features.columns)


def _leaves(network: nn.Module) -> list[nn.Module]:
    """The modules that a batch passes one after the other; nested sequences are opened."""
    if isinstance(network, nn.Sequential):
        return [leaf for module in network for leaf in _leaves(module)]
    return [network]


def step_of(module: nn.Module) -> Step | None:
    """What a module does, or None where that isn't among what is done here."""
    if isinstance(module, nn.Linear):
        return _linear(module)
    if isinstance(module, InputColumns) and module.sizes:
        return None
    return STEPS.get(type(module))


def _linear(module: nn.Linear) -> Step:
    weight_IO = module.weight.detach().numpy().T
    if module.bias is None:
        return lambda x: x.dot(weight_IO)
    bias_1O = as_row(module.bias.detach().numpy())

    def apply(x: Floats) -> Floats:
        y: Floats = x.dot(weight_IO)
        y += bias_1O
        return y

    return apply


_ZERO = np.zeros((), np.float32)  # an array, which takes half as long as a number
STEPS: dict[type[nn.Module], Step] = {
    InputColumns: lambda x: x,
    nn.Identity: lambda x: x,
    nn.Dropout: lambda x: x,
    nn.ReLU: lambda x: np.maximum(x, _ZERO),
    nn.Tanh: np.tanh,
    nn.Sigmoid: lambda x: 1 / (1 + np.exp(-x)),
    nn.SiLU: lambda x: x / (1 + np.exp(-x)),
}
"""By type of module, besides linear layers."""


def _activation(model: Model) -> Callable[[Floats], Values]:
    """As `Targets.activate`."""
    targets = model.targets
    if targets.loss in LINKS:
        return lambda outputs_NO: targets.activate(torch.from_numpy(outputs_NO)).numpy()
    std_1O, mean_1O = as_row(targets.std), as_row(targets.mean)
    return lambda outputs_NO: outputs_NO.astype(np.float64) * std_1O + mean_1O
