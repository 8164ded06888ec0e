"""Whole-file locks that the system frees when their owner ends, however it ends.

They save work, by waiting, and nothing else: no entry is right or whole because of a lock.
"""

from __future__ import annotations

import os
from contextlib import suppress

try:
    import fcntl
except ImportError:  # Windows
    HAS_LOCKS = False
else:
    HAS_LOCKS = True

__all__ = ["HAS_LOCKS", "close", "try_lock"]


def try_lock(fd: int) -> bool:
    """Take the lock of an open file; return False where somebody else has it.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def close(fd: int) -> None:
    """Close a descriptor that nothing was written by: an error means nothing then."""
    with suppress(OSError):
        os.close(fd)
