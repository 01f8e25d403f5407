"""Names in sentences: the first of many, and the one that was perhaps meant."""

import difflib
from collections.abc import Collection, Sequence

MAX_NAMED = 20  # names in a sentence, and unknown names that are told of
MAX_COMPARED = 2**19  # pairs of letters: 0.1 s


def unknown_column(name: str, known: list[str]) -> str:
    """The sentence for a column that is not there, with the nearest spelling."""
    near = nearest(name, known)
    hint = f"there are: {some_of(known)}" if near is None else f"did you mean {near!r}?"
    return f"there is no column {name!r}; {hint}"


def nearest(name: str, known: Collection[str]) -> str | None:
    """The spelling that was perhaps meant, whatever its capitals, unless there are too many to look at."""
    if len(known) * len(name) ** 2 > MAX_COMPARED:
        return None
    spellings = {spelling.lower(): spelling for spelling in known}
    found = difflib.get_close_matches(name.lower(), spellings, n=1)
    return spellings[found[0]] if found else None


def some_of(names: Sequence[str]) -> str:
    """The names for a sentence: the first of many, and how many more there are."""
    num_more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {num_more} more" if num_more > 0 else "")
