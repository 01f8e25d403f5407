import datetime as dt

import orjson
import polars as pl
import pytest

from app.errors import GradserveError, InvalidInput, TooLarge, Unparseable
from app.storage.json_types import json_fault
from tests.unit.storage.reading import read


def test_keys_may_come_late_and_in_any_order() -> None:
    lines = ['{"a": 1, "b": "x"}'] * 2000 + ['{"c": true, "b": null, "a": 2.5}', "", '  {"when": "2020-01-02"}  ']
    got = read("\n".join(lines).encode())
    assert got.schema == {"a": pl.Float64, "b": pl.String, "c": pl.Boolean, "when": pl.Datetime("us")}
    assert got.rows()[-2:] == [(2.5, None, True, None), (None, None, None, dt.datetime(2020, 1, 2))]
    assert got.height == 2002


def test_a_byte_order_mark_and_other_line_ends() -> None:
    assert read(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}').to_dicts() == [{"a": 1}, {"a": 2}]


def test_integers_too_large_for_64_bits_are_decimals() -> None:
    assert read(b'{"a": 1}\n{"a": 18446744073709551615}\n')["a"].to_list() == [1.0, 2.0**64]


def test_a_column_of_nulls_is_a_numeric_one() -> None:
    assert read(b'{"a": null, "b": 1}\n')["a"].dtype == pl.Float64


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (
            b'{"a": 1}\n{"a": "x"}',
            InvalidInput,
            "line 2, column 'a': this is text, but the column's earlier",
        ),
        (b'{"a": 1}\n{"a": true}', InvalidInput, "this is a boolean"),
        (b'{"a": 1}\n{"a": [1]}', InvalidInput, "this is a list"),
        (
            b'{"a": {"b": 1}}',
            InvalidInput,
            "line 1, column 'a': this is an object; a value is a number, text, a boolean or null; pandas writes rows",
        ),
        (b'{"a": 1}\n{"a": \n1}', Unparseable, "line 2 is not JSON"),
        (b'{"a": 1}\n[1]', Unparseable, "line 2 is a list; every line is one object"),
        (b'{"a": 1}\n{"a": NaN}', Unparseable, "where 'NaN}' stands; a value that is missing or not finite is null"),
        (b'{"a": 1}\n{"a": "\xe9"}', Unparseable, "line 2 is not JSON (it is not UTF-8, which JSON must be)"),
        (b'{"a": 1} {"a": 2}', Unparseable, "line 1 is not JSON"),
        (b"{}\n{}", InvalidInput, "no columns"),
        (b'{"": 1}', InvalidInput, "column 1 has no name"),
        (b'{"a": "' + b"x" * 2**24 + b'"}', Unparseable, "line 1 is longer than"),
        (b"".join(b'{"c%d": 1}\n' % n for n in range(100)) + b"{}\n" * 200_000, TooLarge, "too sparse"),
        (b"{" + b",".join(b'"c%d": 1' % n for n in range(101)) + b"}", TooLarge, "101 columns; at most 100"),
    ],
    ids=range(14),
)
def test_what_is_wrong_is_said_with_its_line(content: bytes, error: type[GradserveError], said: str) -> None:
    with pytest.raises(error) as caught:
        read(content, max_bytes=2**25)
    assert said in caught.value.detail


def test_too_little_memory_is_not_told_as_bad_json() -> None:
    with pytest.raises(MemoryError):
        json_fault(orjson.JSONDecodeError("Not enough memory to allocate buffer for parsing", "", 0))
