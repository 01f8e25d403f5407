"""A text file in pieces that end where a row does, so that one of any size can be looked through in little memory."""

from collections.abc import Iterator
from pathlib import Path

from app.errors import Unparseable

BLOCK_BYTES = 2**20
MAX_ROW_BYTES = 2**26


def row_blocks(path: Path, num_header_lines: int, *, quoted: bool) -> Iterator[bytes]:
    """The file without its header. Where it is `quoted`, a line end within quotes ends no row.

    Raises:
        Unparseable: a row is too long to be held in memory.
    """
    with path.open("rb") as file:
        for _ in range(num_header_lines):
            file.readline()
        rest = b""
        while chunk := file.read(BLOCK_BYTES):
            rest += chunk
            if cut := _end_of_rows(rest, quoted):
                yield rest[:cut]
                rest = rest[cut:]
            elif len(rest) > MAX_ROW_BYTES:
                raise Unparseable(f"a row of the CSV is longer than {MAX_ROW_BYTES} bytes; is a quote not closed?")
    if rest.strip():
        yield rest


def _end_of_rows(block: bytes, quoted: bool) -> int:
    """Where the last whole row ends, or 0."""
    place, after = block.rfind(b"\n"), 0
    num_quotes = block.count(b'"') if quoted else 0
    searched = len(block)
    while place >= 0:
        after += block.count(b'"', place, searched) if quoted else 0
        if (num_quotes - after) % 2 == 0:
            return place + 1
        place, searched = block.rfind(b"\n", 0, place), place
    return 0
