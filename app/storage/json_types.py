"""The type of a column out of the JSON values in it."""

import re
from collections.abc import Iterable
from types import NoneType

import orjson
import polars as pl

from app.errors import TooLarge

_NOT_FINITE = re.compile(r"nan|inf|none", re.IGNORECASE)
_CHARACTERS = 20
_FREE_CELLS = 10_000_000
_MAX_CELLS_PER_VALUE = 20
_DTYPES: dict[type, type[pl.DataType]] = {
    NoneType: pl.Null,
    bool: pl.Boolean,
    int: pl.Int64,
    float: pl.Float64,
    str: pl.String,
}
_WORDS = {
    NoneType: "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}


def check_memory(error: orjson.JSONDecodeError) -> None:
    """Raise MemoryError where orjson had too little, which it tells as if the text were no JSON."""
    if error.msg.startswith("Not enough memory"):
        raise MemoryError from error


def json_fault(error: orjson.JSONDecodeError) -> str:
    """What is no JSON, and what stands there; of bytes that are no text, the error has no document.

    Raises:
        MemoryError: there is none to read it.
    """
    check_memory(error)
    if not error.doc:
        return "it is not UTF-8, which JSON must be"
    there = error.doc[error.pos : error.pos + _CHARACTERS]
    found = f", where {there!r} stands" if there else ""
    return f"{error}{found}" + ("; a value that is missing or not finite is null" if _NOT_FINITE.match(there) else "")


def common_dtype(types: Iterable[type]) -> type[pl.DataType] | None:
    """What a column with values of these Python types is stored as; None where no column can hold them all.

    Integers beside decimals are decimals. Nothing but nulls, or no value at all, is `Null`.
    """
    dtypes = {_DTYPES.get(kind) for kind in types} - {pl.Null}
    if not dtypes:
        return pl.Null
    if dtypes == {pl.Int64, pl.Float64}:
        return pl.Float64
    return dtypes.pop() if len(dtypes) == 1 else None


def check_density(num_cells: int, num_values: int) -> None:
    """Raises TooLarge for objects that have next to no key in common: as a table they would be mostly nothing."""
    if num_cells > max(_FREE_CELLS, _MAX_CELLS_PER_VALUE * num_values):
        raise TooLarge(f"a table of {num_cells} cells for {num_values} values is too sparse; give rows the same keys")


def word_for(kind: type) -> str:
    """A JSON value's type, as people call it."""
    return _WORDS.get(kind, kind.__name__)


def mismatch(kind: type, earlier: Iterable[type]) -> str:
    """Why a value of type `kind` cannot stand below values of the `earlier` types."""
    if kind not in _DTYPES:
        remedy = "; give each of its values a column" if kind is list else ""
        return f"this is {word_for(kind)}; a value is a number, text, a boolean or null{remedy}"
    others = " or ".join(sorted({word_for(other) for other in earlier if other is not NoneType}))
    return f"this is {word_for(kind)}, but the column's earlier values are {others}"
