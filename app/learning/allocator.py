"""The C library's heap, from which tensors of less than 32 MiB come."""

import ctypes
from typing import Any

_set_option: Any = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAX_BLOCK_BYTES = 2**25  # one of this size or more is a mapping of its own
HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
"""Environment of a process whose torch asks for huge pages for tensors of 2 MiB or more, and begins them at a page.

It is for the heap, which gets fewer gaps: before and after a tensor that begins at any 64 bytes, leftovers are so small
that glibc keeps them in a cache, and what is freed around them apart.
"""


def keep_heap() -> None:
    """Keep what is freed for the next who needs it, rather than have the system clear the same pages again and again.

    A pass over some thousand rows takes a few MiB and frees them, of which glibc gives most back each time. These are
    the limits that it comes to by itself once a block of the largest size was freed.
    """
    if _set_option is not None:
        _set_option(M_MMAP_THRESHOLD, MAX_BLOCK_BYTES)
        _set_option(M_TRIM_THRESHOLD, 2 * MAX_BLOCK_BYTES)
