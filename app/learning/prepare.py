"""From a table to the rows that a run learns from and is judged by."""

from dataclasses import dataclass, field

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.errors import BadData
from app.learning.features import Features
from app.learning.steps import Rows
from app.learning.targets import Targets, class_weights
from app.specs.table import Signature, StoredData
from app.specs.training import TrainingSpec, ValidationFolds, ValidationFraction

SPLIT_STREAM = 1  # which of the seed's streams the split draws from


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


def prepare(
    spec: TrainingSpec, signature: Signature, frame: pl.DataFrame, other: pl.DataFrame | None, fold: int | None = None
) -> Prepared:
    """Split, fit features and targets on the training rows, encode all rows.

    Args:
        frame: the table's rows with all columns that the spec names.
        other: the rows of a validation dataset, if the spec names one.
        fold: which of the spec's folds is held out, from 0; None for none of them.

    Raises:
        BadData: nothing is left to learn from, or rows that the spec does not allow.
    """
    warnings: list[str] = []
    frame = _usable(spec, frame, warnings)
    train, held_out = _split(spec, signature, frame, fold) if other is None else (frame, _usable(spec, other, warnings))
    features = Features.fit(signature.inputs, train, spec.features)
    if held_out is not None:
        features.check(held_out)
    targets = Targets.fit(signature, spec, train, frame)
    judged = train if held_out is None else held_out
    return Prepared(
        features,
        targets,
        _encode(spec, features, targets, train),
        None if held_out is None else _encode(spec, features, targets, held_out),
        targets.truth(judged),
        targets.truth(train),
        warnings,
    )


def _usable(spec: TrainingSpec, frame: pl.DataFrame, warnings: list[str]) -> pl.DataFrame:
    """Rows whose targets and weight are there."""
    assert isinstance(spec.data, StoredData)
    needed = [*spec.data.targets, *([spec.data.sample_weight] if spec.data.sample_weight else [])]
    kept = frame.drop_nulls(needed)
    if kept.height < frame.height:
        warnings.append(
            f"{frame.height - kept.height} of {frame.height} rows have no {' or '.join(needed)} and are left out"
        )
    if kept.is_empty():
        raise BadData(f"no row has {' and '.join(needed)}")
    return kept


def _split(
    spec: TrainingSpec, signature: Signature, frame: pl.DataFrame, fold: int | None
) -> tuple[pl.DataFrame, pl.DataFrame | None]:
    labels = None
    if signature.task in ("binary", "multiclass"):
        labels = frame[signature.targets[0].name].rank("dense").to_numpy().astype(np.int64)
    if isinstance(spec.validation, ValidationFolds) and fold is not None:
        chosen = folds_of_rows(frame.height, spec.validation.folds, labels, spec.seed) == fold
    elif isinstance(spec.validation, ValidationFraction) and frame.height > 1:
        chosen = held_out_rows(frame.height, spec.validation.fraction, labels, spec.seed)
    else:
        return frame, None
    mask = pl.Series(chosen)
    return frame.filter(~mask), frame.filter(mask)


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


def _encode(spec: TrainingSpec, features: Features, targets: Targets, frame: pl.DataFrame) -> Rows:
    return Rows(features.transform(frame), targets.transform(frame), _weights(spec, targets, frame))


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
