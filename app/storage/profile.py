"""What the columns of a stored table hold."""

import math
from typing import Any

import polars as pl

from app.specs.table import MAX_EXAMPLE_CHARACTERS, ColumnProfile, Kind, Table
from app.storage.notes import as_number, note_on_numbers, note_on_text

MAX_CATEGORIES = 1000
SURE_CATEGORIES = 20

MAX_SEARCHED = 200  # columns; of wider tables no value is looked for, which would take minutes

_NUM_EXAMPLES = 5
_EXAMPLE_ROWS = 1000
_COLUMNS_AT_ONCE = 200
_EXACT_CELLS = 2**22
_EXACT_UNIQUE = 100_000


def profile_table(table: pl.LazyFrame, digest: str) -> Table:
    """The facts of a table of stored columns, in memory that the number of its rows does not matter to.

    `num_unique` is exact up to 4 million rows, and beyond for columns of up to 100 000 different values; the rest is
    within a few per cent (HyperLogLog).
    """
    schema = table.collect_schema()
    names = schema.names()
    num_rows = int(table.select(pl.len()).collect(engine="streaming").item())
    facts: dict[str, dict[str, Any]] = {}
    for start in range(0, len(names), _COLUMNS_AT_ONCE):
        facts |= _facts(table, schema, names[start : start + _COLUMNS_AT_ONCE])
    unique = _num_unique(table, names, num_rows)
    examples = _examples(table, names)
    return Table(
        digest=digest,
        num_rows=num_rows,
        columns=tuple(
            _column(
                table if len(names) <= MAX_SEARCHED else None,
                name,
                schema[name],
                num_rows,
                unique[name],
                facts[name],
                examples[name],
            )
            for name in names
        ),
    )


def kind_of(dtype: pl.DataType, num_values: int, num_unique: int) -> Kind:
    """Text with few different values is categorical: at most 20, or at most 1000 that come twice on average."""
    if dtype == pl.Boolean:
        return "boolean"
    if isinstance(dtype, pl.Datetime):
        return "datetime"
    if dtype.is_numeric():
        return "numeric"
    few = num_unique <= SURE_CATEGORIES or (num_unique <= MAX_CATEGORIES and 2 * num_unique <= num_values)
    return "categorical" if few else "text"


def plain_value(value: Any) -> Any:
    """A cell as JSON has it: datetimes are ISO 8601 text."""
    return value.isoformat() if hasattr(value, "isoformat") else value


def _column(
    table: pl.LazyFrame | None,
    name: str,
    dtype: pl.DataType,
    num_rows: int,
    num_unique: int,
    facts: dict[str, Any],
    examples: list[Any],
) -> ColumnProfile:
    num_missing = facts["num_missing"]
    num_values = num_rows - num_missing
    numbers, integral = facts.get("num_numbers"), bool(facts.get("integral", False))
    mean = facts.get("mean")
    if numbers is not None:
        note = note_on_text(table, name, num_values, numbers, examples)
    else:
        note = note_on_numbers(facts.get("min"), facts.get("max"), integral=integral) if dtype.is_numeric() else None
    return ColumnProfile(
        name=name,
        kind=kind_of(dtype, num_values, num_unique),
        num_missing=num_missing,
        num_unique=min(num_unique, num_values),
        integral=integral,
        min=plain_value(facts.get("min")),
        max=plain_value(facts.get("max")),
        mean=mean if mean is not None and math.isfinite(mean) else None,
        examples=tuple(examples),
        note=note,
    )


def _facts(table: pl.LazyFrame, schema: pl.Schema, names: list[str]) -> dict[str, dict[str, Any]]:
    wanted = {(name, fact): expr for name in names for fact, expr in _fact_exprs(name, schema[name]).items()}
    numbered = [expr.alias(str(place)) for place, expr in enumerate(wanted.values())]
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for (name, fact), value in zip(wanted, table.select(numbered).collect(engine="streaming").row(0), strict=True):
        found[name][fact] = value
    return found


def _fact_exprs(name: str, dtype: pl.DataType) -> dict[str, pl.Expr]:
    column = pl.col(name)
    facts = {"num_missing": column.null_count()}
    if dtype.is_numeric() or dtype.is_temporal():
        facts |= {"min": column.min(), "max": column.max()}
    if dtype == pl.String:
        facts["num_numbers"] = as_number(column).count()
    if dtype.is_numeric():
        whole = pl.lit(True) if dtype.is_integer() else (column == column.floor()).all()
        facts |= {"mean": column.mean(), "integral": whole & (column.count() > 0)}
    return facts


def _num_unique(table: pl.LazyFrame, names: list[str], num_rows: int) -> dict[str, int]:
    if num_rows <= _EXACT_CELLS:
        at_once = max(1, min(_COLUMNS_AT_ONCE, _EXACT_CELLS // max(1, num_rows)))
        return _count_unique(table, names, at_once, exact=True)
    unique = _count_unique(table, names, _COLUMNS_AT_ONCE, exact=False)
    few = [name for name in names if unique[name] <= _EXACT_UNIQUE]
    return unique | _count_unique(table, few, 1, exact=True)


def _count_unique(table: pl.LazyFrame, names: list[str], at_once: int, *, exact: bool) -> dict[str, int]:
    unique: dict[str, int] = {}
    for start in range(0, len(names), at_once):
        part = names[start : start + at_once]
        counts = [  # the sketch would hold all values if nulls were dropped before it; it may count one too many
            pl.col(name).drop_nulls().n_unique() if exact else pl.col(name).approx_n_unique() for name in part
        ]
        numbered = [count.alias(str(place)) for place, count in enumerate(counts)]
        unique |= zip(part, table.select(numbered).collect(engine="streaming").row(0), strict=True)
    return unique


def _examples(table: pl.LazyFrame, names: list[str]) -> dict[str, list[Any]]:
    """The first different values of each column; of a column that begins with missing values, the first ones it has."""
    head = table.head(_EXAMPLE_ROWS).collect()
    examples = {}
    for name in names:
        values = head[name].drop_nulls()
        if values.is_empty():
            later = table.select(name).filter(pl.col(name).is_not_null()).head(_NUM_EXAMPLES)
            values = later.collect(engine="streaming")[name]
        different = values.unique(maintain_order=True).head(_NUM_EXAMPLES)
        examples[name] = [_clipped(plain_value(value)) for value in different]
    return examples


def _clipped(value: Any) -> Any:
    return value[:MAX_EXAMPLE_CHARACTERS] if isinstance(value, str) else value
