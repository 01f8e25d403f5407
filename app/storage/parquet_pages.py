"""A look at the headers of a Parquet file's pages, before polars takes the memory that they ask for.

A length of less than nothing is an allocation that fails there, and ends the process. Headers are structs in Thrift's
compact protocol (https://parquet.apache.org/docs/file-format, https://github.com/apache/thrift/tree/master/doc/specs).
"""

from pathlib import Path
from typing import Any, BinaryIO

from app.errors import TooLarge, Unparseable

MAX_PAGE_BYTES = 2**29
_HEADER_BYTES = (2**10, 2**20)  # most have some 20; statistics of long texts make them long
_MAX_DEPTH = 16
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
_INTEGERS = (4, 5, 6)
_OUTSIDE = "the Parquet file is broken: a length in it is wrong"


class Compact:
    """Reads a struct as its fields by number; lists as lists. Raises IndexError where the bytes end too early."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def varint(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self.data[self.place]
            self.place += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise Unparseable(_OUTSIDE)

    def integer(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def skip(self, num_bytes: int) -> None:
        if num_bytes > len(self.data) - self.place:
            raise IndexError(num_bytes)
        self.place += num_bytes

    def struct(self, depth: int = 0) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while head := self.data[self.place]:
            self.place += 1
            number = number + (head >> 4) if head >> 4 else self.integer()
            kind = head & 15
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self.value(kind, depth)
        self.place += 1
        return fields

    def value(self, kind: int, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise Unparseable(_OUTSIDE)
        if kind in _INTEGERS:
            return self.integer()
        if kind in (_TRUE, _FALSE, _BYTE):
            return self.skip(1)
        if kind == _DOUBLE:
            return self.skip(8)
        if kind == _BINARY:
            return self.skip(self.varint())
        if kind in (_LIST, _SET):
            head = self.data[self.place]
            self.place += 1
            count = self.varint() if head >> 4 == 15 else head >> 4
            if count > len(self.data) - self.place:
                raise Unparseable(_OUTSIDE)
            return [self.value(head & 15, depth + 1) for _ in range(count)]
        if kind == _STRUCT:
            return self.struct(depth + 1)
        raise Unparseable(_OUTSIDE)  # a map, which Parquet has none of


def check_parquet(path: Path) -> None:
    """Raises Unparseable, TooLarge."""
    num_bytes = path.stat().st_size
    try:
        with path.open("rb") as file:
            file.seek(max(0, num_bytes - 8))
            length = int.from_bytes(file.read(4), "little")
            if not 0 < length <= num_bytes - 12:
                raise Unparseable("the Parquet file is cut off, or a length in it is wrong")
            file.seek(num_bytes - 8 - length)
            for group in Compact(file.read(length)).struct()[4]:
                for column in group[1]:
                    if 3 in column:
                        _check_column(file, column[3], num_bytes)
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise Unparseable("the Parquet file is broken: a header is cut off or lacks what it must have") from error


def _check_column(file: BinaryIO, column: dict[int, Any], num_bytes: int) -> None:
    """The pages of a column's chunk, one after another."""
    starts = [start for start in (column[9], column.get(11, 0)) if start > 0]
    if min(column[5], column[6], column[7]) < 0 or not starts:
        raise Unparseable(_OUTSIDE)
    place, num_left = min(starts), column[5]
    end = min(place + column[7], num_bytes)
    while place < end and num_left > 0:
        page, num_header_bytes = _page_at(file, place)
        num_values = page.get(5, page.get(8, {1: 0}))[1]
        lengths = [
            page[2],
            page[3],
            num_values,
            page.get(7, {1: 0})[1],
            *map(page.get(8, {}).get, (2, 3, 5, 6), [0] * 4),
        ]
        place += num_header_bytes + page[3]
        if min(lengths) < 0 or num_values > num_left or place > num_bytes or lengths[3] > 8 * page[2]:
            raise Unparseable(_OUTSIDE)
        if page[2] > MAX_PAGE_BYTES:
            raise TooLarge(f"a page of the Parquet file unpacks to {page[2]} bytes, which is too large")
        num_left -= num_values


def _page_at(file: BinaryIO, place: int) -> tuple[dict[int, Any], int]:
    """A page's header, and its length."""
    for num_bytes in _HEADER_BYTES:
        file.seek(place)
        reader = Compact(file.read(num_bytes))
        try:
            return reader.struct(), reader.place
        except IndexError:
            continue
    raise IndexError(place)
