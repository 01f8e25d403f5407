"""What requests carry: JSON with arrays and frames in it, files, folders, frames."""

import io
import os
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson

from app.client.errors import ClientError, Json
from app.client.frames import ARROW, arrow_stream, is_frame, polars_frame

BLOCK_BYTES = 2**20
HEADERLESS = "text/csv; header=absent"


def json_body(value: Json) -> bytes:
    options = orjson.OPT_SERIALIZE_NUMPY  # NaN becomes null: missing
    try:
        return orjson.dumps(value, _plain, options)
    except TypeError:  # keys such as labels that are numbers, for which all others would take a third longer
        return orjson.dumps(value, _plain, options | orjson.OPT_NON_STR_KEYS)


def _plain(value: Any) -> Any:
    """What orjson doesn't know, as something that it does: frames, tensors, series, pandas' times, …

    Raises:
        TypeError: which orjson turns into one that names the type.
    """
    if is_frame(value):
        return polars_frame(value).to_dicts()
    if type(value).__name__ in ("NAType", "NaTType"):
        return None  # how pandas says that a value is missing
    for method in ("tolist", "to_list", "isoformat"):
        if hasattr(value, method):
            return getattr(value, method)()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError


def body_of(source: Any) -> tuple[bytes | Iterable[bytes], dict[str, str]]:
    """A file by its path, a version's folder as a tar, a frame, or bytes as they are; with what is known of them.

    Raises:
        TypeError
    """
    if is_frame(source):
        return arrow_stream(source), {"Content-Type": ARROW}
    if isinstance(source, dict | list | io.TextIOBase) or hasattr(source, "__array__"):
        raise TypeError(f"this takes a frame, the path of a file, or bytes, not a {type(source).__name__}")
    if isinstance(source, bytearray | memoryview):
        return bytes(source), {}
    if not isinstance(source, str | Path):
        content: bytes | Iterable[bytes] = source
        return content, {}
    path = Path(source)
    if not (path.is_dir() or path.is_file()):  # a pipe says no size
        return _blocks(path), {}
    size = path.stat().st_size
    num_bytes, blocks = _packed(path) if path.is_dir() else (size, _whole(path, size))
    return blocks, {"Content-Length": str(num_bytes)}


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from iter(lambda: file.read(BLOCK_BYTES), b"")


def _whole(path: Path, num_bytes: int) -> Iterator[bytes]:
    """A file's blocks; the last one only where the file still ends with it.

    Raises:
        ClientError
    """
    left = num_bytes
    with path.open("rb") as file:
        while left:
            block = file.read(min(left, BLOCK_BYTES))
            left -= len(block)
            if not block or (not left and file.read(1)):
                raise ClientError(
                    f"{path} had {num_bytes} bytes, and was changed while they were sent; send it once it is whole"
                )
            yield block


def _packed(folder: Path) -> tuple[int, Iterator[bytes]]:
    from app.storage.version_archive import pack_folder

    return pack_folder(folder, folder.resolve().name, folder.stat().st_mtime)
