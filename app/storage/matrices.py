"""Matrices larger than memory: written row by row, then mapped."""

import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def write_matrix(path: Path, parts: Iterable[NDArray[np.float32]]) -> None:
    """Parts `[n, F]`, one below the other. Pages go to the disk as they are written and take no memory after that."""
    with path.open("wb") as file:
        for part in parts:
            file.write(np.ascontiguousarray(part).data)
            file.flush()
            os.fdatasync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def map_matrix(path: Path, shape: tuple[int, int]) -> tuple[NDArray[np.float32], Any]:
    """The matrix as an array whose pages are read when they are touched, and its mapping; not to be written to."""
    with path.open("r+b") as file:  # shared: what is private counts as memory that the process may come to need
        mapping = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    mapping.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapping, dtype=np.float32).reshape(shape), mapping
