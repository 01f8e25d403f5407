"""What the owner of a table may want to mend: columns that look as if they were meant as something else."""

import re
from collections.abc import Sequence
from typing import Any

import polars as pl

MOST = 0.5  # numbers among a column's values from which on the others are what is odd
_AMOUNT = re.compile(
    r"\(?[-+\u2212]?[$€£¥]? ?[-+]?(?:\d{1,3}(?:[.,' \u00a0\u202f]\d{3})+|\d+)(?:[.,]\d+)? ?[%$€£¥]?\)?"
)
_GROUPED = re.compile(r"-?\d{1,3}(?:\.\d{3})*")  # and all of a column read as numbers
_DATE = re.compile(
    r"(?:\d{1,2}([./-])\d{1,2}\1(?:\d{2}|\d{4})|\d{4}([./-])\d{1,2}\2\d{1,2}"
    r"|\d{1,2}[ -][A-Za-z]{3,9}[ -]\d{2,4}|[A-Za-z]{3,9} \d{1,2},? \d{4})(?:[T ].*)?"
)
_MILLISECONDS = (946_684_800_000, 2_524_608_000_000)  # of the years from 2000 up to 2050
_CHARACTERS = 60


def as_number(text: pl.Expr) -> pl.Expr:
    return text.cast(pl.Float64, strict=False)


def note_on_numbers(low: float | None, high: float | None, *, integral: bool) -> str | None:
    """A sentence about a column of numbers that may be times."""
    if low is None or high is None or not (integral and _MILLISECONDS[0] <= low and high < _MILLISECONDS[1]):
        return None
    return (
        f"numbers such as {int(low)} look like milliseconds since 1970, as to_json of pandas writes times without "
        "date_format='iso'; written as 2026-01-31T12:00:00 they would be taken as times"
    )


def note_on_text(
    table: pl.LazyFrame | None, name: str, num_values: int, num_numbers: int, examples: Sequence[Any]
) -> str | None:
    """A sentence about a column of text, `num_numbers` of whose values read as numbers; None where nothing is odd.

    `table` is where the value that is odd is looked for.
    """
    if num_numbers == num_values:  # with types, or zeros in front: it was meant as text
        dotted = [value for value in examples if "." in value]
        is_grouped = dotted and all(map(_GROUPED.fullmatch, examples))
        return _looks(dotted[0], "numbers with dots between thousands", "1234") if is_grouped else None
    if all(map(_DATE.fullmatch, examples)):
        return _looks(examples[0], "dates", "2026-01-31")
    if num_numbers < MOST * num_values and not all(map(_AMOUNT.fullmatch, examples)):
        return None
    if table is None:
        return f"of {num_values} values, all but {num_values - num_numbers} are numbers"
    row, value = _first_other(table, name)
    if _AMOUNT.fullmatch(value):
        return _looks(value, "numbers", "1234.5")
    remedy = (
        "leave out lines of names but the first" if value == name else "where a value is missing, leave the cell empty"
    )
    return (
        f"of {num_values} values, all but {num_values - num_numbers} are numbers, and in row {row} stands "
        f"{value[:_CHARACTERS]!r}; {remedy}"
    )


def _looks(value: str, what: str, example: str) -> str:
    return f"values such as {value[:_CHARACTERS]!r} look like {what}; written as {example} they would be taken as such"


def _first_other(table: pl.LazyFrame, name: str) -> tuple[int, str]:
    """The first value that is no number, and its row, from 1."""
    text = pl.col(name)
    others = table.select(text).with_row_index("row", 1).filter(text.is_not_null() & as_number(text).is_null())
    row: int
    value: str
    row, value = others.head(1).collect(engine="streaming").row(0)
    return row, value
