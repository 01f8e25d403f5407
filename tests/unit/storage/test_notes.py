import polars as pl
import pytest

from app.storage.profile import MAX_SEARCHED, profile_table
from tests.samples import DIGEST
from tests.unit.storage.reading import column, parquet


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["1", "2", "-"], "of 3 values, all but 1 are numbers, and in row 3 stands '-'"),
        ([*map(str, range(2000)), "", "x"], "of 2001 values, all but 1 are numbers, and in row 2002 stands 'x'"),
        (['"1,234.56"', "12.50"], "values such as '1,234.56' look like numbers"),
        (["12.50", '"1,234.56"'], "values such as '1,234.56' look like numbers"),
        (["12%", "3.5 %"], "values such as '12%' look like numbers"),
        (["$1", "$2.50"], "values such as '$1' look like numbers"),
        (["31.01.2026", "1.2.26"], "values such as '31.01.2026' look like dates"),
        (["01/31/2026 1:30 PM", "02/28/2026 1:31 AM"], "look like dates"),
        (["31-Jan-2026", '"Feb 3, 2026"'], "look like dates"),
        (["1", "2", "a", "3"], "in row 3 stands 'a'; leave out lines of names but the first"),
    ],
    ids=range(10),
)
def test_text_that_may_have_been_meant_as_something_else(cells: list[str], said: str) -> None:
    note = column("\n".join(["a,b", *(f"{cell},k" for cell in cells)]).encode(), "a").note
    assert note
    assert said in note


@pytest.mark.parametrize(
    "cells",
    [["x", "y"], ["A1", "2", "B3"], ["yes", "no"], ["1.2.3", "1.2.4"], ["01", "02"], ["1", "2"], ["2026-01-31"], [""]],
    ids=str,
)
def test_what_is_as_it_seems_has_no_note(cells: list[str]) -> None:
    assert column("\n".join(["a,b", *(f"{cell},k" for cell in cells)]).encode(), "a").note is None


@pytest.mark.parametrize(
    ("cells", "other", "is_text"),
    [
        (["916", "4.926", "1.234.567"], "2,5", True),
        ([*["4.926"] * 2000, "12.5"], "2,5", True),
        (["916", "4.926", "1.234.567"], "2.5", True),
        (["916", "4.926", "-1.5"], "2,5", False),
        (["916", "4.926"], "2.5", False),
        (["916", "817"], "2,5", False),
        (["916", "4,926"], "2,5", False),
    ],
    ids=range(7),
)
def test_dots_beside_decimal_commas_are_no_decimal_points(cells: list[str], other: str, is_text: bool) -> None:
    """Read as numbers, some would be a thousandth of what they are."""
    found = column("\n".join(["a;b", *(f"{cell};{other}" for cell in cells)]).encode(), "a")
    assert found.kind == ("categorical" if is_text else "numeric")
    assert ("look like numbers" in (found.note or "")) is is_text


@pytest.mark.parametrize(
    ("numbers", "is_told"),
    [
        ([1704067200000, None, 1704070800000], True),
        ([1704067200000.0, 1704070800000.0], True),
        ([1704067200000.5, 1704070800000.0], False),
        ([1704067200000, 0], False),
        ([1704067200, 1704070800], False),
        ([4006381333931, 4006381333932], False),
        ([None, None], False),
    ],
)
def test_numbers_that_may_have_been_meant_as_times(numbers: list[float | None], is_told: bool) -> None:
    note = column(parquet({"a": numbers}), "a").note
    assert bool(note) is is_told
    assert not note or "numbers such as 1704067200000 look like milliseconds since 1970" in note


def test_of_wide_tables_the_value_is_not_named() -> None:
    table = pl.DataFrame({f"x{place}": ["1", "2", "-"] for place in range(MAX_SEARCHED + 1)})
    found = profile_table(table.lazy(), DIGEST)
    assert {column.note for column in found.columns} == {"of 3 values, all but 1 are numbers"}


def test_text_out_of_files_with_types_is_text() -> None:
    assert column(parquet({"a": ["1", "2", "3"]}), "a").note is None
