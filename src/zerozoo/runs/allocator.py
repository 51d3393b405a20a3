"""Memory that was freed and is wanted again at once."""

from __future__ import annotations

import ctypes
import functools

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
KEPT = 512 * 2**20  # bytes
FROM_SYSTEM = 64 * 2**20  # blocks of so many bytes or more are asked from the system and returned to it, one by one


@functools.cache
def keep_freed_memory() -> bool:
    """Lets the C library of this process keep up to 512 MB of freed memory for itself, for good; whether it can.

    An update of a critic, or a step of a rollout, takes and frees the same tens of megabytes again and again. glibc
    returns them to the system each time, which then has to hand out every page anew (docs/speed.md has what that cost).
    No number changes.
    Elsewhere than with glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; Windows
        return False
    return bool(mallopt(_MMAP_THRESHOLD, FROM_SYSTEM)) and bool(mallopt(_TRIM_THRESHOLD, KEPT))
