"""Which entries a live process uses: a lock of one byte for each, on the directory itself.

The system frees such a lock when its process ends, however it ends, so nothing is left behind; and no file
is needed, since a directory can be locked. Only gc asks, and a wrong answer costs a later miss: an entry
that is in use has been read already. Where the system has no such locks (they are Linux's, and not every
network file system keeps them) nothing counts as used.
"""

from __future__ import annotations

import logging
import os
import struct
import threading

from intarsia.cache.folder import Folder
from intarsia.cache.locks import close

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["InUse"]

log = logging.getLogger("intarsia")

_LOCK = struct.Struct("hhqqi4x")
"""The C structure flock of 64-bit Linux: type, whence, start, length, process."""


class InUse:
    """The entries of one directory that this process uses; the marks end with this object."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self._of: tuple[int, int] | None = None
        self._lock = threading.Lock()

    def mark(self, root: Folder, key: str) -> None:
        """Mark an entry as used."""
        if not _supported():
            return
        with self._lock:
            try:
                self._hold(root)
                fcntl.fcntl(self._descriptor(), fcntl.F_OFD_SETLK, _range(fcntl.F_RDLCK, key))
            except OSError as problem:
                log.debug("%s: gc cannot know that we use %s: %s", root.path, key[:12], problem)

    @staticmethod
    def is_marked(root: Folder, key: str) -> bool:
        """Say whether anybody who is alive uses an entry."""
        if not _supported():
            return False
        answer = fcntl.fcntl(root.fd, fcntl.F_OFD_GETLK, _range(fcntl.F_WRLCK, key))
        kind: int = _LOCK.unpack(answer)[0]
        return kind != fcntl.F_UNLCK

    def __del__(self) -> None:
        if self._fd is not None:
            close(self._fd)

    def _hold(self, root: Folder) -> None:
        """Keep the directory open; another one, if it was removed and made anew."""
        found = os.fstat(root.fd)
        if self._of == (found.st_dev, found.st_ino):
            return
        before, self._fd = self._fd, os.dup(root.fd)
        self._of = (found.st_dev, found.st_ino)
        if before is not None:
            close(before)

    def _descriptor(self) -> int:
        assert self._fd is not None
        return self._fd


def _supported() -> bool:
    return hasattr(fcntl, "F_OFD_SETLK") and struct.calcsize("P") == 8


def _range(kind: int, key: str) -> bytes:
    # 60 bits of the key; where two share them, gc keeps both
    return _LOCK.pack(kind, os.SEEK_SET, int(key[:15], 16), 1, 0)
