import gzip
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import TooLarge, Unparseable, UnsupportedMedia
from app.storage.formats import check_declared, declared_format, detect_format, gunzip


@pytest.mark.parametrize(
    ("content_type", "found"),
    [
        ("text/csv", "csv"),
        ("text/csv; charset=UTF-8; header=present", "csv"),
        ("Text/Tab-Separated-Values", "csv"),
        ("application/x-ndjson", "ndjson"),
        ("application/jsonl", "ndjson"),
        ("application/vnd.apache.parquet", "parquet"),
        ("application/vnd.apache.arrow.file", "arrow_file"),
        ("application/vnd.apache.arrow.stream", "arrow_stream"),
        ("application/gzip", "gzip"),
        ("application/octet-stream", None),
        ("application/x-www-form-urlencoded", None),
        ("", None),
    ],
)
def test_content_types(content_type: str, found: str | None) -> None:
    assert declared_format(content_type) == found


@pytest.mark.parametrize(
    ("content_type", "encoding", "said"),
    [
        ("image/png", "", "'image/png'"),
        ("application/json", "", "NDJSON"),
        ("multipart/form-data; boundary=x", "", "-T FILE"),
        ("text/csv; charset=latin-1", "", "latin-1"),
        ("text/csv", "br", "'br'"),
    ],
)
def test_what_is_not_spoken_here(content_type: str, encoding: str, said: str) -> None:
    with pytest.raises(UnsupportedMedia, match=said):
        declared_format(content_type, encoding)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"", "empty"),
        (b" \n\n", "empty"),
        (b"PK\x03\x04....", "Excel workbook; unpack it, or save its sheet as CSV UTF-8"),
        (b"\xd0\xcf\x11\xe0....", "Excel workbook; save its sheet as CSV UTF-8"),
        ("a,b".encode("utf-16"), "UTF-16 text; convert it: iconv -f utf-16 -t utf-8 FILE"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b'[{"a": 1}]', "NDJSON"),
        (b"a,b\n\x00\x01", "binary"),
        (b"\x80\x04\x95\x10\x00", "pickle"),
    ],
)
def test_what_is_no_table(head: bytes, said: str) -> None:
    with pytest.raises(Unparseable, match=said):
        detect_format(head)


def test_bytes_must_be_what_they_are_called() -> None:
    with pytest.raises(Unparseable, match="says Parquet, but the bytes look like CSV"):
        check_declared("parquet", detect_format(b"a,b\n1,2\n"))


def unpack(folder: Path, packed: bytes, max_bytes: int = 2**24) -> bytes:
    source, target = folder / "packed", folder / "plain"
    source.write_bytes(packed)
    gunzip(source, target, max_bytes)
    return target.read_bytes()


PARTS = st.lists(st.binary(max_size=300).map(lambda data: data * 20_000), min_size=1, max_size=3)


@given(PARTS, st.integers(0, 40))
def test_gunzip_equals_gzip(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], padding: int) -> None:
    packed = b"".join(map(gzip.compress, parts)) + bytes(padding)
    assert unpack(tmp_path_factory.getbasetemp(), packed) == gzip.decompress(packed)


@given(st.data())
def test_a_broken_gzip_is_said_to_be(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    packed = gzip.compress(bytes(range(256)) * 50)
    cut = packed[: data.draw(st.integers(0, len(packed) - 1))]
    with pytest.raises(Unparseable, match="gzip"):
        unpack(tmp_path_factory.getbasetemp(), cut)
    flipped = bytearray(packed)
    flipped[data.draw(st.integers(10, len(packed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(Unparseable, match="gzip"):
        unpack(tmp_path_factory.getbasetemp(), bytes(flipped))


def test_a_bomb_is_stopped_at_the_limit_in_little_memory(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(2**28))
    tracemalloc.start()
    with pytest.raises(TooLarge, match=f"more than {2**24} bytes"):
        unpack(tmp_path, bomb, max_bytes=2**24)
    assert tracemalloc.get_traced_memory()[1] < 2**23 + len(bomb)
    tracemalloc.stop()
    assert (tmp_path / "plain").stat().st_size <= 2**24
