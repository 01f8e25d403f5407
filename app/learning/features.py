"""Columns of a table to the network's one input tensor, and back from outputs to targets.

A row becomes `[measures | missing flags | category codes]`, all float32 (codes are whole numbers below 2²⁴).
Measures are standardised to the precision of float64. `InputColumns`, the network's first module, turns codes into
embeddings or one-hot vectors. Shape suffixes: N rows, K measures, I flags, C categorical columns, F = K + I + C.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app.errors import BadData
from app.specs.table import Column, ColumnProfile
from app.specs.training import FeaturesSpec

UNSEEN, MISSING = 0, 1  # the first two codes of every category; the vocabulary follows
NUM_RESERVED_CODES = 2
FLAGS = {"true": True, "false": False}  # words that a CSV's flags are read from, in any case
MAX_VOCABULARY = 100_000
FEW_ROWS = 256  # in which words are looked up one by one; for more of them, polars goes through the vocabulary once
CALENDAR = ("year", "month", "day", "weekday", "hour", "minute", "second")
CELLS_AT_ONCE = 2**17  # that many are scaled within the processor's cache
TOO_LARGE = (
    "so large that float64 does not hold their squares; scale them down, or leave them empty where they stand for none"
)
ROUNDING = 1e-12  # times its mean: less of a deviation is what comes of adding up a constant
ORDINARY = 1e30  # where constants are smaller, and none is smaller than its inverse, float32 bears what float64 does
MEASURES_OF_KIND = {"numeric": 1, "boolean": 1, "datetime": len(CALENDAR), "categorical": 0}

Floats = NDArray[np.float64]
Numbers = NDArray[np.floating[Any]]


class InputColumns(nn.Module):
    """`[B, F] -> [B, K + I + Σ widths]`: codes become embeddings or one-hot vectors, the rest passes."""

    def __init__(self, num_plain: int, sizes: Sequence[int], categorical: Literal["embedding", "one_hot"]) -> None:
        super().__init__()
        self.num_plain, self.sizes, self.one_hot = num_plain, tuple(sizes), categorical == "one_hot"
        widths = [] if self.one_hot else [embedding_width(size) for size in sizes]
        self.embeddings = nn.ModuleList(Embedding(size, width) for size, width in zip(sizes, widths, strict=False))

    def forward(self, x: Tensor) -> Tensor:
        if not self.sizes:
            return x
        codes = x[:, self.num_plain :].long()
        parts = [x[:, : self.num_plain]]
        for index, size in enumerate(self.sizes):
            column = codes[:, index]
            if self.one_hot:
                parts.append((column[:, None] == torch.arange(size, device=x.device)).to(x.dtype))
            else:
                parts.append(self.embeddings[index](column))
        return torch.cat(parts, dim=1)


class Embedding(nn.Embedding):
    """Rows start at N(0, 0.1²), unseen and missing at zero: what was never trained says nothing."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.1)
        with torch.no_grad():
            self.weight[:NUM_RESERVED_CODES] = 0


def embedding_width(num_codes: int) -> int:
    """The rule of thumb of fastai's tabular models: `1.6 n^0.56`, at most 50."""
    return min(50, max(2, round(1.6 * math.pow(num_codes, 0.56))))


def input_columns(
    columns: Sequence[ColumnProfile], spec: FeaturesSpec | None, *, flags: bool = True
) -> tuple[InputColumns, int]:
    """The front module and F as a table's profile lets expect them, on the meta device; fitting may find fewer."""
    plain = sum(
        MEASURES_OF_KIND[column.kind] + bool(flags and column.num_missing)
        for column in columns
        if column.kind != "categorical"
    )
    sizes = [
        min(column.num_unique, MAX_VOCABULARY) + NUM_RESERVED_CODES
        for column in columns
        if column.kind == "categorical"
    ]
    with torch.device("meta"):
        return InputColumns(plain, sizes, spec.categorical if spec else "embedding"), plain + len(sizes)


class Moments:
    """Mean and deviation of each column `[K]`, from parts that are merged (Chan et al. 1983); NaN counts as absent."""

    def __init__(self) -> None:
        self.count = self.mean = self.squares = np.zeros(0)

    @np.errstate(over="ignore")
    def add(self, rows_NK: Floats) -> None:
        present = np.isfinite(rows_NK)
        count = present.sum(0).astype(np.float64)
        mean = np.where(present, rows_NK, 0).sum(0) / np.maximum(count, 1)
        squares = (np.where(present, rows_NK - mean, 0) ** 2).sum(0)
        if not len(self.mean):
            self.count, self.mean, self.squares = count, mean, squares
            return
        total = np.maximum(self.count + count, 1)
        shift = mean - self.mean
        self.squares = self.squares + squares + shift**2 * self.count * count / total
        self.mean = self.mean + shift * count / total
        self.count = self.count + count

    def std(self) -> Floats:
        """One for a constant, whose deviation is rounding noise: dividing by that would blow up a row that differs."""
        std = np.sqrt(self.squares / np.maximum(self.count, 1))
        return np.where(std > ROUNDING * np.abs(self.mean), std, 1.0)


@dataclass
class Features:
    """Fitted columns: `mean` and `std` are `[K]`; `flagged` columns have a missing flag; vocabularies are sorted."""

    columns: tuple[Column, ...]
    spec: FeaturesSpec | None
    mean: Floats = field(default_factory=lambda: np.zeros(0))
    std: Floats = field(default_factory=lambda: np.ones(0))
    flagged: tuple[str, ...] = ()
    vocabularies: dict[str, tuple[str, ...]] = field(default_factory=dict)
    num_places: int | None = None
    """Where the network begins with an embedding: it takes whole numbers below that."""

    @property
    def standardizes(self) -> bool:
        """Whether inputs are scaled, rather than the target alone, or nothing."""
        return self.spec is not None and self.spec.standardize is True

    @classmethod
    def fit(
        cls,
        columns: Sequence[Column],
        frames: Iterable[pl.DataFrame],
        spec: FeaturesSpec | None,
        *,
        flags: bool = True,
    ) -> "Features":
        """Learn the constants from the training rows, part by part.

        Args:
            flags: whether a column with missing values has a flag of them beside it.

        Raises:
            BadData: where the spec refuses missing values and there are some, or numbers have no deviation in float64.
        """
        found, moments, missing = cls(tuple(columns), spec), Moments(), set[str]()
        words: dict[str, Counter[str]] = {column.name: Counter() for column in columns if column.kind == "categorical"}
        for frame in frames:
            found.check(frame)
            missing |= {column.name for column in columns if frame[column.name].null_count()}
            moments.add(found.measures(frame))
            for name, counts in words.items():
                counts.update(dict(frame[name].drop_nulls().cast(pl.String).value_counts().iter_rows()))
        found.flagged = tuple(
            column.name for column in columns if flags and column.name in missing and column.kind != "categorical"
        )
        found.vocabularies = {name: _vocabulary(counts) for name, counts in words.items()}
        found.mean, found.std = np.zeros(len(moments.mean)), np.ones(len(moments.mean))
        if spec is not None:
            found.mean, std = moments.mean, moments.std()
            if not (finite := np.isfinite(found.mean + std)).all():
                raise BadData(f"column {_measured(columns)[finite.argmin()]!r} holds numbers {TOO_LARGE}")
            found.std = std if found.standardizes else found.std
        return found

    def check(self, frame: pl.DataFrame) -> None:
        """Raise BadData where the spec refuses missing values and there are some, or a number has no place."""
        if self.spec is None or self.spec.missing == "error":
            for column in self.columns:
                if frame[column.name].null_count():
                    raise BadData(f"column {column.name!r} has missing values, and the features spec allows none")
        if self.num_places is not None:
            for _, _, detail in self.misplaced(self.measures(frame)):
                raise BadData(detail)

    def check_all(self, frames: Iterable[pl.DataFrame]) -> None:
        """As `check`, of a table in parts, which is not gone through where the spec refuses nothing."""
        if self.spec is None or self.spec.missing == "error":
            for frame in frames:
                self.check(frame)

    def misplaced(self, rows_NK: Numbers) -> Iterator[tuple[int, int, str]]:
        """Row, column and a sentence for each number that the network's embedding has no place for."""
        assert self.num_places is not None
        last = self.num_places - 1
        fits_NK = (rows_NK >= 0) & (rows_NK <= last) & (rows_NK == np.floor(rows_NK))
        for row, column in np.argwhere(~fits_NK).tolist():
            name, number = self.columns[column].name, rows_NK[row, column]
            given = "missing" if np.isnan(number) else f"{number:.15g}"
            yield row, column, f"{name!r} is {given}; the network's embedding takes whole numbers from 0 to {last}"

    @property
    def num_inputs(self) -> int:
        return len(self.mean) + len(self.flagged) + len(self.vocabularies)

    @property
    def all_measures(self) -> bool:
        """Every column is one number: rows may come as a plain matrix."""
        return all(column.kind in ("numeric", "boolean") for column in self.columns)

    def front(self) -> InputColumns:
        """The network's first module, on the meta device."""
        sizes = [len(words) + NUM_RESERVED_CODES for words in self.vocabularies.values()]
        with torch.device("meta"):
            return InputColumns(
                len(self.mean) + len(self.flagged), sizes, self.spec.categorical if self.spec else "embedding"
            )

    def measures(self, frame: pl.DataFrame) -> Floats:
        """Columns that are no categories as numbers `[N, K]`, NaN where missing."""
        parts = [
            part for column in self.columns if column.kind != "categorical" for part in _measures_of(column, frame)
        ]
        return np.column_stack(parts) if parts else np.zeros((frame.height, 0))

    def transform(self, frame: pl.DataFrame) -> Tensor:
        """Rows of a frame that has all columns, to `[N, F]`. Unseen categories and missing values have their places."""
        measures = self.measures(frame)
        flags = [frame[name].is_null().to_numpy() for name in self.flagged]
        codes = [self._codes(frame[name]) for name in self.vocabularies]
        return self._assemble(measures, [*flags, *codes])

    def transform_numbers(self, rows_NK: Numbers) -> Tensor:
        """Rows of numbers in the order of the columns, NaN where missing, to `[N, F]`; only where `all_measures`."""
        where = {column.name: index for index, column in enumerate(self.columns)}
        return self._assemble(rows_NK, [np.isnan(rows_NK[:, where[name]]) for name in self.flagged])

    @np.errstate(over="ignore")  # beyond float32 is infinity, and the answer to it is null
    def _assemble(self, measures_NK: Numbers, others: Sequence[NDArray[Any]]) -> Tensor:
        out = np.empty((len(measures_NK), self.num_inputs), dtype=np.float32)
        num_measures = len(self.mean)
        rows_at_once = max(1, CELLS_AT_ONCE // max(1, num_measures))
        for start in range(0, len(out), rows_at_once):
            part = slice(start, start + rows_at_once)
            out[part, :num_measures] = self._scaled(measures_NK[part])
        for index, column in enumerate(others):
            out[:, num_measures + index] = column
        return torch.from_numpy(out)

    def _scaled(self, rows_NK: Numbers) -> Numbers:
        """Standardised, and without gaps, as far as the spec says so; what comes in float32 stays in it."""
        if self.spec is None:
            return rows_NK
        if not self.standardizes:
            return np.where(np.isnan(rows_NK), self.mean, rows_NK)
        is_single = rows_NK.dtype == np.float32 and self._is_ordinary()
        mean, std = (part.astype(np.float32) if is_single else part for part in (self.mean, self.std))
        scaled: Numbers = rows_NK - mean
        if is_single:  # as near as by way of float64
            scaled -= (self.mean - mean).astype(np.float32)
        scaled /= std
        missing = np.isnan(scaled)
        if missing.any():
            scaled[missing] = 0.0
        return scaled

    def as_written(self, cells: pl.Series) -> pl.Series:
        """A category's cells as the words that were learnt, where a file has only such as read as numbers or flags.

        Raises:
            BadData: several words read alike, as 1.1 and 1.10 do.
        """
        if cells.name not in self.vocabularies or not (cells.dtype.is_numeric() or cells.dtype == pl.Boolean):
            return cells
        words = pl.Series(self.vocabularies[cells.name], dtype=pl.String)
        if cells.dtype == pl.Boolean:
            read = words.str.to_lowercase().replace_strict(FLAGS, default=None, return_dtype=pl.Boolean)
        else:
            read = words.str.replace(",", ".", literal=True).cast(cells.dtype, strict=False)
        known = pl.DataFrame({"word": words, "read": read}).drop_nulls()
        known = known.filter(pl.col("read").is_in(cells.unique().implode()))
        alike = known.filter(pl.col("read").is_duplicated()).sort("read")["word"].to_list()[:2]
        if alike:
            raise BadData(
                f"column {cells.name!r} was learnt as text and was read as numbers or flags here, by which "
                f"{alike[0]!r} and {alike[1]!r} are the same; NDJSON, Parquet and Arrow keep text"
            )
        return cells.replace_strict(known["read"], known["word"], default=cells.cast(pl.String), return_dtype=pl.String)

    def _codes(self, series: pl.Series) -> NDArray[Any]:
        text = self.as_written(series).cast(pl.String)
        if len(text) <= FEW_ROWS:
            codes = self._places[series.name]
            return np.array([MISSING if word is None else codes.get(word, UNSEEN) for word in text])
        words = pl.Enum(self.vocabularies[series.name])
        known = text.cast(words, strict=False).to_physical().cast(pl.Int64) + NUM_RESERVED_CODES
        return np.where(text.is_null().to_numpy(), MISSING, known.fill_null(UNSEEN).to_numpy())

    @cached_property
    def _places(self) -> dict[str, dict[str, int]]:
        """The code of each word of each category."""
        return {
            name: {word: code for code, word in enumerate(words, start=NUM_RESERVED_CODES)}
            for name, words in self.vocabularies.items()
        }

    def _is_ordinary(self) -> bool:
        return bool((np.abs(self.mean) < ORDINARY).all() and ((self.std > 1 / ORDINARY) & (self.std < ORDINARY)).all())

    # ---- on disk

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Constants as tensors, the rest as JSON."""
        tensors = {"features.mean": torch.from_numpy(self.mean), "features.std": torch.from_numpy(self.std)}
        config = {
            "columns": [column.model_dump() for column in self.columns],
            "spec": self.spec.model_dump() if self.spec else None,
            "flagged": list(self.flagged),
            "vocabularies": {name: list(words) for name, words in self.vocabularies.items()},
        }
        return tensors, config

    @classmethod
    def load(cls, tensors: dict[str, Tensor], config: dict[str, Any]) -> "Features":
        return cls(
            columns=tuple(Column.model_validate(column) for column in config["columns"]),
            spec=FeaturesSpec.model_validate(config["spec"]) if config["spec"] else None,
            mean=tensors["features.mean"].numpy(),
            std=tensors["features.std"].numpy(),
            flagged=tuple(config["flagged"]),
            vocabularies={name: tuple(words) for name, words in config["vocabularies"].items()},
        )


def _measured(columns: Sequence[Column]) -> list[str]:
    """The column that each of the measures `[K]` is of."""
    return [column.name for column in columns for _ in range(MEASURES_OF_KIND[column.kind])]


def _measures_of(column: Column, frame: pl.DataFrame) -> list[Floats]:
    series = frame[column.name]
    if column.kind == "datetime":
        stamps = series.cast(pl.Datetime("us")).dt
        return [_floats(getattr(stamps, part)()) for part in CALENDAR]
    return [_floats(series)]


def _floats(series: pl.Series) -> Floats:
    values: Floats = series.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return values


def _vocabulary(counts: Counter[str]) -> tuple[str, ...]:
    """The most frequent words, sorted, so that codes don't depend on the rows' order."""
    most = sorted(counts, key=lambda word: (-counts[word], word))[:MAX_VOCABULARY]
    return tuple(sorted(most))
