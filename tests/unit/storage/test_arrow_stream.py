import io
import struct
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Literal

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from app.errors import TooLarge, Unparseable
from app.storage.arrow_stream import check_arrow_file, write_arrow_file

FRAME = pl.DataFrame(
    {
        "number": [1, None, 3] * 50,
        "text": ["a", "bc", None] * 50,
        "category": pl.Series(["x", "y", None] * 50, dtype=pl.Categorical),
        "choice": pl.Series(["q", None, "p"] * 50, dtype=pl.Enum(["p", "q"])),
    }
)
DICTIONARY, RECORDS = 2, 3


def stream_of(frame: pl.DataFrame, compression: Literal["uncompressed", "lz4", "zstd"] = "uncompressed") -> bytes:
    """One record batch per chunk of the frame."""
    file = io.BytesIO()
    frame.write_ipc_stream(file, compression=compression)
    return file.getvalue()


def converted(folder: Path, stream: bytes) -> pl.DataFrame:
    source, target = folder / "stream", folder / "file"
    source.write_bytes(stream)
    write_arrow_file(source, target)
    return pl.scan_ipc(target).collect()


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
@pytest.mark.parametrize("num_batches", [0, 1, 3])
def test_the_file_holds_what_the_stream_does(
    tmp_path: Path, compression: Literal["uncompressed", "lz4", "zstd"], num_batches: int
) -> None:
    parts = [FRAME.slice(place * 40, 40) for place in range(num_batches)]
    frame = pl.concat(parts, rechunk=False) if parts else FRAME.clear()
    assert_frame_equal(converted(tmp_path, stream_of(frame, compression)), frame)


def messages(stream: bytes) -> list[tuple[int, bytes]]:
    """The kind and the bytes of each message."""
    found, place = [], 0
    while place < len(stream) - 8:
        (length,) = struct.unpack_from("<i", stream, place + 4)
        metadata = stream[place + 8 : place + 8 + length]
        (table,) = struct.unpack_from("<I", metadata)
        vtable = table - struct.unpack_from("<i", metadata, table)[0]
        size, _, _, kind, _ = struct.unpack_from("<5H", metadata, vtable)
        body = struct.unpack_from("<H", metadata, vtable + 10)[0] if size > 10 else 0
        num_body_bytes = struct.unpack_from("<q", metadata, table + body)[0] if body else 0
        end = place + 8 + length + num_body_bytes
        found.append((metadata[table + kind], stream[place:end]))
        place = end
    return found


def test_a_dictionary_that_changes_midway_is_refused(tmp_path: Path) -> None:
    """As a file, all batches would be read with the last dictionary, which is silently wrong."""
    parts = messages(stream_of(FRAME.select("category")))
    changed = b"".join(part for _, part in parts + [part for part in parts if part[0] in (DICTIONARY, RECORDS)])
    with pytest.raises(Unparseable, match="changes a dictionary midway"):
        converted(tmp_path, changed)


STREAM = stream_of(FRAME)
ENDS = list(accumulate(len(part) for _, part in messages(STREAM)))


@given(st.integers(1, ENDS[-1] - 1).filter(lambda length: length not in ENDS))
def test_a_stream_that_is_cut_off_is_refused(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    with pytest.raises(Unparseable, match="Arrow stream"):
        converted(tmp_path_factory.getbasetemp(), STREAM[:length])


@given(st.dictionaries(st.integers(0, ENDS[0] + 200), st.integers(0, 255), min_size=1, max_size=4))
def test_a_damaged_stream_is_refused_or_copied(
    tmp_path_factory: pytest.TempPathFactory, damage: dict[int, int]
) -> None:
    """What the headers do not show is left to the reader of the file."""
    folder = tmp_path_factory.getbasetemp()
    damaged = bytes(damage.get(place, byte) for place, byte in enumerate(STREAM))
    (folder / "stream").write_bytes(damaged)
    with suppress(Unparseable, TooLarge):
        write_arrow_file(folder / "stream", folder / "file")
        assert (folder / "file").read_bytes().endswith(b"ARROW1")


# ---- buffers that say that they unpack to more than there is memory


def compressed(compression: str, *, stream: bool) -> bytes:
    content = io.BytesIO()
    (FRAME.write_ipc_stream if stream else FRAME.write_ipc)(content, compression=compression)  # type: ignore[operator]
    return content.getvalue()


def looked_through(folder: Path, body: bytes) -> None:
    (folder / "body").write_bytes(body)
    if body.startswith(b"ARROW1"):
        check_arrow_file(folder / "body")
    else:
        write_arrow_file(folder / "body", folder / "file")


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("size", [2**40, 2**62, -2])
def test_a_length_that_lies_is_found_before_memory_is_taken(
    tmp_path: Path, compression: str, stream: bool, size: int
) -> None:
    """Each place that could hold a length gets the lie, and as many as there are buffers did hold one."""
    body = compressed(compression, stream=stream)
    looked_through(tmp_path, body)
    refused = 0
    for place in range(0, len(body) - 8, 8):
        try:
            looked_through(tmp_path, body[:place] + size.to_bytes(8, "little", signed=True) + body[place + 8 :])
        except TooLarge:
            refused += 1
        except Unparseable as error:
            refused += "length of less than nothing" in str(error)
    assert refused >= FRAME.width
