"""Names in sentences: the first of many, and the one that was perhaps meant."""

import difflib
from collections.abc import Collection, Sequence

MAX_NAMED = 20  # names in a sentence, and unknown names or sentences of one kind that are told
MAX_COMPARED = 2**19  # pairs of letters: 0.1 s


def unknown_column(name: str, known: list[str]) -> str:
    """The sentence for a column that is not there, with the nearest spelling."""
    near = nearest(name, known)
    hint = f"there are: {some_of(known)}" if near is None else f"did you mean {near!r}?"
    return f"there is no column {name!r}; {hint}"


def nearest(name: str, known: Collection[str], alike: float = 0.6) -> str | None:
    """The spelling that was perhaps meant, whatever its capitals, unless there are too many to look at: one that is at
    least as much `alike` (1 is the same), or the only one of which it is the beginning or the initials.
    """
    if len(known) * len(name) ** 2 > MAX_COMPARED:
        return None
    given, spellings = name.lower(), {spelling.lower(): spelling for spelling in known}
    found = difflib.get_close_matches(given, spellings, n=1, cutoff=alike)
    if not found and len(given) > 1:
        found = [spelling for spelling in spellings if spelling.startswith(given) or _initials(spelling) == given]
    return spellings[found[0]] if len(found) == 1 else None


def _initials(name: str) -> str:
    return "".join(word[:1] for word in name.split("_"))


def some_of(names: Sequence[str]) -> str:
    """The names for a sentence: the first of many, and how many more there are."""
    num_more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {num_more} more" if num_more > 0 else "")
