"""The types that stored columns have, and how a column comes by its own.

A stored column is Int64, Float64 (finite or missing), Boolean, String, or Datetime in microseconds UTC without a zone.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from app.errors import InvalidInput, TooLarge

MISSING = (
    *("", "NA", "N/A", "n/a", "<NA>", "NaN", "nan", "-NaN", "-nan", "NaT", "null", "NULL", "None", "?"),
    *("#N/A", "#NA", "#N/A N/A", "#NULL!", "#DIV/0!", "#VALUE!", "#REF!", "#NAME?", "#NUM!"),
)
"""Spellings of a missing value in text without types, by people, pandas and spreadsheets."""

MAX_NAME_CHARACTERS = 1000
MIN_GROUP_ROWS, MAX_GROUP_ROWS, GROUP_CELLS = 2**10, 2**17, 2**22
DATETIME = pl.Datetime("us")

_PRUNING_ROWS = 1000
_COLUMNS_AT_ONCE = 200
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_NO_HEADER = "; the first line must have the names (where it is a row, say so: Content-Type: text/csv; header=absent)"
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")
_ISO_DATETIME = r"^\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?(?:Z|[+-]\d{2}:?\d{2})?)?$"

Reading = Callable[[pl.Expr], pl.Expr]
"""From a column of text to its values; missing where the text reads otherwise."""


def group_rows(num_columns: int) -> int:
    """Rows of a row group of a stored table, which is written and read as a whole: a power of two."""
    num_rows = max(MIN_GROUP_ROWS, min(MAX_GROUP_ROWS, GROUP_CELLS // num_columns))
    return 1 << num_rows.bit_length() - 1


def check_names(names: Sequence[str], max_columns: int, pointer: str = "") -> None:
    """Raises TooLarge for too many columns, InvalidInput at the pointer for names that tell nothing."""
    if len(names) > max_columns:
        raise TooLarge(f"the table has {len(names)} columns; at most {max_columns} are allowed")
    if wrong := _fault_in(names):
        raise InvalidInput.at(pointer, wrong)


def _fault_in(names: Sequence[str]) -> str | None:
    places: dict[str, int] = {}
    for place, name in enumerate(names, start=1):
        if not name.strip():
            return f"column {place} has no name" + (
                "; with pandas, write the file with index=False" if place == 1 else ""
            )
        if len(name) > MAX_NAME_CHARACTERS:
            return f"the name of column {place} is longer than {MAX_NAME_CHARACTERS} characters"
        if name in places:
            fault = f"columns {places[name]} and {place} are both named {name!r}; names must differ"
            return fault + (_NO_HEADER if _NUMBER.fullmatch(name) else "")
        places[name] = place
    return None if names else "the table has no columns"


def read_datetimes(text: pl.Expr) -> pl.Expr:
    """ISO 8601 dates and times (to the minute or finer), moved to UTC where they carry an offset."""
    clock = text.str.extract(r"[T ](\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?)", 1).fill_null("00:00")
    seconds = pl.when(clock.str.len_bytes() == 5).then(pl.lit(":00")).otherwise(pl.lit(""))
    local = (text.str.head(10) + " " + clock + seconds).str.to_datetime(
        "%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False
    )
    sign = pl.when(text.str.contains(r"\d-\d{2}:?\d{2}$")).then(-1).otherwise(1)
    hours, minutes = (
        text.str.extract(r":.*[+-](\d{2}):?(\d{2})$", group).cast(pl.Int64).fill_null(0) for group in (1, 2)
    )
    utc = local - pl.duration(minutes=sign * (60 * hours + minutes))
    return pl.when(text.str.contains(_ISO_DATETIME)).then(utc)


def _read_booleans(text: pl.Expr) -> pl.Expr:
    """`true` and `false` in any case. Other pairs of words stay text, and come back as such in predictions."""
    word = text.str.to_lowercase()
    return pl.when(word == "true").then(True).when(word == "false").then(False)


def finite(numbers: pl.Expr) -> pl.Expr:
    return pl.when(numbers.is_finite()).then(numbers)


TYPED_READINGS: dict[str, Reading] = {"datetime": read_datetimes}
"""For text out of formats that have types: there a string that looks like a number was meant as a string."""

UNTYPED_READINGS: dict[str, Reading] = {
    "integer": lambda text: text.cast(pl.Int64, strict=False),
    "number": lambda text: text.cast(pl.Float64, strict=False),
    "boolean": _read_booleans,
    **TYPED_READINGS,
}
"""For text out of CSV, in order of preference."""

DECIMAL_COMMA_READINGS: dict[str, Reading] = {
    **UNTYPED_READINGS,
    "decimal_comma": lambda text: text.str.replace(",", ".", literal=True).cast(pl.Float64, strict=False),
}
"""For CSV whose columns are not separated by commas."""


def spelled_values(text: pl.Expr) -> pl.Expr:
    """Text out of CSV without the spaces around it, missing where it is spelled as missing."""
    stripped = text.str.strip_chars()
    return pl.when(~stripped.is_in(MISSING)).then(stripped)


def storable_table(table: pl.LazyFrame, max_columns: int) -> pl.LazyFrame:
    """The table with its columns as stored ones, without the numbers that pandas gives to rows.

    Raises InvalidInput for nested and binary values; TooLarge.
    """
    schema = table.collect_schema()
    if indices := [name for name in schema if _PANDAS_INDEX.fullmatch(name)]:
        return storable_table(table.drop(indices), max_columns)
    check_names(schema.names(), max_columns)
    wide = [name for name, dtype in schema.items() if dtype in (pl.UInt64, pl.Int128, pl.UInt128)]
    fitting = table.select(pl.col(wide).is_between(-(2**63), 2**63 - 1).all()).collect(engine="streaming")
    return table.select(
        pl.col(name).cast(pl.Int64) if name in wide and fitting[name].item() else _storable(name, dtype)
        for name, dtype in schema.items()
    )


def _storable(name: str, dtype: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    match dtype:
        case pl.String() | pl.Boolean() | pl.Int64():
            return column
        case pl.Categorical() | pl.Enum():
            return column.cast(pl.String)
        case pl.Null() | pl.Decimal() | pl.UInt64() | pl.Int128() | pl.UInt128():
            return column.cast(pl.Float64)
        case pl.Date():
            return column.cast(DATETIME)
        case pl.Datetime(time_zone=None):
            return column.cast(DATETIME)
        case pl.Datetime():
            return column.dt.convert_time_zone("UTC").dt.replace_time_zone(None).cast(DATETIME)
        case pl.Duration():
            return column.dt.total_microseconds() / 1e6
        case pl.Time():
            return column.cast(pl.Int64) / 1e9
        case _ if dtype.is_integer():
            return column.cast(pl.Int64)
        case _ if dtype.is_float():
            return finite(column.cast(pl.Float64))
    raise InvalidInput.at("", f"column {name!r} holds {dtype}; a column can hold numbers, text, booleans or datetimes")


def padded_columns(table: pl.LazyFrame) -> list[str]:
    """Columns of whole numbers, all of one length and some with leading zeros: zip codes, not quantities."""
    texts = [name for name, dtype in table.collect_schema().items() if dtype == pl.String]
    padded: list[str] = []
    for start in range(0, len(texts), _COLUMNS_AT_ONCE):
        part = texts[start : start + _COLUMNS_AT_ONCE]
        numbered = [_is_padded(pl.col(name)).alias(str(place)) for place, name in enumerate(part)]
        found = table.select(numbered).collect(engine="streaming").row(0)
        padded += [name for name, is_padded in zip(part, found, strict=True) if is_padded]
    return padded


def _is_padded(text: pl.Expr) -> pl.Expr:
    length = text.str.len_bytes()
    return text.str.contains(r"^\d+$").all() & text.str.contains(r"^0\d").any() & (length.min() == length.max())


def grouped_columns(text: pl.DataFrame, settled: pl.DataFrame) -> list[str]:
    """Columns with dots between thousands, in text where others have decimal commas: no decimal points."""
    read = [name for name, dtype in settled.schema.items() if dtype == pl.Float64 and text.schema[name] == pl.String]
    if not any(text[name].str.contains(",", literal=True).any() for name in read):
        return []
    grouped = (name for name in read if text[name].str.contains(r"^\s*-?\d{1,3}(\.\d{3})*\s*$").all())
    return [name for name in grouped if text[name].str.contains(".", literal=True).any()]


def settle_types(table: pl.LazyFrame, readings: Mapping[str, Reading], texts: Collection[str] = ()) -> pl.LazyFrame:
    """The table with each text column, but for `texts`, read as the first of `readings` that fits all of its values.

    The first rows only rule readings out; what is left is held against all rows. A column without any value is numeric.
    """
    schema = table.collect_schema()
    read = {name for name, dtype in schema.items() if dtype == pl.String and name not in texts}
    candidates = {name: list(readings) if name in read else [] for name in schema}
    if read:
        candidates = _that_fit(table.head(_PRUNING_ROWS), candidates, readings)[0]
    fitting, num_values = _that_fit(table, candidates, readings)
    return table.with_columns(
        pl.lit(None, pl.Float64).alias(name) if not num_values[name] else readings[left[0]](pl.col(name)).alias(name)
        for name, left in fitting.items()
        if left or not num_values[name]
    ).with_columns(
        finite(pl.col(name)) for name, left in fitting.items() if left[:1] in (["number"], ["decimal_comma"])
    )


def _that_fit(
    table: pl.LazyFrame, candidates: dict[str, list[str]], readings: Mapping[str, Reading]
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Per column the candidates that read every value, and its number of values."""
    fitting: dict[str, list[str]] = {}
    num_values: dict[str, int] = {}
    names = list(candidates)
    for start in range(0, len(names), _COLUMNS_AT_ONCE):
        part = {name: candidates[name] for name in names[start : start + _COLUMNS_AT_ONCE]}
        counts = _counts(table, part, readings)
        for name, tried in part.items():
            num_values[name], *read = counts[: len(tried) + 1]
            del counts[: len(tried) + 1]
            fitting[name] = [reading for reading, count in zip(tried, read, strict=True) if count == num_values[name]]
    return fitting, num_values


def _counts(table: pl.LazyFrame, tried: Mapping[str, Iterable[str]], readings: Mapping[str, Reading]) -> list[Any]:
    expressions = [
        expression.count()
        for name, candidates in tried.items()
        for expression in (pl.col(name), *(readings[reading](pl.col(name)) for reading in candidates))
    ]
    numbered = [expression.alias(str(place)) for place, expression in enumerate(expressions)]
    return list(table.select(numbered).collect(engine="streaming").row(0))
