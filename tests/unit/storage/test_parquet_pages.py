"""Headers of Parquet pages: those of writers pass, and what lies is refused before anyone takes the memory."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from app.errors import TooLarge, Unparseable
from app.storage.parquet_pages import check_parquet
from app.storage.uploads import Upload, read_upload

FRAME = pl.DataFrame(
    {"a": [1.5, None, 3.5] * 30, "b": ["x", "a long text " * 300, None] * 30, "c": [True, False, None] * 30}
).with_columns(pl.col("b").cast(pl.Categorical).alias("d"), pl.lit(None).alias("e"))
NARROW = FRAME.select("a")


def written(frame: pl.DataFrame, **options: Any) -> bytes:
    content = io.BytesIO()
    frame.write_parquet(content, **options)
    return content.getvalue()


def check(folder: Path, body: bytes) -> None:
    (folder / "body").write_bytes(body)
    check_parquet(folder / "body")


@pytest.mark.parametrize("compression", ["zstd", "snappy", "gzip", "lz4", "uncompressed"])
@pytest.mark.parametrize("options", [{}, {"row_group_size": 7}, {"data_page_size": 100}, {"statistics": False}])
def test_what_was_written_in_earnest_passes(tmp_path: Path, compression: Any, options: dict[str, Any]) -> None:
    for frame in (FRAME, FRAME.head(1), FRAME.head(0), NARROW):
        check(tmp_path, written(frame, compression=compression, **options))


def damaged(body: bytes) -> Iterator[bytes]:
    for place in range(len(body)):
        for patch in (b"\xff", b"\xff\xff\xff\x7f"):
            yield body[:place] + patch + body[place + len(patch) :]


def test_a_file_that_is_damaged_anywhere_is_read_or_refused(tmp_path: Path) -> None:
    """polars would end the process over many of these; that this test comes to its end is what it shows."""
    refused = 0
    for number, body in enumerate(damaged(written(NARROW))):
        folder = tmp_path / str(number)
        folder.mkdir()
        upload = Upload(folder, 2**22, "parquet")
        upload.write(body)
        try:
            read_upload(upload, 10)
        except (Unparseable, TooLarge):
            refused += 1
    assert refused > number / 4


@pytest.mark.parametrize("size", [0, 7, 2**31, 2**32 - 1])
def test_a_footer_of_another_length(tmp_path: Path, size: int) -> None:
    body = written(NARROW)
    with pytest.raises(Unparseable):
        check(tmp_path, body[:-8] + size.to_bytes(4, "little") + body[-4:])


@pytest.mark.parametrize("footer", [b"\x19" * 5000, b"\x1c" * 5000, b"\xff" * 500, b"\x49\xfc" + b"\xff" * 9 + b"\x01"])
def test_a_footer_that_nests_or_never_ends(tmp_path: Path, footer: bytes) -> None:
    with pytest.raises(Unparseable):
        check(tmp_path, b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
