from typing import Any

import pytest

from app.errors import GradserveError, InvalidInput, TooLarge, Unparseable
from tests.unit.storage.reading import read


def rows(content: str | bytes) -> list[dict[str, Any]]:
    return read(content.encode() if isinstance(content, str) else content).to_dicts()


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_dialects(separator: str, line_end: str, mark: str) -> None:
    lines = ["name,height,when", "Ann,1.5,2020-01-02", '"B, ; | \tb",2,2020-01-03', "Cid,,2020-01-04"]
    content = mark + line_end.join(lines).replace(",", separator) + line_end
    got = read(content.encode())
    assert got.columns == ["name", "height", "when"]
    assert got["height"].to_list() == [1.5, 2.0, None]
    assert got["name"][1] == f"B{separator} ; | \tb"


def test_a_separator_that_makes_rows_equally_wide_beats_a_frequent_one() -> None:
    assert rows("a;b\n1,5;x,y,z\n2,5;u\n") == [{"a": 1.5, "b": "x,y,z"}, {"a": 2.5, "b": "u"}]


def test_a_spreadsheet_may_tell_its_separator() -> None:
    assert rows("sep=|\na|b,c\n1|x\n") == [{"a": 1, "b,c": "x"}]


@pytest.mark.parametrize("content_type", ["text/csv; header=absent", 'Text/CSV;charset=utf-8; Header="absent"'])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("5.1,0,false\n4.9,0,true\n", [(5.1, 0, False), (4.9, 0, True)]),
        ("\n\na;1,5\nb;2,5\n\n", [("a", 1.5), ("b", 2.5)]),
        ("sep=|\na|1\n", [("a", 1)]),
        ('"a\nb",1\n"c, ""d""",2\n', [("a\nb", 1), ('c, "d"', 2)]),
        ('a,5" pipe\n"b",6" pipe\n', [("a", '5" pipe'), ("b", '6" pipe')]),
        ("1,,\n2,,\n", [(1, None, None), (2, None, None)]),
        ("0012\n0100\n", [("0012",), ("0100",)]),
        ("1\r2\r", [(1,), (2,)]),
    ],
)
def test_a_file_without_a_header_begins_with_its_rows(content: str, expected: list[Any], content_type: str) -> None:
    found = read(content.encode(), content_type)
    assert found.columns == [f"x{place}" for place in range(found.width)]
    assert found.rows() == expected


def test_rows_of_a_file_without_a_header_are_as_wide_as_the_first() -> None:
    with pytest.raises(Unparseable, match="line 2 has 3 fields, but the first row has 2"):
        read(b"1,2\n3,4,5\n", "text/csv; header=absent")


def test_a_single_column() -> None:
    assert rows("x\n1\n2\n") == [{"x": 1}, {"x": 2}]


def test_blank_lines_and_lines_of_separators_are_no_rows() -> None:
    assert rows("\n\na,b\n1,2\n\n3,4\n,\n\n") == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]


def test_quotes() -> None:
    assert rows('"a ""x""","b\nc"\n"1\n2",3\n"4,5",6\n') == [{'a "x"': "1\n2", "b\nc": 3}, {'a "x"': "4,5", "b\nc": 6}]
    assert rows('size,n\n5" pipe,1\n6" pipe,2\n') == [{"size": '5" pipe', "n": 1}, {"size": '6" pipe', "n": 2}]
    assert rows('size,n\nx"y"z,1\n"q",2\n') == [{"size": 'x"y"z', "n": 1}, {"size": "q", "n": 2}]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_quotes_within_fields_of_a_file_with_quoted_ones(line_end: str) -> None:
    content = line_end.join(["a,b,c", '"x, y",5" pipe,1', '"y",6" pipe,2', ' "z",7,3', ""])
    assert [tuple(row.values()) for row in rows(content)] == [
        ("x, y", '5" pipe', 1),
        ("y", '6" pipe', 2),
        ('"z"', "7", 3),
    ]


def test_separators_at_the_ends_of_lines_are_no_columns() -> None:
    assert rows("a,b,,\n1,2,,\n3,,,\n,,,\n") == [{"a": 1, "b": 2}, {"a": 3, "b": None}]
    assert rows('a;\n1;\n"2\n";""\n') == [{"a": 1}, {"a": 2}]


def test_whole_numbers_that_are_padded_with_zeros_come_back_as_written() -> None:
    assert rows("zip,month,n\n01234,01,007\n98765,12,12\n") == [
        {"zip": "01234", "month": "01", "n": 7},
        {"zip": "98765", "month": "12", "n": 12},
    ]
    late = read(b"zip,n\n" + b"98765,1\n" * 3000 + b"01234,0\n")
    assert (late["zip"][-1], late["n"].sum()) == ("01234", 3000)
    assert rows("x\n0.50\n0\n-1\n") == [{"x": 0.5}, {"x": 0.0}, {"x": -1.0}]


def test_missing_values_as_pandas_and_spreadsheets_write_them() -> None:
    assert rows("a,b\n#N/A,1\n<NA>,1\n#DIV/0!,1\nNaT,1\n2,1\n") == [{"a": None, "b": 1}] * 4 + [{"a": 2, "b": 1}]


def test_spaces_around_values_do_not_count() -> None:
    expected = [{"a": 1, "b": "x", "c": True}, {"a": 2, "b": None, "c": False}]
    assert rows("a, b ,c\n 1, x ,true\n2 ,? , False\n") == expected


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (b"a,b\n1,2\n3,4,5\n", Unparseable, "line 3 has 3 fields, but the header has 2"),
        (b"a,b\n1,2\n\n3\n", Unparseable, "line 4 has 1 fields, but the header has 2"),
        (b'a,b\n"1\n1",2\n3\n', Unparseable, "line 4 has 1 fields"),
        (b"a,b\r1,2\r3\r", Unparseable, "line 3 has 1 fields"),
        (b'a,b\n1,"2\n3,4\n', Unparseable, "unexpected end of data"),
        (b'a,b\n1,"2"2\n3,4\n', Unparseable, "line 2"),
        (b"a,b,a\n1,2,3\n", InvalidInput, "columns 1 and 3 are both named 'a'"),
        (b"a, a\n1,2\n", InvalidInput, "columns 1 and 2 are both named 'a'"),
        (b"5.1,0,0\n4.9,0,1\n", InvalidInput, "both named '0'; names must differ; the first line must have the names"),
        (b",a\n1,2\n", InvalidInput, "column 1 has no name; with pandas"),
        (b"a,,\n1,,\n2,,x\n", InvalidInput, "column 3 has no name, but values, such as 'x'"),
        (b",,\n1,2,3\n", InvalidInput, "column 1 has no name"),
        (b"a" + b"," * 100 + b"\n1" + b"," * 100, TooLarge, "101 columns; at most 100"),
        (b"a,b\n", InvalidInput, "no rows"),
        (b"a,b1,23,4", InvalidInput, "no rows; all of it is one line: if the file has more, curl -d took"),
        (
            b",".join(b"%d" % place for place in range(101)),
            TooLarge,
            "101 columns; at most 100 are allowed; all of it is one line",
        ),
        (b"a,b\n,\n", InvalidInput, "no rows"),
        (b"x" * 1001 + b",b\n1,2\n", InvalidInput, "the name of column 1 is longer than 1000"),
        (",".join(map(str, range(101))).encode() + b"\n1\n", TooLarge, "101 columns; at most 100"),
        ("a,b\n1,2\né,4\n".encode("latin-1"), Unparseable, "not UTF-8 (line 3)"),
        (b"a,b\n" + b"1,2\n" * 300_000 + b"\xe9,4\n", Unparseable, "not UTF-8 (line 300002)"),
        (b"a" * 2**21, Unparseable, "first line is longer"),
        (b"a,b\n1," + b"2" * 2**23 * 5, Unparseable, "a line longer than"),
    ],
    ids=range(23),
)
def test_what_is_wrong_is_said_with_its_place(content: bytes, error: type[GradserveError], said: str) -> None:
    with pytest.raises(error) as caught:
        read(content, max_bytes=2**26)
    assert said in caught.value.detail
