"""From a table to the rows that a run learns from and is judged by."""

import mmap
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.errors import BadData
from app.learning.features import Features
from app.learning.metrics import MIN_JUDGED
from app.learning.rows import MappedFile, Rows
from app.learning.targets import Labels, Targets, count_classes, joined, parts_of, row_weights, values_of
from app.specs.resolve_network import is_laid_out
from app.specs.sentences import some_of
from app.specs.table import Label, Signature, StoredData
from app.specs.training import TrainingSpec, ValidationFolds, ValidationFraction

MAX_NAMED = 10  # of what is new
ALIKE = {"roc_auc": "are all of one class", "r2": "have only one value of a target"}  # metrics that tell rows apart
FAR = 10  # deviations
SPLIT_STREAM = 1  # which of the seed's streams the split draws from


Frames = Iterable[pl.DataFrame]
"""A table in parts, which can be gone through more than once: one part, or many that never are in memory together."""

Collect = Callable[[Iterable[Tensor], tuple[int, int]], tuple[Tensor, mmap.mmap | None]]
"""Puts encoded parts one below the other, to `[N, F]`, in memory or in a mapped file."""


@dataclass
class Prepared:
    """`truth` is in the metrics' terms, of the validation rows where there are some, else of the training rows."""

    features: Features
    targets: Targets
    train: Rows
    validation: Rows | None
    truth: Tensor
    warnings: list[str] = field(default_factory=list)


class Fitted(NamedTuple):
    """How a version encodes rows; `targets` are None where a run that goes on from it learns other ones."""

    features: Features
    targets: Targets | None


@dataclass
class Part:
    """Some of a table's rows: those of `mask` `[all rows]`. What the metrics and the loss want of them is in memory.

    `truth`: values `[N, T]`, or class numbers `[N]`; `weights` `[N]`.
    """

    frames: Frames
    mask: NDArray[np.bool_]
    truth: NDArray[Any]
    weights: NDArray[np.float32] | None

    def __iter__(self) -> Iterator[pl.DataFrame]:
        begin = 0
        for frame in self.frames:
            mask = self.mask[begin : begin + frame.height]
            begin += frame.height
            yield frame if mask.all() else frame.filter(pl.Series(mask))

    def __len__(self) -> int:
        return len(self.truth)

    def some(self, chosen: NDArray[np.bool_]) -> "Part":
        """Some of these rows; `chosen` is a mask over them."""
        mask = np.zeros_like(self.mask)
        mask[self.mask] = chosen
        return Part(self.frames, mask, self.truth[chosen], None if self.weights is None else self.weights[chosen])


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
    fitted: Fitted | None = None,
) -> Prepared:
    """Split, fit features and targets on the training rows, encode all rows.

    Args:
        table: the rows with all columns that the spec names.
        other: the rows of a validation dataset, if the spec names one.
        fold: which of the spec's folds is held out, from 0; None for none of them.
        collect: where encoded rows go.
        fitted: what is not fitted anew, because it is the version's that the run goes on from.

    Raises:
        BadData: nothing is left to learn from, or rows that the spec does not allow.
    """
    warnings: list[str] = []
    known = fitted and fitted.targets
    train, classes = _usable(spec, signature, table, warnings, known)
    warnings += _look_alikes(classes or ())
    if spec.task == "multilabel" and train.truth.shape[1] > 1 and (train.truth.sum(1) == 1).all():
        warnings.append(
            "each row has one label and no other, which multilabel does not know of: as a single column of their names "
            "they are classes, of which every row is given one"
        )
    train, held_out = _split(spec, train, fold)
    if fitted is None:
        features = Features.fit(signature.inputs, train, spec.features, flags=not is_laid_out(spec))
    else:
        features = fitted.features
        features.check_all(train)
        warnings += _news(features, train)
    targets = known or Targets.fit(signature, spec, train.truth, classes)
    if known is not None and spec.task == "regression":
        warnings += _other_scale(known, train.truth)
    if other is not None:
        held_out, _ = _usable(spec, signature, other, warnings, targets)
    if held_out is not None:
        features.check_all(held_out)
        if spec.task in ("binary", "multiclass") and fold is None:
            warnings += _unjudged(targets.classes, held_out)
        alike = ALIKE.get(spec.stop.metric)
        if alike and (held_out.truth.min(0) == held_out.truth.max(0)).any():
            warnings.append(
                f"the validation rows {alike}: {spec.stop.metric} cannot be measured on them, and stop.metric sees no "
                "epoch get better"
            )
    return Prepared(
        features,
        targets,
        _encode(spec, features, targets, train, collect),
        None if held_out is None else _encode(spec, features, targets, held_out, collect),
        torch.from_numpy((held_out or train).truth),
        warnings,
    )


def _unjudged(classes: Sequence[Label], held_out: Part) -> list[str]:
    """A warning of labels that none of the validation rows has, where these are not too few for that to be no news."""
    counts = count_classes(held_out.truth, len(classes))
    if len(held_out) < MIN_JUDGED or counts.all():
        return []
    absent = some_of([repr(label) for label, count in zip(classes, counts.tolist(), strict=True) if not count])
    return [
        f"no validation row is of {absent}, so that the metrics say nothing of that; "
        'with validation {"folds": 5} every row is judged once'
    ]


def _look_alikes(classes: Sequence[Label]) -> list[str]:
    """A warning of two labels that differ in nothing but their case."""
    spellings: dict[str, str] = {}
    for label in classes:
        if isinstance(label, str) and (other := spellings.setdefault(label.casefold(), label)) != label:
            return [f"the labels {other!r} and {label!r} are two classes, though only their case tells them apart"]
    return []


def _usable(
    spec: TrainingSpec, signature: Signature, frames: Frames, warnings: list[str], targets: Targets | None = None
) -> tuple[Part, tuple[Label, ...] | None]:
    """Rows whose targets and weight are there, and their classes; with `targets`, the classes are those."""
    assert isinstance(spec.data, StoredData)
    weight = spec.data.sample_weight
    needed = [*spec.data.targets, *([weight] if weight else [])]
    labels = Labels() if signature.task in ("binary", "multiclass") else None
    masks, truths, weights = list[Any](), list[Any](), list[Any]()
    for frame in frames:
        known = frame.select(needed)
        if weight and labels:
            labels.add(known[needed[0]].drop_nulls())  # those of rows without a weight are classes as well
        masks.append(known.select(pl.all_horizontal(pl.all().is_not_null())).to_series().to_numpy())
        known = known.filter(pl.Series(masks[-1]))
        if targets is not None:
            truths.append(targets.truth(known).numpy())
        else:
            truths.append(labels.add(known[needed[0]]) if labels else values_of(signature, known))
        if weight:
            weights.append(known[weight].cast(pl.Float32).to_numpy())
    mask = joined(masks)
    num_usable = sum(map(len, truths))
    if num_usable < len(mask):
        warnings.append(f"{len(mask) - num_usable} of {len(mask)} rows have no {' or '.join(needed)} and are left out")
    if not num_usable:
        raise BadData(f"no row has {' and '.join(needed)}")
    classes, truth = labels.settle(truths) if labels and targets is None else (None, joined(truths))
    if classes is not None and truth.min() == truth.max():
        raise BadData(f"all rows that can be used have the same label in {needed[0]!r}: {classes[truth[0]]!r}")
    return Part(frames, mask, truth, joined(weights) if weight else None), classes


def _news(features: Features, rows: Iterable[pl.DataFrame]) -> Iterator[str]:
    """What rows have that fitted features have no place for, each as a sentence."""
    words: defaultdict[str, set[str]] = defaultdict(set)
    gaps = dict[str, None]()
    for frame in rows:
        for name, vocabulary in features.vocabularies.items():
            words[name] |= set(frame[name].cast(pl.String).drop_nulls().unique()) - set(vocabulary)
        numbers = [column.name for column in features.columns if column.kind != "categorical"]
        gaps |= dict.fromkeys(name for name in numbers if frame[name].null_count() and name not in features.flagged)
    for name, new in words.items():
        if new:
            named = ", ".join([*map(repr, sorted(new)[:MAX_NAMED]), *(["…"] if len(new) > MAX_NAMED else [])])
            yield f"warm_start: categories of {name!r} that are new to the version share one place: {named}"
    for name in gaps:
        yield f"warm_start: {name!r} has gaps, which it had not for the version; they are taken for its mean"


def _other_scale(known: Targets, truth: NDArray[np.float64]) -> Iterator[str]:
    """Warnings of standardised targets `[N, T]` that are far from all that the version has learnt."""
    for column, mean, std, values in zip(known.signature.targets, known.mean, known.std, truth.T, strict=True):
        now = float(values.mean())
        if (mean, std) != (0.0, 1.0) and abs(now - mean) > FAR * std:
            yield (
                f"warm_start: the mean of {column.name!r} is {now:.4g} here, and was {mean:.4g} for the version, whose "
                "scale it is learnt on; under another name the column has a scale of its own"
            )


def _split(spec: TrainingSpec, rows: Part, fold: int | None) -> tuple[Part, Part | None]:
    labels = rows.truth if rows.truth.ndim == 1 else None
    if isinstance(spec.validation, ValidationFolds) and fold is not None:
        chosen = folds_of_rows(len(rows), spec.validation.folds, labels, spec.seed) == fold
    elif isinstance(spec.validation, ValidationFraction) and len(rows) > 1:
        chosen = held_out_rows(len(rows), spec.validation.fraction, labels, spec.seed)
    else:
        return rows, None
    return rows.some(~chosen), rows.some(chosen)


def folds_of_rows(num_rows: int, num_folds: int, labels: NDArray[Any] | None, seed: int) -> NDArray[np.int32]:
    """The fold of each row `[N]`: of equal sizes but for one row, and in every class of equal shares.

    Raises:
        BadData: fewer rows than folds.
    """
    if num_rows < num_folds:
        raise BadData(f"{num_rows} rows can't be divided into {num_folds} folds")
    folds = np.empty(num_rows, dtype=np.int32)
    counts = _count(num_rows, labels)
    before = np.cumsum(counts) - counts
    for rows, codes, places in _drawn(num_rows, labels, seed, len(counts)):
        folds[rows] = (before[codes] + places) % num_folds
    return folds


def held_out_rows(num_rows: int, fraction: float, labels: NDArray[Any] | None, seed: int) -> NDArray[np.bool_]:
    """A mask `[N]` with `fraction` of the rows (at least one, never all), in every class its share."""
    mask = np.zeros(num_rows, dtype=bool)
    counts = _count(num_rows, labels)
    shares = _shares(counts, min(num_rows - 1, max(1, round(num_rows * fraction))))
    for rows, codes, places in _drawn(num_rows, labels, seed, len(counts)):
        mask[rows[places < shares[codes]]] = True
    return mask


def _count(num_rows: int, labels: NDArray[Any] | None) -> NDArray[np.int64]:
    return np.array([num_rows]) if labels is None else count_classes(labels, int(labels.max()) + 1)


def _shares(counts: NDArray[np.int64], num_rows: int) -> NDArray[np.int64]:
    """How many rows of each class make up `num_rows`: row `k` of `n` in a class comes `(k + ½) / n` of the way."""
    total = counts.sum()
    most = np.minimum(counts, np.ceil((num_rows + len(counts) / 2 + 1) / total * counts).astype(np.int64) + 2)
    way = (np.concatenate([np.arange(most_of) for most_of in most]) + 0.5) / np.repeat(counts, most)
    first = np.argsort(way, kind="stable")[:num_rows]
    return np.bincount(np.repeat(np.arange(len(counts)), most)[first], minlength=len(counts))


def _drawn(
    num_rows: int, labels: NDArray[Any] | None, seed: int, num_classes: int
) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]]:
    """All rows in a drawn order, some at a time: with each one's class, and how many of that class came before it."""
    order = np.arange(num_rows, dtype=np.int32 if num_rows < 2**31 else np.int64)
    np.random.default_rng([seed, SPLIT_STREAM]).shuffle(order)
    seen = np.zeros(num_classes, np.int64)
    for rows in parts_of(order):
        codes = np.zeros(len(rows), np.uint8) if labels is None else labels[rows]
        counts = np.bincount(codes, minlength=num_classes)
        places = np.empty(len(rows), np.int64)
        first = np.cumsum(counts) - counts
        places[np.argsort(codes, kind="stable")] = np.arange(len(rows)) - np.repeat(first, counts)
        yield rows, codes, seen[codes] + places
        seen += counts


def _encode(spec: TrainingSpec, features: Features, targets: Targets, part: Part, collect: Collect) -> Rows:
    inputs, mapping = collect(map(features.transform, part), (len(part), features.num_inputs))
    file = None if mapping is None else MappedFile(mapping, len(part), inputs[:1].nbytes)
    return Rows(inputs, targets.seen(part.truth), _weights(spec, targets, part), file)


def _weights(spec: TrainingSpec, targets: Targets, part: Part) -> Tensor | None:
    assert isinstance(spec.data, StoredData)
    weights = part.weights
    if weights is not None and (not np.isfinite(weights).all() or (weights < 0).any()):
        raise BadData(f"sample weights in {spec.data.sample_weight!r} must be finite and not negative")
    if weights is not None and not weights.any():
        raise BadData(
            f"sample weights in {spec.data.sample_weight!r} are 0 in all {len(weights)} rows to learn from, or in all "
            "that are held out"
        )
    return row_weights(spec.loss, targets, part.truth, weights)
