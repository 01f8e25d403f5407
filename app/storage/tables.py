"""Tables that come with a request, and reading stored ones."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import polars as pl

from app.errors import Fault, InvalidInput, ShapeMismatch, TooLarge, UnknownColumn
from app.specs.sentences import unknown_column
from app.storage.columns import check_names, finite, group_rows
from app.storage.json_types import check_density, common_dtype, mismatch, word_for

MAX_FAULTS = 20
MAX_COLUMNS = 10_000

_NUMBERS = {int, float, bool, NoneType}
_INT64 = range(-(2**63), 2**63)


def read_table(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    """These columns of a stored table, in this order. Raises UnknownColumn, with the nearest name that there is."""
    return _scan(path, columns).collect()


class TableParts:
    """These columns of a stored table in parts of `part_rows` rows, as often as one likes. Raises UnknownColumn.

    Whole row groups are read in turn: a reader that goes ahead holds the more, the slower its rows are used.
    """

    def __init__(self, path: Path, columns: Sequence[str], part_rows: int) -> None:
        self._table, self._part_rows = _scan(path, columns), part_rows
        stored = pl.scan_parquet(path, glob=False)
        self._read_rows = part_rows * max(1, group_rows(len(stored.collect_schema())) // part_rows)
        self._num_rows = int(stored.select(pl.len()).collect().item())

    def __iter__(self) -> Iterator[pl.DataFrame]:
        for begin in range(0, self._num_rows, self._read_rows):
            yield from self._table.slice(begin, self._read_rows).collect().iter_slices(self._part_rows)


def _scan(path: Path, columns: Sequence[str]) -> pl.LazyFrame:
    table = pl.scan_parquet(path, glob=False)
    known = table.collect_schema().names()
    for name in columns:
        if name not in known:
            raise UnknownColumn(unknown_column(name, known))
    return table.select(columns)


# ---- rows as objects


def frame_from_records(
    records: Sequence[Any], pointer: str = "/data/records", *, max_columns: int = MAX_COLUMNS
) -> pl.DataFrame:
    """Objects as a table of stored columns, in the order in which names turn up; absent keys are missing values.

    Raises InvalidInput with a pointer for each value that does not share a type with those before it, or TooLarge.
    """
    if not records:
        raise InvalidInput.at(pointer, "there are no rows; give at least one object")
    if set(map(type, records)) != {dict}:
        _refuse(_not_of_type(records, dict, pointer, 'a row is an object such as {"x": 1.5, "y": "a"}'))
    names = list(dict.fromkeys(chain.from_iterable(records)))
    if not names:
        raise InvalidInput.at(f"{pointer}/0", "the rows have no columns")
    check_names(names, max_columns, pointer)
    check_density(len(records) * len(names), sum(map(len, records)))
    columns = {name: [record.get(name) for record in records] for name in names}
    _refuse(
        Fault(f"{pointer}/{row}/{_escaped(name)}", detail)
        for name, values in columns.items()
        for row, detail in _mismatches(values)
    )
    return pl.DataFrame([_series(name, values) for name, values in columns.items()])


# ---- rows as lists of numbers


def frame_from_inputs(
    inputs: Sequence[Any],
    targets: Sequence[Any],
    sample_weight: Sequence[Any] | None = None,
    *,
    pointer: str = "/data",
    max_columns: int = MAX_COLUMNS,
) -> pl.DataFrame:
    """Rows of numbers as columns `x0` … , their targets as `y` (or `y0` … where rows are given), and `sample_weight`.

    Args:
        inputs: `[num_rows, num_features]` of numbers, booleans (as 0 and 1) and nulls.
        targets: `[num_rows]` or `[num_rows, num_targets]` of numbers, text or booleans; a column holds one of these.
        sample_weight: `[num_rows]` of numbers that are not negative, not all zero.

    Raises:
        ShapeMismatch, InvalidInput: with a pointer for each fault.
        TooLarge: more than `max_columns`.
    """
    columns = [*_inputs(inputs, f"{pointer}/inputs", max_columns), *_targets(targets, f"{pointer}/targets")]
    _check_length(targets, len(inputs), f"{pointer}/targets")
    if sample_weight is not None:
        _check_length(sample_weight, len(inputs), f"{pointer}/sample_weight")
        columns.append(_weights(sample_weight, f"{pointer}/sample_weight"))
    check_names([column.name for column in columns], max_columns)
    return pl.DataFrame(columns)


def _wanted(value: object) -> str:
    if isinstance(value, list):
        return "a row is one list of numbers, which network.input_shape lays out as an image or a sequence"
    return "inputs are numbers, booleans or null"


def _inputs(rows: Sequence[Any], pointer: str, max_columns: int) -> list[pl.Series]:
    _check_rows(rows, pointer)
    if len(rows[0]) > max_columns:
        raise TooLarge(f"the rows have {len(rows[0])} numbers; at most {max_columns} are allowed")
    if not set(map(type, chain.from_iterable(rows))) <= _NUMBERS:
        _refuse(
            Fault(f"{pointer}/{row}/{place}", f"this is {word_for(type(value))}; {_wanted(value)}")
            for row, values in enumerate(rows)
            for place, value in enumerate(values)
            if type(value) not in _NUMBERS
        )
    numbers_FN = np.ascontiguousarray(np.array(rows, dtype=np.float64).T)  # null becomes NaN
    return list(
        pl.DataFrame([pl.Series(f"x{place}", numbers_N) for place, numbers_N in enumerate(numbers_FN)]).select(
            finite(pl.all())
        )
    )


def _targets(targets: Sequence[Any], pointer: str) -> list[pl.Series]:
    if not (targets and isinstance(targets[0], list)):
        _refuse(Fault(f"{pointer}/{row}", detail) for row, detail in _mismatches(targets))
        return [_series("y", targets)]
    _check_rows(targets, pointer)
    columns = list(zip(*targets, strict=True))
    _refuse(
        Fault(f"{pointer}/{row}/{place}", detail)
        for place, values in enumerate(columns)
        for row, detail in _mismatches(values)
    )
    return [_series(f"y{place}", values) for place, values in enumerate(columns)]


def _weights(weights: Sequence[Any], pointer: str) -> pl.Series:
    _refuse(
        Fault(f"{pointer}/{row}", "a weight is a number that is not negative")
        for row, weight in enumerate(weights)
        if type(weight) not in (int, float) or not 0 <= weight < math.inf
    )
    if not any(weights):
        raise InvalidInput.at(pointer, "all weights are 0; at least one row must count")
    return pl.Series("sample_weight", weights, dtype=pl.Float64, strict=False)


def _check_rows(rows: Sequence[Any], pointer: str) -> None:
    """Raises unless these are lists that are as long as the first, and that is not empty."""
    if not rows:
        raise InvalidInput.at(pointer, "there are no rows; give at least one")
    if set(map(type, rows)) != {list}:
        _refuse(
            _not_of_type(rows, list, pointer, "a row is a list such as [5.1, 3.5], also if it has one number: [5.1]")
        )
    width = len(rows[0])
    if width == 0:
        raise ShapeMismatch.at(f"{pointer}/0", "this row is empty")
    if set(map(len, rows)) != {width}:
        faults = (
            Fault(f"{pointer}/{row}", f"this row has {_numbers(len(values))}, the first has {width}")
            for row, values in enumerate(rows)
            if len(values) != width
        )
        _refuse(faults, ShapeMismatch)


def _check_length(values: Sequence[Any], num_rows: int, pointer: str) -> None:
    if len(values) != num_rows:
        raise ShapeMismatch.at(pointer, f"there are {len(values)} of these for {num_rows} rows of inputs")


# ---- faults


def _refuse(faults: Iterable[Fault], error: type[InvalidInput] = InvalidInput) -> None:
    """Raises with the first faults, if there is one."""
    found = list(islice(faults, MAX_FAULTS))
    if found:
        raise error(found[0].detail, found)


def _not_of_type(values: Iterable[Any], wanted: type, pointer: str, detail: str) -> Iterator[Fault]:
    for row, value in enumerate(values):
        if type(value) is not wanted:
            yield Fault(f"{pointer}/{row}", f"this is {word_for(type(value))}; {detail}")


def _mismatches(values: Sequence[Any]) -> Iterator[tuple[int, str]]:
    """The rows whose value cannot stand below the values before it, and why."""
    if common_dtype(set(map(type, values))) is not None:
        return
    seen: set[type] = set()
    for row, value in enumerate(values):
        kind = type(value)
        if common_dtype({*seen, kind}) is None:
            yield row, mismatch(kind, seen)
        else:
            seen.add(kind)


def _series(name: str, values: Sequence[Any]) -> pl.Series:
    """A stored column of values that share a type."""
    dtype = common_dtype(set(map(type, values)))
    assert dtype is not None
    if dtype == pl.Int64 and not all(value is None or value in _INT64 for value in values):
        dtype = pl.Float64
    if dtype in (pl.Float64, pl.Null):
        numbers = np.array(values, dtype=np.float64)  # null becomes NaN
        return pl.Series(name, numbers, dtype=pl.Float64).to_frame().select(finite(pl.col(name))).to_series()
    return pl.Series(name, values, dtype=dtype)


def _escaped(name: str) -> str:
    """A name as a JSON pointer has it (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


def _numbers(count: int) -> str:
    return "1 number" if count == 1 else f"{count} numbers"
