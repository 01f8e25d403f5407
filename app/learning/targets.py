"""Target columns to tensors, and outputs back to predictions in the user's own units and labels.

Shape suffixes: N rows, T targets, L classes or labels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.errors import BadData
from app.learning.features import TOO_LARGE, Moments
from app.learning.losses import LINKS
from app.specs.sentences import some_of
from app.specs.table import Label, Signature, as_key
from app.specs.training import TrainingSpec

ROWS_AT_ONCE = 2**18


@dataclass
class Targets:
    """Fitted targets: `mean`/`std` `[T]` of a standardised regression, or the `classes` in the order of the outputs.

    Of rates, which have no place below zero, `std` is what stands for one: the mean rate.
    """

    signature: Signature
    loss: str
    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @classmethod
    def fit(
        cls, signature: Signature, spec: TrainingSpec, train: NDArray[Any], classes: tuple[Label, ...] | None
    ) -> "Targets":
        """Of the training rows' truth; `classes` are those of all rows, None where the task has none.

        Raises:
            BadData: targets with a deviation beyond float64.
        """
        names = [column.name for column in signature.targets]
        found = cls(signature, spec.loss.type, np.zeros(len(names)), np.ones(len(names)))
        if classes is not None:
            found.signature = signature.model_copy(update={"classes": classes})
        elif signature.task == "multilabel":
            found.signature = signature.model_copy(update={"classes": tuple(names)})
        elif spec.features and spec.features.standardize:
            moments = Moments()
            for part in parts_of(train):
                moments.add(part)
            if found.loss == "poisson_nll":
                found.std = np.where(moments.mean > 0, moments.mean, 1.0)
            else:
                found.mean, found.std = moments.mean, moments.std()
            if not np.isfinite(found.mean + found.std).all():
                raise BadData(f"the targets are {TOO_LARGE}")
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
        """As `seen`, of a frame's targets.

        Raises:
            BadData: a label that no training row had, or a rate below zero.
        """
        return self.seen(self.truth(frame).numpy())

    def seen(self, truth: NDArray[Any]) -> Tensor:
        """What the loss compares outputs with: `[N, T]` floats, or `[N]` class numbers for cross-entropy.

        Raises:
            BadData: a rate below zero.
        """
        if self.signature.task in ("binary", "multiclass"):
            by_number = self.loss == "cross_entropy"
            return torch.from_numpy(truth.astype(np.int64) if by_number else truth.astype(np.float32)[:, None])
        if self.loss == "poisson_nll" and (truth < 0).any():
            raise BadData("poisson_nll needs targets that are not negative")
        seen = np.empty(truth.shape, np.float32)
        for part, room in zip(parts_of(truth), parts_of(seen), strict=True):
            room[:] = (part - self.mean) / self.std
        return torch.from_numpy(seen)

    def codes(self, frame: pl.DataFrame) -> Tensor:
        """Class numbers `[N]` of a single target, whatever type its column has here.

        Raises:
            BadData: a label that is no class.
        """
        labels = frame[self.signature.targets[0].name]
        known = {as_key(label): code for code, label in enumerate(self.classes)}
        given = labels.unique(maintain_order=True)
        found = [known.get(as_key(label), -1) for label in given]
        if -1 in found:
            unseen = given[found.index(-1)]
            classes = some_of([repr(label) for label in self.classes])
            raise BadData(f"the label {unseen!r} is none of the {len(known)} classes that the model knows: {classes}")
        codes = labels.replace_strict(given, pl.Series(found, dtype=pl.Int64)).cast(pl.Int64)
        return torch.from_numpy(codes.to_numpy().copy())

    def truth(self, frame: pl.DataFrame) -> Tensor:
        """What metrics compare predictions with: values `[N, T]`, class numbers `[N]` or flags `[N, L]`."""
        by_class = self.signature.task in ("binary", "multiclass")
        return self.codes(frame) if by_class else torch.from_numpy(values_of(self.signature, frame))

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


class Labels:
    """Class numbers of a column that comes part by part, before all of its labels are known."""

    def __init__(self) -> None:
        self._numbers: dict[Label, int] = {}

    def add(self, labels: pl.Series) -> NDArray[np.int32]:
        """The next rows' labels as numbers that will be the classes' places in the order in which they came."""
        given = labels.unique(maintain_order=True)
        numbers = [self._numbers.setdefault(label, len(self._numbers)) for label in given]
        return labels.replace_strict(given, pl.Series(numbers, dtype=pl.Int32)).cast(pl.Int32).to_numpy()

    def settle(self, parts: list[NDArray[Any]]) -> tuple[tuple[Label, ...], NDArray[Any]]:
        """The classes, sorted, and the class number of each row `[N]`, in the least bytes that hold it."""
        came = list(self._numbers)
        order = pl.Series(came).arg_sort().to_list()
        places = np.empty(len(came), np.min_scalar_type(-len(came)))
        places[order] = np.arange(len(came))
        return tuple(came[place] for place in order), joined([places[part] for part in parts])


def values_of(signature: Signature, frame: pl.DataFrame) -> NDArray[np.float64]:
    """Targets `[N, T]` in their own units; flags as 0 and 1."""
    return np.column_stack([frame[column.name].cast(pl.Float64).to_numpy() for column in signature.targets])


def parts_of(rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Views of so many rows each that what is computed of one takes little memory."""
    for begin in range(0, len(rows), ROWS_AT_ONCE):
        yield rows[begin : begin + ROWS_AT_ONCE]


def joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Parts one below the other; each goes out of the list, and of memory, as soon as it is copied."""
    rows = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    parts.reverse()
    begin = 0
    while parts:
        part = parts.pop()
        rows[begin : begin + len(part)] = part
        begin += len(part)
    return rows


def row_weights(loss: Any, targets: Targets, truth: NDArray[Any], weights: NDArray[np.float32] | None) -> Tensor | None:
    """Weights `[N]` of which the mean is 1: those of rows times those of their classes."""
    if getattr(loss, "class_weight", None) is not None:
        by_class = class_weights(loss, truth, targets.classes)
        weights = by_class if weights is None else weights * by_class
    if weights is None:
        return None
    return torch.from_numpy(np.divide(weights, weights.mean(dtype=np.float64), dtype=np.float32))


def class_weights(spec: Any, codes: NDArray[Any], classes: tuple[Label, ...]) -> NDArray[np.float32]:
    """A weight per row `[N]` from `loss.class_weight`.

    Raises:
        BadData: a weight for a label that is no class.
    """
    if spec.class_weight == "balanced":
        counts = np.maximum(1, count_classes(codes, len(classes)))
        per_class = len(codes) / (len(classes) * counts.astype(np.float64))
    else:
        names = [as_key(label) for label in classes]
        if unknown := [key for key in spec.class_weight if key not in names]:
            raise BadData(f"loss.class_weight has {unknown[0]!r}, which is no class; the classes are {some_of(names)}")
        per_class = np.array([spec.class_weight.get(name, 1.0) for name in names])
    weights: NDArray[np.float32] = per_class.astype(np.float32)[codes]
    return weights


def count_classes(codes: NDArray[Any], num_classes: int) -> NDArray[np.int64]:
    """How many rows each class has `[L]`."""
    counts = np.zeros(num_classes, np.int64)
    for part in parts_of(codes):
        counts += np.bincount(part, minlength=num_classes)
    return counts


def class_chances(codes: Tensor) -> Tensor:
    """A chance per row `[N]` that makes all classes as likely to be drawn."""
    return 1.0 / torch.bincount(codes).double()[codes]
