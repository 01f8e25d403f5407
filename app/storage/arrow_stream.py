"""Arrow IPC streams: written in parts, and made into Arrow IPC files, which are scanned without holding them in memory.

The file format is the stream between two magic words and a footer that says where each message is
(https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format). The footer is a flatbuffer that is small enough to
be laid out by hand: its offsets are relative, so the schema's message is put into it as it is.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import polars as pl

from app.errors import TooLarge, Unparseable

_MAGIC = b"ARROW1"
_CONTINUATION = b"\xff\xff\xff\xff"
_END = _CONTINUATION + bytes(4)
_METADATA_V5 = 4
_SCHEMA, _DICTIONARY, _RECORDS = 1, 2, 3
_BLOCK_BYTES = 2**20
_FREE_GROWTH_BYTES = 2**30
_MAX_GROWTH = 200
_NOT_COMPRESSED = -1


class ArrowParts:
    """One stream out of frames that come one after another: the schema's message comes with the first, `END` last."""

    END = _END

    def __init__(self) -> None:
        self._started = False

    def part(self, frame: pl.DataFrame) -> bytes:
        stream = frame.write_ipc_stream(None, compat_level=pl.CompatLevel.oldest()).getvalue()
        start = 8 + struct.unpack_from("<i", stream, 4)[0] if self._started else 0
        self._started = True
        return stream[start:].removesuffix(_END)


class Message(NamedTuple):
    """One message's metadata: its kind, the position of its header's table, and the length of the body that follows."""

    metadata: bytes
    kind: int
    header: int
    num_body_bytes: int


def write_arrow_file(stream: Path, file: Path) -> None:
    """Raises Unparseable where the stream is cut off or its lengths make no sense, TooLarge where they are a bomb's."""
    try:
        with stream.open("rb") as source, file.open("wb") as target:
            _copy(source, target, stream.stat().st_size)
    except (struct.error, IndexError) as error:
        raise Unparseable("the Arrow stream is broken: a message's header points outside of it") from error


def check_arrow_file(path: Path) -> None:
    """Look through what a file's footer leads to, before anyone takes the memory that its buffers say they need.

    Raises:
        Unparseable, TooLarge
    """
    num_bytes = path.stat().st_size
    try:
        with path.open("rb") as file:
            file.seek(max(0, num_bytes - 10))
            (length,) = struct.unpack_from("<i", file.read(4))
            if not 0 < length <= num_bytes - 10:
                raise Unparseable("the Arrow file is cut off, or a length in it is wrong")
            file.seek(num_bytes - 10 - length)
            for start, num_metadata_bytes, num_body_bytes in _blocks(file.read(length)):
                if min(start, num_metadata_bytes, num_body_bytes) < 0 or start > num_bytes:
                    raise Unparseable("the Arrow file is broken: its footer points outside of it")
                file.seek(start)
                prefix = file.read(8)
                here = 8 if prefix.startswith(_CONTINUATION) else 4
                file.seek(start + here)
                message = _parse(file.read(min(num_metadata_bytes, num_bytes)))
                file.seek(start + num_metadata_bytes)
                _check_buffers(message._replace(num_body_bytes=num_body_bytes), file)
    except (struct.error, IndexError, OverflowError) as error:
        raise Unparseable("the Arrow file is broken: a header points outside of it") from error


def _blocks(footer: bytes) -> Iterator[tuple[int, int, int]]:
    """Position, length of the metadata and length of the body of each dictionary and batch of records."""
    (table,) = struct.unpack_from("<I", footer)
    for field in _fields(footer, table)[2:]:
        if field:
            vector = field + struct.unpack_from("<I", footer, field)[0]
            (count,) = struct.unpack_from("<I", footer, vector)
            for place in range(vector + 4, vector + 4 + 24 * count, 24):
                yield struct.unpack_from("<qi4xq", footer, place)


def _check_buffers(message: Message, source: BinaryIO) -> None:
    """Raise for a message, whose body begins where `source` is, if its buffers unpack to more than honest ones do."""
    if message.kind not in (_DICTIONARY, _RECORDS):
        return
    start, batch, metadata = source.tell(), message.header, message.metadata
    if message.kind == _DICTIONARY:
        field = _fields(metadata, batch)[1]
        batch = field + struct.unpack_from("<I", metadata, field)[0]
    _, _, buffers, compression = _fields(metadata, batch)
    if not buffers or not compression:
        return
    vector = buffers + struct.unpack_from("<I", metadata, buffers)[0]
    left = max(_FREE_GROWTH_BYTES, _MAX_GROWTH * message.num_body_bytes)
    for place in range(vector + 4, vector + 4 + 16 * struct.unpack_from("<I", metadata, vector)[0], 16):
        offset, length = struct.unpack_from("<qq", metadata, place)
        if length == 0:
            continue
        if offset < 0 or not 8 <= length <= message.num_body_bytes - offset:
            raise Unparseable("the Arrow data are broken: a buffer is outside of its message")
        source.seek(start + offset)
        (size,) = struct.unpack("<q", source.read(8))
        if size < _NOT_COMPRESSED:
            raise Unparseable("the Arrow data are broken: a buffer has a length of less than nothing")
        left -= max(size, 0)
        if left < 0:
            raise TooLarge("the Arrow data unpack to far more than their size, which is too large")
    source.seek(start)


def _copy(source: BinaryIO, target: BinaryIO, num_bytes: int) -> None:
    target.write(_MAGIC.ljust(8, b"\0"))
    schema = None
    blocks: dict[int, list[bytes]] = {_DICTIONARY: [], _RECORDS: []}
    while message := _read_message(source, num_bytes):
        block = struct.pack("<qi4xq", target.tell(), 8 + len(message.metadata), message.num_body_bytes)
        if message.kind == _DICTIONARY and blocks[_RECORDS]:
            raise Unparseable("the Arrow stream changes a dictionary midway; write that column as text, or use Parquet")
        if message.kind in blocks:
            blocks[message.kind].append(block)
        elif message.kind == _SCHEMA and schema is None:
            schema = message
        _check_buffers(message, source)
        target.write(_CONTINUATION + struct.pack("<i", len(message.metadata)) + message.metadata)
        _copy_body(source, target, message.num_body_bytes)
    if schema is None:
        raise Unparseable("the Arrow stream has no schema")
    footer = _footer(schema, blocks[_DICTIONARY], blocks[_RECORDS])
    target.write(_END + footer + struct.pack("<i", len(footer)) + _MAGIC)


def _read_message(source: BinaryIO, num_bytes: int) -> Message | None:
    """The next message up to its body; None at the end of the stream."""
    prefix = source.read(8)
    if prefix in (b"", _END):
        return None
    if len(prefix) < 8 or not prefix.startswith(_CONTINUATION):
        raise Unparseable("the Arrow stream is broken: a message does not begin where it should")
    (length,) = struct.unpack_from("<i", prefix, 4)
    if not 0 < length <= num_bytes - source.tell() or length % 8:
        raise Unparseable("the Arrow stream is cut off, or a length in it is wrong")
    message = _parse(source.read(length))
    if not 0 <= message.num_body_bytes <= num_bytes - source.tell():
        raise Unparseable("the Arrow stream is cut off, or a length in it is wrong")
    return message


def _parse(metadata: bytes) -> Message:
    """The table `Message { version, header_type, header, bodyLength }` of a flatbuffer."""
    (table,) = struct.unpack_from("<I", metadata)
    _, kind_at, header_at, length_at = _fields(metadata, table)
    if not (kind_at and header_at):
        raise Unparseable("the Arrow stream is broken: a message has no header")
    (to_header,) = struct.unpack_from("<I", metadata, header_at)
    num_body_bytes = struct.unpack_from("<q", metadata, length_at)[0] if length_at else 0
    return Message(metadata, metadata[kind_at], header_at + to_header, num_body_bytes)


def _fields(metadata: bytes, table: int) -> list[int]:
    """Where the first four fields of a table are; 0 for one that has its default and is left out."""
    (to_vtable,) = struct.unpack_from("<i", metadata, table)
    vtable = table - to_vtable
    (num_vtable_bytes,) = struct.unpack_from("<H", metadata, vtable)
    num_fields = min(4, (num_vtable_bytes - 4) // 2)
    offsets = struct.unpack_from(f"<{num_fields}H", metadata, vtable + 4)
    return [table + offset if offset else 0 for offset in (*offsets, 0, 0, 0, 0)[:4]]


def _copy_body(source: BinaryIO, target: BinaryIO, num_bytes: int) -> None:
    target.writelines(source.read(min(_BLOCK_BYTES, num_bytes - start)) for start in range(0, num_bytes, _BLOCK_BYTES))


def _footer(schema: Message, dictionaries: list[bytes], batches: list[bytes]) -> bytes:
    """The table `Footer { version, schema, dictionaries, recordBatches }` as a flatbuffer.

    At 0 stands the offset of the table at 16, at 4 its vtable; then come both vectors (at 36, their blocks aligned to 8
    bytes) and the schema's message.
    """
    batches_at = 44 + 24 * len(dictionaries)
    schema_at = batches_at + 4 + 24 * len(batches)
    vtable = struct.pack("<6H", 12, 20, 4, 8, 12, 16)
    table = struct.pack("<ihxxIII", 12, _METADATA_V5, schema_at + schema.header - 24, 36 - 28, batches_at - 32)
    return b"".join(
        [
            struct.pack("<I", 16),
            vtable,
            table,
            struct.pack("<I", len(dictionaries)),
            *dictionaries,
            struct.pack("<4xI", len(batches)),
            *batches,
            schema.metadata,
        ]
    )
