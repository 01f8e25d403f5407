"""From a table to the rows that a run learns from and is judged by."""

import mmap
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.errors import BadData
from app.learning.features import Features
from app.learning.rows import Rows
from app.learning.targets import Targets, class_weights
from app.specs.table import Signature, StoredData
from app.specs.training import TrainingSpec, ValidationFolds, ValidationFraction

SPLIT_STREAM = 1  # which of the seed's streams the split draws from


Frames = Iterable[pl.DataFrame]
"""A table in parts, which can be gone through more than once: one part, or many that never are in memory together."""

Collect = Callable[[Iterable[Tensor], tuple[int, int]], tuple[Tensor, mmap.mmap | None]]
"""Puts encoded parts one below the other, to `[N, F]`, in memory or in a mapped file."""


@dataclass
class Prepared:
    """`truth` is in the metrics' terms, of the validation rows where there are some, else of the training rows.

    `train_truth` is that of the training rows.
    """

    features: Features
    targets: Targets
    train: Rows
    validation: Rows | None
    truth: Tensor
    train_truth: Tensor
    warnings: list[str] = field(default_factory=list)


class Part:
    """Some of a table's rows: those of `mask` `[all rows]`. `known` are their targets and weights, always in memory."""

    def __init__(self, frames: Frames, known: pl.DataFrame, mask: NDArray[np.bool_]) -> None:
        self.frames, self.mask = frames, mask
        self.known = known.filter(pl.Series(mask))

    def __iter__(self) -> Iterator[pl.DataFrame]:
        begin = 0
        for frame in self.frames:
            mask = self.mask[begin : begin + frame.height]
            begin += frame.height
            yield frame if mask.all() else frame.filter(pl.Series(mask))

    def __len__(self) -> int:
        return self.known.height


def in_memory(parts: Iterable[Tensor], shape: tuple[int, int]) -> tuple[Tensor, None]:
    rows, begin = torch.empty(shape), 0
    for part in parts:
        rows[begin : begin + len(part)] = part
        begin += len(part)
    return rows, None


def prepare(
    spec: TrainingSpec,
    signature: Signature,
    table: Frames,
    other: Frames | None,
    fold: int | None = None,
    collect: Collect = in_memory,
) -> Prepared:
    """Split, fit features and targets on the training rows, encode all rows.

    Args:
        table: the rows with all columns that the spec names.
        other: the rows of a validation dataset, if the spec names one.
        fold: which of the spec's folds is held out, from 0; None for none of them.
        collect: where encoded rows go.

    Raises:
        BadData: nothing is left to learn from, or rows that the spec does not allow.
    """
    warnings: list[str] = []
    everything = _usable(spec, table, warnings)
    train, held_out = _split(spec, signature, everything, fold)
    if other is not None:
        held_out = _usable(spec, other, warnings)
    features = Features.fit(signature.inputs, train, spec.features)
    for frame in held_out or ():
        features.check(frame)
    targets = Targets.fit(signature, spec, train.known, everything.known)
    return Prepared(
        features,
        targets,
        _encode(spec, features, targets, train, collect),
        None if held_out is None else _encode(spec, features, targets, held_out, collect),
        targets.truth((held_out or train).known),
        targets.truth(train.known),
        warnings,
    )


def _usable(spec: TrainingSpec, frames: Frames, warnings: list[str]) -> Part:
    """Rows whose targets and weight are there."""
    assert isinstance(spec.data, StoredData)
    needed = [*spec.data.targets, *([spec.data.sample_weight] if spec.data.sample_weight else [])]
    known = pl.concat([frame.select(needed) for frame in frames])
    part = Part(frames, known, known.select(pl.all_horizontal(pl.all().is_not_null())).to_series().to_numpy())
    if len(part) < known.height:
        warnings.append(
            f"{known.height - len(part)} of {known.height} rows have no {' or '.join(needed)} and are left out"
        )
    if not len(part):
        raise BadData(f"no row has {' and '.join(needed)}")
    return part


def _split(spec: TrainingSpec, signature: Signature, rows: Part, fold: int | None) -> tuple[Part, Part | None]:
    labels = None
    if signature.task in ("binary", "multiclass"):
        labels = rows.known[signature.targets[0].name].rank("dense").to_numpy().astype(np.int64)
    if isinstance(spec.validation, ValidationFolds) and fold is not None:
        chosen = folds_of_rows(len(rows), spec.validation.folds, labels, spec.seed) == fold
    elif isinstance(spec.validation, ValidationFraction) and len(rows) > 1:
        chosen = held_out_rows(len(rows), spec.validation.fraction, labels, spec.seed)
    else:
        return rows, None
    return _some(rows, ~chosen), _some(rows, chosen)


def _some(rows: Part, chosen: NDArray[np.bool_]) -> Part:
    """Some of a part's rows; `chosen` is a mask over these."""
    mask = np.zeros_like(rows.mask)
    mask[np.flatnonzero(rows.mask)[chosen]] = True
    part = copy(rows)
    part.mask, part.known = mask, rows.known.filter(pl.Series(chosen))
    return part


def folds_of_rows(num_rows: int, num_folds: int, labels: NDArray[np.int64] | None, seed: int) -> NDArray[np.int64]:
    """The fold of each row `[N]`: of equal sizes but for one row, and in every class of equal shares.

    Raises:
        BadData: fewer rows than folds.
    """
    if num_rows < num_folds:
        raise BadData(f"{num_rows} rows can't be divided into {num_folds} folds")
    order = np.random.default_rng([seed, SPLIT_STREAM]).permutation(num_rows)
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
    folds = np.empty(num_rows, dtype=np.int64)
    folds[order] = np.arange(num_rows) % num_folds
    return folds


def held_out_rows(num_rows: int, fraction: float, labels: NDArray[np.int64] | None, seed: int) -> NDArray[np.bool_]:
    """A mask `[N]` with `fraction` of the rows (at least one, never all), in every class its share."""
    shuffled = np.random.default_rng([seed, SPLIT_STREAM]).permutation(num_rows)
    if labels is not None:
        by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
        _, counts = np.unique(labels, return_counts=True)
        rank = (np.concatenate([np.arange(count) for count in counts]) + 0.5) / np.repeat(counts, counts)
        shuffled = by_label[np.argsort(rank, kind="stable")]
    mask = np.zeros(num_rows, dtype=bool)
    mask[shuffled[: min(num_rows - 1, max(1, round(num_rows * fraction)))]] = True
    return mask


def _encode(spec: TrainingSpec, features: Features, targets: Targets, part: Part, collect: Collect) -> Rows:
    inputs, mapping = collect(map(features.transform, part), (len(part), features.num_inputs))
    return Rows(inputs, targets.transform(part.known), _weights(spec, targets, part.known), mapping)


def _weights(spec: TrainingSpec, targets: Targets, frame: pl.DataFrame) -> Tensor | None:
    assert isinstance(spec.data, StoredData)
    weights = None
    if spec.data.sample_weight:
        values = frame[spec.data.sample_weight].cast(pl.Float32).to_numpy().copy()
        if not np.isfinite(values).all() or (values < 0).any() or values.sum() == 0:
            raise BadData(
                f"sample weights in {spec.data.sample_weight!r} must be finite, not negative, and not all zero"
            )
        weights = torch.from_numpy(values)
    if getattr(spec.loss, "class_weight", None) is not None:
        by_class = class_weights(spec.loss, targets.codes(frame), targets.classes)
        weights = by_class if weights is None else weights * by_class
    return weights
