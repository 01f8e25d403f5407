"""Newline-delimited JSON: one object a line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from app.errors import InvalidInput, Unparseable
from app.storage.columns import check_names
from app.storage.formats import MAX_LINE_BYTES
from app.storage.json_types import check_density, common_dtype, json_fault, mismatch, word_for

_INT64 = range(-(2**63), 2**63)


def scan_ndjson(path: Path, max_columns: int) -> pl.LazyFrame:
    """Columns in the order in which their names turn up, typed by a look at every value; absent keys are missing.

    Raises Unparseable, InvalidInput for values that do not share a column, TooLarge.
    """
    types: dict[str, set[type]] = {}
    num_rows = num_values = 0
    for number, record in _records(path):
        num_rows += 1
        num_values += len(record)
        for name, value in record.items():
            kind = float if type(value) is int and value not in _INT64 else type(value)
            seen = types.setdefault(name, set())
            if kind not in seen:
                if common_dtype({*seen, kind}) is None:
                    hint = "; pandas writes rows with to_json(orient='records', lines=True)" if kind is dict else ""
                    raise InvalidInput.at("", f"line {number}, column {name!r}: {mismatch(kind, seen)}{hint}")
                seen.add(kind)
        if len(types) > max_columns:
            break
    check_names(list(types), max_columns)
    check_density(num_rows * len(types), num_values)
    return pl.scan_ndjson(path, schema={name: common_dtype(seen) or pl.Null for name, seen in types.items()})


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects with the numbers of their lines."""
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
            if len(line) > MAX_LINE_BYTES:
                raise Unparseable(f"line {number} is longer than {MAX_LINE_BYTES} bytes")
            if line.isspace():
                continue
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise Unparseable(
                    f"line {number} is not JSON ({json_fault(error)}); every line is one object"
                ) from error
            if not isinstance(record, dict):
                raise Unparseable(f"line {number} is {word_for(type(record))}; every line is one object")
            yield number, record
