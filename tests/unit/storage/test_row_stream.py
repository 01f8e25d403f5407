"""Rows of uploads in parts: all of them, once, in their order."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidInput, Unparseable, UnsupportedMedia
from app.storage import blocks, row_stream
from app.storage.formats import Format
from app.storage.row_stream import RowStream, open_rows
from app.storage.uploads import Upload

TEXT = st.text(st.sampled_from('ab,"\n;'), min_size=1, max_size=6).filter(lambda text: text.strip())
ROWS = st.lists(st.tuples(TEXT, st.integers(0, 9)), min_size=1, max_size=30)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 16)
    monkeypatch.setattr(row_stream, "CELLS_AT_ONCE", 10)


def opened(folder: Path, body: bytes, declared: Format | None = None) -> RowStream:
    upload = Upload(folder, 2**20, declared)
    upload.write(body)
    return open_rows(upload, 100)


def everything(rows: RowStream) -> pl.DataFrame:
    parts = list(rows.parts)
    assert len(parts) > 1
    assert all(tuple(part.columns) == rows.names for part in parts)
    return pl.concat(parts)


@given(rows=ROWS)
def test_quoted_line_ends_do_not_end_a_row(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int]]
) -> None:
    table = pl.DataFrame({"text": [text for text, _ in rows], "number": [number for _, number in rows]})
    body = table.write_csv(quote_style="non_numeric").encode()
    found = pl.concat(opened(tmp_path_factory.mktemp("upload"), body).parts)
    assert found["text"].to_list() == [text.strip() for text, _ in rows]
    assert found["number"].to_list() == [str(number) for _, number in rows]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_stays_text(tmp_path: Path, end: str) -> None:
    body = end.join(["a;b", *(f"0{row};NA" for row in range(9)), ""])
    rows = opened(tmp_path, body.encode(), "csv")
    assert (rows.untyped, rows.decimal_comma) == (True, True)
    assert everything(rows).rows() == [(f"0{row}", None) for row in range(9)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_row_comes_but_for_blank_lines_and_what_spreadsheets_leave_at_the_end(tmp_path: Path, end: str) -> None:
    lines = ["a,b", "", "1,2", ",", "", ",", "NA,?", '"x', "", 'y",3', *[","] * 40, "4,5", "", *[","] * 40, ""]
    found = pl.concat(opened(tmp_path, end.join(lines).encode()).parts)
    text = f"x{end}{end}y"
    missing = (None, None)
    assert found.rows() == [("1", "2"), *[missing] * 3, (text, "3"), *[missing] * 40, ("4", "5")]


def test_a_single_column_has_a_row_a_line(tmp_path: Path) -> None:
    assert pl.concat(opened(tmp_path, b"a\n1\n\n2\n").parts).rows() == [("1",), (None,), ("2",)]


@pytest.mark.parametrize("form", ["file", "stream"])
def test_arrow(tmp_path: Path, form: str) -> None:
    table = pl.DataFrame(
        {"a": range(57), "b": [f"text {row}" for row in range(57)], "c": [row * 0.5 for row in range(57)]}
    )
    body = tmp_path / "table.arrow"
    table.write_ipc(body) if form == "file" else table.write_ipc_stream(body)
    rows = opened(tmp_path, body.read_bytes())
    assert not rows.untyped
    assert everything(rows).equals(table)


@pytest.mark.parametrize(
    ("body", "declared", "error"),
    [
        (b"a,b\n1,2\n1\n", "csv", Unparseable),
        (b"a,a\n1,2\n", "csv", InvalidInput),
        (b"", "csv", Unparseable),
        (b"a\n\xff\n", "csv", Unparseable),
        (b'{"a": 1}\n', None, UnsupportedMedia),
        (b"\xff\xff\xff\xff\x10\0\0\0", "arrow_stream", Unparseable),
        (b"a,b\n1,2\n", "arrow_stream", Unparseable),
    ],
)
def test_what_is_wrong_is_said_before_the_first_row(
    tmp_path: Path, body: bytes, declared: Format | None, error: type[Exception]
) -> None:
    with pytest.raises(error):
        opened(tmp_path, body, declared)
