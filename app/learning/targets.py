"""Target columns to tensors, and outputs back to predictions in the user's own units and labels.

Shape suffixes: N rows, T targets, L classes or labels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.errors import BadData
from app.learning.losses import LINKS
from app.specs.table import Label, Signature
from app.specs.training import TrainingSpec


@dataclass
class Targets:
    """Fitted targets: `mean`/`std` `[T]` of a standardised regression, or the `classes` in the order of the outputs."""

    signature: Signature
    loss: str
    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @classmethod
    def fit(cls, signature: Signature, spec: TrainingSpec, train: pl.DataFrame, everything: pl.DataFrame) -> "Targets":
        """Classes are those of all rows; means and deviations those of the training rows.

        Raises:
            BadData: a single class.
        """
        names = [column.name for column in signature.targets]
        found = cls(signature, spec.loss.type, np.zeros(len(names)), np.ones(len(names)))
        if signature.task in ("binary", "multiclass"):
            classes = tuple(everything[names[0]].unique().sort().to_list())
            if len(classes) < 2:
                raise BadData(f"all rows that can be used have the same label in {names[0]!r}: {classes[0]!r}")
            found.signature = signature.model_copy(update={"classes": classes})
        elif signature.task == "multilabel":
            found.signature = signature.model_copy(update={"classes": tuple(names)})
        elif spec.features and spec.features.standardize and spec.loss.type != "poisson_nll":
            values = found.values(train)
            std = values.std(0)
            found.mean, found.std = (
                values.mean(0),
                np.where(std > 1e-12 * np.maximum(1, np.abs(values.mean(0))), std, 1.0),
            )
        return found

    @property
    def classes(self) -> tuple[Label, ...]:
        assert self.signature.classes is not None
        return self.signature.classes

    @property
    def num_outputs(self) -> int:
        """Numbers that the network gives for a row: one per class for cross-entropy, else one per target."""
        return len(self.classes) if self.loss == "cross_entropy" else len(self.signature.targets)

    def transform(self, frame: pl.DataFrame) -> Tensor:
        """What the loss compares outputs with: `[N, T]` floats, or `[N]` class numbers for cross-entropy.

        Raises:
            BadData: a label that no training row had, or a rate below zero.
        """
        if self.signature.task in ("binary", "multiclass"):
            codes = self.codes(frame)
            return codes if self.loss == "cross_entropy" else codes.float()[:, None]
        values = self.values(frame)
        if self.loss == "poisson_nll" and (values < 0).any():
            raise BadData("poisson_nll needs targets that are not negative")
        return torch.from_numpy(((values - self.mean) / self.std).astype(np.float32))

    def values(self, frame: pl.DataFrame) -> NDArray[np.float64]:
        """Targets `[N, T]` in their own units; flags as 0 and 1."""
        return np.column_stack([frame[column.name].cast(pl.Float64).to_numpy() for column in self.signature.targets])

    def codes(self, frame: pl.DataFrame) -> Tensor:
        """Class numbers `[N]` of a single target, whatever type its column has here.

        Raises:
            BadData: a label that is no class.
        """
        labels = frame[self.signature.targets[0].name]
        known = {_as_key(label): code for code, label in enumerate(self.classes)}
        given = labels.unique(maintain_order=True)
        found = [known.get(_as_key(label), -1) for label in given]
        if -1 in found:
            unseen = given[found.index(-1)]
            raise BadData(f"the label {unseen!r} is none of the {len(known)} classes that the model knows")
        codes = labels.replace_strict(given, pl.Series(found, dtype=pl.Int64)).cast(pl.Int64)
        return torch.from_numpy(codes.to_numpy().copy())

    def truth(self, frame: pl.DataFrame) -> Tensor:
        """What metrics compare predictions with: values `[N, T]`, class numbers `[N]` or flags `[N, L]`."""
        by_class = self.signature.task in ("binary", "multiclass")
        return self.codes(frame) if by_class else torch.from_numpy(self.values(frame))

    def activate(self, outputs: Tensor) -> Tensor:
        """Outputs `[N, O]` to values in the target's units `[N, T]`, or to probabilities `[N, L]`."""
        link = LINKS.get(self.loss)
        values = link(outputs.double()) if link else outputs.double()
        if self.signature.task == "regression":
            return values * torch.from_numpy(self.std).to(values.device) + torch.from_numpy(self.mean).to(values.device)
        if self.signature.task == "binary" and values.shape[1] == 1:
            return torch.cat([1 - values, values], dim=1)
        return values

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"targets.mean": torch.from_numpy(self.mean), "targets.std": torch.from_numpy(self.std)}, {
            "loss": self.loss
        }

    @classmethod
    def load(cls, tensors: dict[str, Tensor], config: dict[str, Any], signature: Signature) -> "Targets":
        return cls(signature, config["loss"], tensors["targets.mean"].numpy(), tensors["targets.std"].numpy())


def class_weights(spec: Any, codes: Tensor, classes: tuple[Label, ...]) -> Tensor:
    """A weight per row `[N]` from `loss.class_weight`.

    Raises:
        BadData: a weight for a label that is no class.
    """
    if spec.class_weight == "balanced":
        counts = torch.bincount(codes, minlength=len(classes)).clamp_min(1)
        per_class = len(codes) / (len(classes) * counts.double())
    else:
        names = [_as_key(label) for label in classes]
        if unknown := [key for key in spec.class_weight if key not in names]:
            raise BadData(
                f"loss.class_weight has {unknown[0]!r}, which is no class; the classes are {', '.join(names[:20])}"
            )
        per_class = torch.tensor([spec.class_weight.get(name, 1.0) for name in names], dtype=torch.float64)
    return per_class[codes].float()


def class_chances(codes: Tensor) -> Tensor:
    """A chance per row `[N]` that makes all classes as likely to be drawn."""
    return 1.0 / torch.bincount(codes).double()[codes]


def _as_key(label: Label) -> str:
    """A label as a JSON key; 2 and 2.0 are the same."""
    if isinstance(label, bool):
        return str(label).lower()
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)
