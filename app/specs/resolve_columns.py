"""Which of a table's columns a run learns from, and what of them it can't."""

import math
from collections.abc import Iterable
from itertools import islice

from app.errors import Fault, InvalidInput, UnknownColumn
from app.specs.sentences import MAX_NAMED, unknown_column
from app.specs.table import ColumnProfile, StoredData, Table
from app.specs.training import TrainingSpec

NUMBERS = ("numeric", "boolean")
MIN_COUNTED = 20  # rows: fewer may be numbered in order by chance


def resolve_columns(data: StoredData, table: Table, warnings: list[str]) -> StoredData:
    """`features` are settled in what is returned: those that are named, or all that can be learned from.

    Raises:
        UnknownColumn, InvalidInput: what is named is not there, is named twice, or is no feature.
    """
    weights = () if data.sample_weight is None else (data.sample_weight,)
    asked = {
        "/data/target": data.targets,
        "/data/features": data.features or (),
        "/data/ignored_columns": data.ignored_columns,
        "/data/sample_weight": weights,
    }
    if faults := [fault for pointer, names in asked.items() for fault in _unknown(pointer, names, table)]:
        raise UnknownColumn(faults[0].detail, faults)
    _refuse_repeats(data)
    if weight := table.column(data.sample_weight) if data.sample_weight else None:
        _check_weight(weight, all_count=are_whole(table, data.targets))
    reserved = {*data.targets, *weights}
    features = data.features
    if features is None:
        features = _usable(table, reserved.union(data.ignored_columns), warnings)
    for index, name in enumerate(features):
        column = table.column(name)
        if name in reserved:
            raise InvalidInput.at(f"/data/features/{index}", f"{name!r} is also the target or the sample weight")
        if column and column.kind == "text":
            raise InvalidInput.at(
                f"/data/features/{index}",
                f"{name!r} is free text, which is no feature yet; leave it out{note_of(column)}",
            )
    if not features:
        why = "".join(f"; {warning}" for warning in warnings[:MAX_NAMED])
        raise InvalidInput.at("/data/features", f"no column is left to learn from{why}")
    if _named_by_a_row(table):
        warnings.append(
            f"the columns' names ({table.columns[0].name}, {table.columns[1].name}, …) look like a row of values; if "
            "the file has no header, upload it with Content-Type: text/csv; header=absent"
        )
    return data.model_copy(update={"features": tuple(features)})


def _check_weight(weight: ColumnProfile, *, all_count: bool) -> None:
    """`all_count`: every row that has a weight is learnt from, or judged by."""
    if weight.kind not in NUMBERS:
        raise InvalidInput.at("/data/sample_weight", f"{weight.name!r} is {weight.kind}; a weight must be a number")
    if all_count and weight.kind == "numeric" and weight.num_unique and (weight.min < 0 or weight.max == 0):
        held = f"begins at {weight.min:g}" if weight.min < 0 else "is 0 in all rows"
        raise InvalidInput.at(
            "/data/sample_weight", f"weights are not negative, nor 0 in all rows, and {weight.name!r} {held}"
        )


def _refuse_repeats(data: StoredData) -> None:
    for pointer, names in [("/data/target", data.targets), ("/data/features", data.features or ())]:
        if len(set(names)) < len(names):
            index = next(index for index, name in enumerate(names) if name in names[:index])
            raise InvalidInput.at(f"{pointer}/{index}", f"{names[index]!r} is there twice")
    if data.sample_weight in data.targets:
        raise InvalidInput.at("/data/sample_weight", f"{data.sample_weight!r} is also the target")
    used = {*data.targets, *(data.features or ()), data.sample_weight}
    for index, name in enumerate(data.ignored_columns):
        if name in used:
            detail = f"{name!r} is also the target, the sample weight or a feature"
            raise InvalidInput.at(f"/data/ignored_columns/{index}", detail)


def _usable(table: Table, reserved: set[str | None], warnings: list[str]) -> tuple[str, ...]:
    candidates = [column for column in table.columns if column.name not in reserved]
    usable = tuple(column.name for column in candidates if column.kind != "text" and column.num_unique > 0)
    for column in candidates:
        if column.kind == "text":
            num_unique = column.num_unique
            warnings.append(
                f"column {column.name!r} is free text ({num_unique} distinct values) and is left out{note_of(column)}"
            )
        elif column.num_unique == 0:
            warnings.append(f"column {column.name!r} is empty and is left out")
        elif column.note:
            taken = "numbers" if column.kind in NUMBERS else "categories"
            warnings.append(f"column {column.name!r} is taken as {taken}{note_of(column)}")
        elif len(usable) > 1 and _counts_rows(column, table.num_rows):
            warnings.append(
                f"column {column.name!r} numbers the rows, from {int(column.min)} to {int(column.max)}, and is learned "
                "from; if it is no more than a number, name it in data.ignored_columns"
            )
    return usable


def _named_by_a_row(table: Table) -> bool:
    """Whether all columns of numbers, at least two, are named by such a number; 0, 1, 2, … are names, though."""
    columns = [column for column in table.columns if column.kind == "numeric" and column.num_unique]
    numbers = [_number(column.name) for column in columns]
    if len(columns) < 2 or numbers == [numbers[0] + place for place in range(len(numbers))]:
        return False
    return all(column.min <= number <= column.max for column, number in zip(columns, numbers, strict=True))


def _number(name: str) -> float:
    try:
        return float(name)
    except ValueError:
        return math.nan  # which lies between no two numbers


def _counts_rows(column: ColumnProfile, num_rows: int) -> bool:
    """Whether its whole numbers are all different, and most of those that there are: a part of the rows may be gone."""
    is_whole = column.integral and column.num_unique == num_rows >= MIN_COUNTED
    return is_whole and bool(2 * (column.max - column.min) < 3 * num_rows)


def note_of(column: ColumnProfile) -> str:
    return f": {column.note}" if column.note else ""


def _unknown(pointer: str, names: Iterable[str], table: Table) -> list[Fault]:
    known = [column.name for column in table.columns]
    unknown = islice((name for name in names if table.column(name) is None), MAX_NAMED)
    return [Fault(pointer, unknown_column(name, known)) for name in unknown]


def missing_in(column: ColumnProfile) -> str:
    """How many of its values are missing, for a sentence."""
    return f"{column.num_missing} missing value" + ("s" if column.num_missing > 1 else "")


def are_whole(table: Table, names: Iterable[str | None]) -> bool:
    """Whether these columns have no gaps; rows with one in a target or the weight are left out, whatever they hold."""
    return not any(column.num_missing for name in names if name and (column := table.column(name)))


def refuses_gaps(spec: TrainingSpec) -> bool:
    """Whether a feature may have no missing values."""
    return spec.features is None or spec.features.missing == "error"


def check_features(spec: TrainingSpec, table: Table) -> None:
    assert isinstance(spec.data, StoredData)
    for name in spec.data.features or ():
        column = table.column(name)
        if spec.features is None and column and column.kind not in NUMBERS:
            raise InvalidInput.at(
                "/features", f"features null takes numbers as they are, but {name!r} is {column.kind}"
            )
        if refuses_gaps(spec) and column and column.num_missing:
            raise InvalidInput.at("/features", f"{name!r} has {missing_in(column)}; impute them with features.missing")
