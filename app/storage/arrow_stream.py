"""Arrow IPC streams: written in parts, and made into Arrow IPC files, which are scanned without holding them in memory.

The file format is the stream between two magic words and a footer that says where each message is
(https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format). The footer is a flatbuffer that is small enough to
be laid out by hand: its offsets are relative, so the schema's message is put into it as it is.
"""

import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

import polars as pl

from app.errors import Unparseable

_MAGIC = b"ARROW1"
_CONTINUATION = b"\xff\xff\xff\xff"
_END = _CONTINUATION + bytes(4)
_METADATA_V5 = 4
_SCHEMA, _DICTIONARY, _RECORDS = 1, 2, 3
_BLOCK_BYTES = 2**20


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
    """Raises Unparseable where the stream is cut off or its lengths make no sense."""
    try:
        with stream.open("rb") as source, file.open("wb") as target:
            _copy(source, target, stream.stat().st_size)
    except (struct.error, IndexError) as error:
        raise Unparseable("the Arrow stream is broken: a message's header points outside of it") from error


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
