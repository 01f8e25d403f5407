import datetime as dt
import gzip
import io
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.exceptions import ComputeError
from polars.testing import assert_frame_equal

from app.errors import TooLarge
from app.storage import uploads
from tests.unit.storage.reading import profile, read

PENGUINS = Path(__file__).parents[3] / "examples" / "penguins.csv"


def parquet(frame: pl.DataFrame) -> bytes:
    file = io.BytesIO()
    frame.write_parquet(file)
    return file.getvalue()


def arrow(frame: pl.DataFrame) -> bytes:
    file = io.BytesIO()
    frame.write_ipc(file)
    return file.getvalue()


def arrow_stream(frame: pl.DataFrame) -> bytes:
    file = io.BytesIO()
    frame.write_ipc_stream(file)
    return file.getvalue()


def ndjson(frame: pl.DataFrame) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in frame.to_dicts())


def csv(frame: pl.DataFrame) -> bytes:
    return frame.write_csv(datetime_format="%Y-%m-%dT%H:%M:%S%.6f").encode()


# ---- real files


def test_penguins_are_typed_by_their_values() -> None:
    table = profile(PENGUINS.read_bytes())
    assert table.num_rows == 344
    assert {column.name: column.kind for column in table.columns} == {
        "species": "categorical",
        "island": "categorical",
        "bill_length_mm": "numeric",
        "bill_depth_mm": "numeric",
        "flipper_length_mm": "numeric",
        "body_mass_g": "numeric",
        "sex": "categorical",
        "year": "numeric",
    }
    assert [column.num_missing for column in table.columns] == [0, 0, 2, 2, 2, 2, 11, 0]
    assert [column.integral for column in table.columns] == [False, False, False, False, True, True, False, True]


@pytest.mark.parametrize("content_type", ["text/csv", "application/gzip", "application/octet-stream", ""])
def test_gzip_is_seen_from_the_bytes(content_type: str) -> None:
    plain = PENGUINS.read_bytes()
    assert_frame_equal(read(gzip.compress(plain), content_type), read(plain))
    assert_frame_equal(read(gzip.compress(gzip.compress(plain)), content_type), read(plain))


# ---- one table, every format

_NAMES = st.text("abcxyzÄß _", min_size=1, max_size=8).map(str.strip).filter(bool)
_TEXT = st.text("abcdeÄ,;\"'|\t\n#{[ ", min_size=1, max_size=6).map(lambda text: f"t{text}t")
_CELLS: dict[Any, st.SearchStrategy[Any]] = {
    pl.Int64: st.integers(-(2**63), 2**63 - 1),
    pl.Float64: st.floats(allow_nan=False, allow_infinity=False),
    pl.Boolean: st.booleans(),
    pl.String: _TEXT,
    pl.Datetime("us"): st.datetimes(dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31)),
}


@st.composite
def frames(draw: st.DrawFn) -> pl.DataFrame:
    names = draw(st.lists(_NAMES, min_size=2, max_size=5, unique=True))
    num_rows = draw(st.integers(1, 30))
    columns = []
    for name in names:
        dtype = draw(st.sampled_from(list(_CELLS)))
        cells = st.lists(_CELLS[dtype] | st.none(), min_size=num_rows, max_size=num_rows).filter(any_value)
        columns.append(pl.Series(name, draw(cells), dtype=dtype))
    return pl.DataFrame(columns)


def any_value(cells: list[Any]) -> bool:
    return any(cell is not None for cell in cells)


@given(frames())
def test_every_format_gives_the_same_table(frame: pl.DataFrame) -> None:
    for content in (parquet(frame), arrow(frame), arrow_stream(frame), ndjson(frame)):
        assert_frame_equal(read(content), frame, rel_tol=0, abs_tol=0)
    with_values = frame.filter(~pl.all_horizontal(pl.all().is_null()))
    for content in (csv(frame), gzip.compress(csv(frame))):
        assert_frame_equal(read(content), with_values, rel_tol=0, abs_tol=0)


def test_a_file_that_unpacks_to_far_more_than_its_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = parquet(pl.select(x=pl.repeat(True, 10**6), y=pl.lit("a")))
    assert read(content).height == 10**6
    monkeypatch.setattr(uploads, "_FREE_CELLS", 10**6)
    with pytest.raises(TooLarge, match="2000000 cells"):
        read(content)


def test_a_failed_write_that_ends_late_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    write, failed = uploads.write_parquet, list[Path]()

    def late(table: pl.LazyFrame, path: Path) -> None:
        """As polars, of whose threads some may still write into a file when its error has been raised."""
        try:
            write(table, path)
        except ComputeError:
            failed.append(path)
            raise
        failed[0].write_bytes(b"late")

    monkeypatch.setattr(uploads, "write_parquet", late)
    content = b"n\n" + b"1\n" * 2000 + b"many\n"
    assert read(content)["n"].to_list() == ["1"] * 2000 + ["many"]
    assert len(failed) == 1
