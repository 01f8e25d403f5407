"""Strategies of hypothesis: bytes that were something once, and values of JSON."""

import struct
from typing import Any

from hypothesis import strategies as st

LENGTHS = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
"""What a length that lies may be."""

_patches = st.binary(min_size=1, max_size=8) | st.sampled_from(
    [
        struct.pack(form, length)
        for length in LENGTHS
        for form in ["<H", "<I", "<Q"]
        if length < 2 ** (8 * struct.calcsize(form))
    ]
)


def _edited(content: bytes, place: int, patch: bytes, kind: str) -> bytes:
    place = place % (len(content) + 1)
    if kind == "cut":
        return content[:place]
    if kind == "drop":
        return content[:place] + content[place + len(patch) :]
    if kind == "twice":
        return content[:place] + content[max(0, place - 64) :]
    return content[:place] + patch + content[place + (len(patch) if kind == "over" else 0) :]


_edits = st.tuples(
    st.integers(0, 2**16), _patches, st.sampled_from(["over", "over", "over", "into", "drop", "twice", "cut"])
)


def _mutate(chosen: tuple[bytes, list[tuple[int, bytes, str]]]) -> bytes:
    content, edits = chosen
    for place, patch, kind in edits:
        content = _edited(content, place, patch, kind)
    return content


def mutated(contents: list[bytes]) -> st.SearchStrategy[bytes]:
    """One of the contents with some places changed, cut off, left out or put in."""
    return st.tuples(st.sampled_from(contents), st.lists(_edits, min_size=1, max_size=5)).map(_mutate)


numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
cells = st.none() | st.booleans() | numbers | st.text(max_size=6)
values: st.SearchStrategy[Any] = st.recursive(
    cells, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
)
"""Any value of JSON, as orjson reads it."""
