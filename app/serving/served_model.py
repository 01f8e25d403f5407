"""A version in memory, ready to answer."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app.errors import CorruptVersion, is_out_of_memory
from app.learning.devices import free_cards
from app.learning.evaluate import forward_all
from app.learning.losses import build_loss
from app.learning.metrics import measure
from app.learning.model import Model
from app.learning.rows import Rows
from app.serving.dense import Dense
from app.serving.signature import flags_of, unknown_rows
from app.storage.version import Version

Answer = dict[str, Any]
OBJECTS_BYTES = 2**16  # of a version, besides its tensors; a perceptron's are about 40 KiB
log = structlog.get_logger()
MAKERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


@dataclass(frozen=True, eq=False)
class ServedModel:
    name: str
    version: str
    model: Model
    num_bytes: int
    dense: Dense | None = None
    """Where there is one, small requests take it."""

    @property
    def held_bytes(self) -> int:
        """What it takes of memory: weights, and what stands around them, which of a small network is most of it."""
        return self.num_bytes + OBJECTS_BYTES

    @classmethod
    def load(cls, version: Version, device: str) -> "ServedModel":
        """Verify, map, and warm up, on the CPU where the device has no room for it.

        Raises:
            CorruptVersion
        """
        tensors = version.load_tensors()
        try:
            model = Model.load(tensors, version.config)
        except (LookupError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError) as error:
            raise CorruptVersion(
                f"config.json of version {version.version} of model {version.model!r} does not fit its weights: "
                f"{type(error).__name__}: {error}"
            ) from error
        dense = Dense.of(model)  # of weights on the host: a row or two are done there before a card has begun
        overwrite(model.network)
        try:
            _warm_up(model, device)
        except RuntimeError as error:
            if device == "cpu" or not is_out_of_memory(error):
                raise
            log.warning("no room on a card: a version is served on the CPU", model=version.model, detail=str(error))
            _warm_up(model, "cpu")
            free_cards()
        num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        return cls(version.model, version.version, model, num_bytes, dense)

    @property
    def device(self) -> str:
        return next(self.model.network.parameters()).device.type

    def answer(self, values: Tensor | NDArray[np.float64]) -> Answer:
        """What `/predict` says of values or probabilities `[N, ·]`: numbers, or labels in their own type.

        A row without probabilities has no label: None.
        """
        signature, values = self.model.signature, np.asarray(values)
        said: Answer = {"model": self.name, "version": self.version}
        if signature.task == "regression":
            return said | {"predictions": values[:, 0] if values.shape[1] == 1 else values}
        assert signature.classes is not None
        classes = list(signature.classes)
        if signature.task == "multilabel":
            flags = (column.tolist() for column in flags_of(signature, values))
            predictions: list[Any] = list(map(list, zip(*flags, strict=True)))
        else:
            predictions = [classes[index] for index in values.argmax(1).tolist()]
        for row in unknown_rows(values):
            predictions[row] = None
        return said | {"predictions": predictions, "classes": classes, "probabilities": values}

    def evaluate(self, rows: Rows, truth: Tensor) -> dict[str, Any]:
        """Loss (as in training) and the task's metrics (in the target's units) of encoded rows."""
        device = next(self.model.network.parameters()).device
        outputs = forward_all(self.model.network, rows.inputs, device=device)
        loss = build_loss(self.model.spec.loss)(outputs, rows.targets, rows.weights)
        values = self.model.targets.activate(outputs)
        return {
            "num_rows": len(rows),
            "loss": loss.item(),
            "metrics": measure(self.model.signature.task, values, truth),
        }


def _warm_up(model: Model, device: str) -> None:
    model.network.to(device)
    model.predict(torch.zeros(1, model.features.num_inputs))


def overwrite(network: nn.Module) -> None:
    """Let activations write their outputs over their inputs, where the layer before has made those for nobody else."""
    for sequence in network.modules():
        if isinstance(sequence, nn.Sequential):
            for before, after in pairwise(sequence):
                if isinstance(before, MAKERS) and "inplace" in vars(after):
                    vars(after)["inplace"] = True
