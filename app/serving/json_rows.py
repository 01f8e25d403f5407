"""The rows of a large JSON body, a part at a time: numbers straight into an array, anything else as lists and objects.

Parsing holds Python's lock, so a body of 100 MB that was parsed in one piece would stop the event loop for a second,
whatever thread did it. And of plain numbers no Python object need be made: simdjson takes a quarter of orjson's time.
Shape suffixes: N rows, K numbers.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import orjson
import simdjson
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.errors import InvalidInput, TooLarge, Unparseable
from app.serving.encode import encode_numbers, encode_rows
from app.serving.served_model import ServedModel
from app.storage.json_types import check_memory

PART_BYTES = 2**19  # parsed in a few milliseconds
ROWS_AT_ONCE = 10_000  # of an answer
_INPUTS = re.compile(rb'(?<!\\)"inputs"\s*:\s*\[')
_BETWEEN_ROWS = re.compile(rb"[\]}]\s*,")
_OPENS, _CLOSES = b"[", b"]"

_threads = threading.local()  # a parser is used again, and its memory with it


class Body(NamedTuple):
    """`head`: the object that the body is, with null for `inputs`; `rows`: the text between the brackets of those."""

    head: dict[str, Any]
    rows: memoryview


def cut(body: bytes | bytearray) -> Body | None:
    """The two parts of a body, or None where it takes a full parse to find them.

    A quote within a JSON string has a backslash before it, so `"inputs":` without one is a key. That it is one of the
    outermost object, and that no other `]` follows the rows, shows when the head and the rows are parsed.
    """
    begin, end = _INPUTS.search(body), body.rfind(_CLOSES)
    if begin is None or end < begin.end():
        return None
    try:
        head = orjson.loads(body[: begin.end() - 1] + b"null" + body[end + 1 :])
    except orjson.JSONDecodeError:
        return None
    if not isinstance(head, dict) or head.get("inputs", 0) is not None:
        return None
    return Body(head, memoryview(body)[begin.end() : end])


def parts(rows: memoryview) -> Iterator[bytes]:
    """JSON arrays of some rows each, which together are all of them.

    The text is cut behind a closing bracket with a comma after it. Where that was within a row or a text, the part has
    a bracket or a quote too many and does not parse.
    """
    start = 0
    while between := _BETWEEN_ROWS.search(rows, start + PART_BYTES):
        yield b"".join((_OPENS, rows[start : between.start() + 1], _CLOSES))
        start = between.end()
    yield b"".join((_OPENS, rows[start:], _CLOSES))


def encode_parts(model: ServedModel, rows: memoryview, max_rows: int) -> Tensor:
    """Rows to `[N, F]`, as `encode_rows` does it.

    Raises:
        Unparseable, ShapeMismatch, UnknownColumn, InvalidInput, TooLarge
    """
    features, signature = model.model.features, model.model.signature
    plain = all(column.kind == "numeric" for column in signature.inputs)
    encoded: list[Tensor] = []
    num_rows = 0
    for part in parts(rows):
        numbers_NK = _numbers(part, len(signature.inputs)) if plain else None
        if numbers_NK is not None:
            with _counted_from(num_rows):
                encoded.append(encode_numbers(features, numbers_NK, "/inputs/{}/{}".format))
        elif values := _values(part):
            with _counted_from(num_rows):
                encoded.append(encode_rows(features, signature, values))
        else:
            everything = _all_values(rows)
            _check_number(len(everything), max_rows)
            return encode_rows(features, signature, everything)
        num_rows += len(encoded[-1])
        _check_number(num_rows, max_rows)
    return torch.cat(encoded)


def _check_number(num_rows: int, max_rows: int) -> None:
    if num_rows > max_rows:
        raise TooLarge(f"there are more than the {max_rows} rows that one request may have")


def _values(part: bytes) -> list[Any] | None:
    """A part's rows; None where it isn't JSON by itself."""
    try:
        values: list[Any] = orjson.loads(part)
    except orjson.JSONDecodeError:
        return None
    return values


def _all_values(rows: memoryview) -> list[Any]:
    try:
        values: list[Any] = orjson.loads(b"".join((_OPENS, rows, _CLOSES)))
    except orjson.JSONDecodeError as error:
        check_memory(error)
        raise Unparseable(f"the inputs are no JSON: {error}") from error
    return values


@contextmanager
def _counted_from(num_rows: int) -> Iterator[None]:
    """Let the pointers of faults count from the body's first row, so many rows before the part's."""
    try:
        yield
    except InvalidInput as error:
        error.faults = tuple(fault._replace(pointer=_later(fault.pointer, num_rows)) for fault in error.faults)
        raise


def _later(pointer: str, num_rows: int) -> str:
    _, name, row, *rest = pointer.split("/")
    return "/".join(["", name, str(int(row) + num_rows), *rest])


def _numbers(part: bytes, width: int) -> NDArray[np.float64] | None:
    """Lists of numbers as `[N, K]`; None where it takes a look at every cell to say what is wrong, or nothing is."""
    if not hasattr(_threads, "parser"):
        _threads.parser = simdjson.Parser()
    try:
        rows = _threads.parser.parse(part)
        widths = set(map(len, rows))
        flat = np.frombuffer(rows.as_buffer(of_type="d"))
    except (ValueError, TypeError):
        return None
    num_lists = np.count_nonzero(np.frombuffer(part, np.uint8) == ord(_OPENS))  # a quarter of what bytes.count takes
    if widths != {width} or num_lists != 1 + len(flat) // width:
        return None
    return flat.reshape(-1, width)


def dump(said: dict[str, Any]) -> bytes:
    """An answer in JSON, a part at a time too; numbers that are not finite are null."""
    members = [_dumps(key) + b":" + _dump_array(value) for key, value in said.items()]
    return b"{" + b",".join(members) + b"}"


def _dump_array(value: Any) -> bytes:
    if isinstance(value, str) or len(value) <= ROWS_AT_ONCE:
        return _dumps(value)
    starts = range(0, len(value), ROWS_AT_ONCE)
    return b"[" + b",".join([_dumps(value[start : start + ROWS_AT_ONCE])[1:-1] for start in starts]) + b"]"


def _dumps(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
