"""Files that are written from answers."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of what is at `path` once it is whole, and never where something failed.

    What a path leads to that is no file, such as a pipe or a terminal, is written to as it is.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        with path.open("wb") as target:
            yield target
        return
    path = path.resolve()  # else a link would be replaced, not what it leads to
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(path.parent))
    unfinished = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    try:
        with unfinished.open("xb") as target:
            yield target
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
