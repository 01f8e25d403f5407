"""The C library's heap, from which tensors of up to 32 MiB come."""

import ctypes
from typing import Any

_trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's


def trim_heap() -> None:
    """Give back what is free in it.

    An optimizer's first step puts its state into gaps that the gradient left, and glibc's aligned pieces don't fit into
    gaps of just their size: from the second step on, new room is taken beside gaps that nothing fits into any more.
    """
    if _trim is not None:
        _trim(0)
