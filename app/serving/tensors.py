"""Tensors of the Open Inference Protocol: their datatypes, and their two forms on the wire.

Binary tensors are row-major and little-endian; a BYTES element is a length of four bytes, then so many bytes.
Numbers become an array of the tensor's shape, text a series of its elements in row-major order.
https://github.com/kserve/open-inference-protocol
"""

import math
import reprlib
import struct
from collections.abc import Iterable, Sequence
from itertools import chain
from types import NoneType
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from app.errors import InvalidInput, ShapeMismatch

Numbers = NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(code)
    for name, code in {
        "BOOL": "?",
        "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
        "INT8": "i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
        "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
    }.items()
}  # fmt: skip
"""Datatypes of numbers; besides them there is BYTES."""

_LENGTH = struct.Struct("<I")


class Tensor(NamedTuple):
    """A named tensor; `values` is an array of `shape`, or for BYTES a series of text with nulls where it is missing."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Numbers | pl.Series


def check_datatype(datatype: str, pointer: str) -> None:
    """Raise InvalidInput for a datatype that is not spoken here."""
    if datatype not in DTYPES and datatype != "BYTES":
        raise InvalidInput.at(pointer, f"there is no datatype {datatype!r}; there are {', '.join(DTYPES)} and BYTES")


# ---- binary


def from_bytes(datatype: str, shape: Sequence[int], data: memoryview, pointer: str) -> Numbers | pl.Series:
    """A tensor's values out of its bytes; numbers are a view of them.

    Raises:
        ShapeMismatch, InvalidInput
    """
    count = math.prod(shape)
    if datatype == "BYTES":
        return _texts(data, count, pointer)
    dtype = DTYPES[datatype]
    if count * dtype.itemsize != len(data):
        raise ShapeMismatch.at(
            pointer,
            f"{datatype} of shape {list(shape)} takes {count * dtype.itemsize} bytes; there are {len(data)}",
        )
    if datatype == "BOOL":  # a byte that is neither 0 nor 1 would be no valid bool
        return _shaped(np.not_equal(np.frombuffer(data, np.uint8), 0), shape, pointer)
    return _shaped(np.frombuffer(data, dtype), shape, pointer)


def _shaped(elements: Numbers, shape: Sequence[int], pointer: str) -> Numbers:
    """As many elements as the shape says; of none, it can still be larger than any array may be."""
    try:
        return elements.reshape(shape)
    except ValueError as error:
        raise ShapeMismatch.at(pointer, f"no array can have the shape {list(shape)}") from error


def _texts(data: memoryview, count: int, pointer: str) -> pl.Series:
    found: list[str] = []
    offset, end = 0, len(data)
    while offset < end:
        if len(found) == count:
            raise ShapeMismatch.at(pointer, f"the shape is of {count} texts, and there are more than that")
        start = offset + _LENGTH.size
        offset = start + _LENGTH.unpack_from(data, offset)[0] if start <= end else end + 1
        if offset > end:
            raise InvalidInput.at(pointer, f"text number {len(found)} goes beyond the tensor's {end} bytes")
        try:
            found.append(str(data[start:offset], "utf-8"))
        except UnicodeDecodeError as error:
            raise InvalidInput.at(pointer, f"text number {len(found)} is not UTF-8") from error
    if len(found) != count:
        raise ShapeMismatch.at(pointer, f"the shape is of {count} texts, and there are {len(found)}")
    return pl.Series(found, dtype=pl.String)


def to_bytes(values: Numbers | Iterable[bytes]) -> bytes:
    """The bytes of an array, or of texts in UTF-8."""
    if isinstance(values, np.ndarray):
        return np.ascontiguousarray(values).tobytes()
    return b"".join(values)


def length_prefixed(text: str) -> bytes:
    """A BYTES element."""
    encoded = text.encode()
    return _LENGTH.pack(len(encoded)) + encoded


# ---- JSON

_FLOATS: frozenset[type] = frozenset({int, float, bool, NoneType})
_TAKES: dict[str, tuple[frozenset[type], str]] = {
    "BOOL": (frozenset({bool}), "true and false"),
    "BYTES": (frozenset({str, NoneType}), "text"),
    **dict.fromkeys(("FP16", "FP32", "FP64"), (_FLOATS, "numbers")),
}
_WHOLE: tuple[frozenset[type], str] = (frozenset({int}), "whole numbers")


def from_json(datatype: str, shape: Sequence[int], data: Any, pointer: str) -> Numbers | pl.Series:
    """A tensor's values out of JSON, flat or nested; null is a missing number or text.

    Raises:
        ShapeMismatch, InvalidInput
    """
    if not isinstance(data, list):
        raise InvalidInput.at(pointer, "the data must be an array")
    flat = _flat(data, shape, pointer)
    types, words = _TAKES.get(datatype, _WHOLE)
    if not types.issuperset(map(type, flat)):
        index, wrong = next((index, value) for index, value in enumerate(flat) if type(value) not in types)
        raise InvalidInput.at(pointer, f"element {index} is {_show(wrong)}; {datatype} takes {words}")
    if datatype == "BYTES":
        return pl.Series(flat, dtype=pl.String)
    try:
        with np.errstate(over="raise"):
            return _shaped(np.array(flat, dtype=DTYPES[datatype]), shape, pointer)
    except (OverflowError, FloatingPointError) as error:
        raise InvalidInput.at(pointer, f"a number is out of the range of {datatype}") from error


def _show(value: Any) -> str:
    return repr((reprlib.repr(value) if isinstance(value, (list, dict)) else str(value))[:40])


def _flat(data: list[Any], shape: Sequence[int], pointer: str) -> list[Any]:
    """The elements in row-major order. Lists within lists must have the lengths that the shape says."""
    for size in shape[1:]:
        if not data or type(data[0]) is not list:
            break
        if set(map(type, data)) != {list} or set(map(len, data)) != {size}:
            raise ShapeMismatch.at(pointer, f"the arrays within arrays don't have the shape {list(shape)}")
        data = list(chain.from_iterable(data))
    if len(data) != math.prod(shape):
        raise ShapeMismatch.at(pointer, f"the shape {list(shape)} is of {math.prod(shape)} elements, not {len(data)}")
    return data


# ---- as a column


def column_of(tensor: Tensor) -> pl.Series:
    """The elements as a series of numbers, booleans or text."""
    if isinstance(tensor.values, pl.Series):
        return tensor.values.alias(tensor.name)
    return pl.Series(tensor.name, tensor.values.ravel())
