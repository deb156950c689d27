"""Memory that a micro-batch gave back is kept for the next one.

By default glibc returns every large block to the system at once and asks for it again a
moment later, and the system clears it page by page. Training on a CPU frees and allocates
the same hundreds of megabytes in every micro-batch; keeping them made it about a tenth
faster. It costs peak memory: nothing with micro-batches of 2,000 tokens of a small model, half as
much again with 8,192, because pieces of other sizes fit badly (docs/experiments.md).
"""

from __future__ import annotations

import ctypes
import platform
from functools import cache

# From glibc's malloc.h: what is set, and the value that means "never".
_SETTINGS = (
    (-4, 0),  # M_MMAP_MAX: no block gets a mapping of its own, which is unmapped when freed
    (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: the end of the heap is not given back
)


@cache
def keep_freed_memory() -> bool:
    """Let this process keep freed memory, once; returns whether that could be arranged.

    Nothing happens where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return all(library.mallopt(name, value) == 1 for name, value in _SETTINGS)
