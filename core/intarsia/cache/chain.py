"""Stores behind each other, and the guard that turns every error of a store into a miss."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from intarsia.cache.entry import HEAD, BadEntry, Header, WrongSecret, header_end, read_header
from intarsia.cache.folder import UntrustedFolder
from intarsia.cache.local import LocalStore
from intarsia.errors import CacheError
from intarsia.interfaces import Store, StoreStat
from intarsia.references import describe

__all__ = ["Guarded"]

log = logging.getLogger("intarsia")
T = TypeVar("T")
D = TypeVar("D")

_NEVER_AGAIN = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)
"""Errors of a save that the next save would meet as well."""
_PATIENCE = 3
"""Errors in a row after which a store is left alone."""


class Guarded:
    """A store that never raises: where it fails, the answer is a miss or a save that was skipped.

    The first error is told in one warning, later ones only at the level debug. A directory that must not
    be used, and a store with several errors in a row, are left alone for the rest of the process.

    Attributes:
        store: the store.
        name: its path or URL.
        usable: whether it is still asked for anything.
        saving: whether it is still given anything.
    """

    def __init__(self, store: Store, name: str, warn: Callable[[str], None]) -> None:
        self.store = store
        self.name = name
        self.usable = True
        self.saving = True
        self._warn = warn
        self._warned = False
        self._in_a_row = 0
        self._lock = threading.Lock()

    @property
    def local(self) -> LocalStore | None:
        """The store, if it is a directory of this machine."""
        return self.store if isinstance(self.store, LocalStore) else None

    def get(self, key: str) -> bytes | None:
        """Return the bytes of an entry, or None.

        Raises:
            BadEntry: there is something that must not be read.
        """
        return self._asked("read from", lambda: self.store.get(key), None)

    def header(self, key: str) -> Header | None:
        """Return an entry's header, which nobody has verified, or None."""
        with suppress(BadEntry):
            return self._asked("read from", lambda: self._header(key), None)
        return None

    def stat(self, key: str) -> StoreStat | None:
        """Return an entry's size and age, or None."""
        return self._asked("read from", lambda: self.store.stat(key), None)

    def keys(self) -> list[str]:
        """Return every key."""
        return self._asked("list", lambda: list(self.store.list()), [])

    def newest(self, limit: int) -> list[str]:
        """Return the keys of the entries that were used last, where the store knows; else any."""
        local = self.local
        if local is not None:
            return self._asked("list", lambda: list(local.newest(limit)), [])
        return self.keys()[:limit]

    def put(self, key: str, data: bytes) -> bool | None:
        """Store the bytes; False: the key exists already, None: the save was skipped."""
        if not self.saving:
            return None
        return self._asked("save in", lambda: self.store.put_if_absent(key, data), None)

    def mark_used(self, key: str) -> None:
        """Note that this process uses an entry, where the store has an owner who wants to know."""
        local = self.local
        if local is not None and self.usable:
            try:
                local.mark_used(key)
            except (OSError, CacheError) as problem:
                # A read-only directory is a fine cache, so that this is no trouble.
                log.debug("%s: cannot mark %s as used: %s", self.name, key[:12], problem)

    def is_in_use(self, key: str) -> bool:
        """Say whether a live process of this machine uses an entry."""
        local = self.local
        return local is not None and self._asked("read from", lambda: local.is_in_use(key), False)

    def put_aside(self, key: str, data: bytes | None, problem: Exception) -> tuple[bool, str]:
        """Take a bad entry out of the way.

        Returns whether it is gone, and what became of it as a part of a sentence.
        """
        local = self.local
        if local is not None:
            moved = self._asked("move aside in", lambda: local.put_aside(key, data), None)
            if moved is None:
                return False, "it stays where it is"
            return True, "it was moved aside" if moved else "another process has replaced it"
        if not isinstance(problem, BadEntry) or isinstance(problem, WrongSecret):
            # It may serve others well: what failed here can be this machine's own fault.
            return False, "it stays, since the store is shared"
        gone = self._asked("remove from", lambda: self._deleted(key), False)
        return gone, "it was removed" if gone else "it stays where it is"

    def _deleted(self, key: str) -> bool:
        self.store.delete(key)
        return True

    def _header(self, key: str) -> Header | None:
        first = self._head(key, HEAD)
        if first is None:
            return None
        return read_header(first) or read_header(self._head(key, header_end(first)) or b"")

    def _head(self, key: str, size: int) -> bytes | None:
        head: Callable[[str, int], bytes | None] | None = getattr(self.store, "head", None)
        return head(key, size) if head is not None else self.store.get(key)

    def _asked(self, action: str, call: Callable[[], T], instead: D) -> T | D:
        if not self.usable:
            return instead
        try:
            answer = call()
        except BadEntry:
            raise
        except Exception as problem:  # a plugin's store may raise anything
            self._note(action, problem)
            return instead
        self._in_a_row = 0
        return answer

    def _note(self, action: str, problem: Exception) -> None:
        with self._lock:
            first, self._warned = not self._warned, True
            self._in_a_row += 1
            if isinstance(problem, UntrustedFolder) or self._in_a_row >= _PATIENCE:
                self.usable = False
            if action == "save in" and getattr(problem, "errno", None) in _NEVER_AGAIN:
                self.saving = False
        if first:
            self._warn(self._told(action, problem))
        else:
            log.debug("cannot %s the cache %s: %s", action, self.name, describe(problem))

    def _told(self, action: str, problem: Exception) -> str:
        if isinstance(problem, UntrustedFolder):
            return f"{problem} Going on without it."
        return f"cannot {action} the cache {self.name} ({describe(problem)}); going on without"
