"""The C library's heap, from which tensors of up to 32 MiB come."""

import ctypes
from typing import Any

_library = ctypes.CDLL(None)
_trim: Any = getattr(_library, "malloc_trim", None)  # glibc's
_set_option: Any = getattr(_library, "mallopt", None)  # glibc's, too

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAX_BLOCK_BYTES = 2**25  # of a larger one, each is a mapping of its own


def trim_heap() -> None:
    """Give back what is free in it.

    An optimizer's first step puts its state into gaps that the gradient left, and glibc's aligned pieces don't fit into
    gaps of just their size: from the second step on, new room is taken beside gaps that nothing fits into any more.
    """
    if _trim is not None:
        _trim(0)


def keep_heap() -> None:
    """Keep what is freed for the next who needs it, rather than have the system clear the same pages again and again.

    A pass over some thousand rows takes a few MiB and frees them, of which glibc gives most back each time. These are
    the limits that it comes to by itself once a block of the largest size was freed.
    """
    if _set_option is not None:
        _set_option(M_MMAP_THRESHOLD, MAX_BLOCK_BYTES)
        _set_option(M_TRIM_THRESHOLD, 2 * MAX_BLOCK_BYTES)
