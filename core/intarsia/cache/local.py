"""The store in a local directory: one file for each entry, in a folder named after its key's first digits.

root/            0700, ours, no symlink; each folder in it as well
    3f/3fa9...   an entry; published whole and never written to again
    3f/.tmp-...  one that is being written, or was when its writer died
    bad/         entries that could not be used, the last few of them
    locks/       a file for each key that somebody is compiling right now
    running/     a file for each piece that somebody is compiling in-process right now
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from heapq import nlargest

from intarsia.cache.entry import BadEntry
from intarsia.cache.folder import Folder, make_root
from intarsia.cache.in_use import InUse
from intarsia.cache.key import check_key, is_key
from intarsia.interfaces import StoreStat

__all__ = ["BAD", "LocalStore"]

BAD = "bad"
_SHELF = re.compile(r"[0-9a-f]{2}")
_KEPT_BAD = 16
"""Entries that stay in `bad/` for whoever wants to look at one."""


class LocalStore:
    """Keeps entries in a directory, and refuses one that others can write to.

    Any method may raise OSError or `UntrustedFolder`; `Guarded` turns them into misses.
    """

    def __init__(self, root: str) -> None:
        """Name the directory; nothing is touched before the first use, or created before a save."""
        self.root = root
        self._in_use = InUse()

    def get(self, key: str) -> bytes | None:
        """Return the bytes, or None.

        Raises:
            BadEntry: the file is a symlink, or not ours.
        """
        return self._read(key, None)

    def head(self, key: str, size: int) -> bytes | None:
        """Return the first so many bytes, or None; raises as `get` does."""
        return self._read(key, size)

    def stat(self, key: str) -> StoreStat | None:
        """Return an entry's size and age without reading it, or None.

        Its age counts from when it was last used.
        """
        try:
            with self._shelf(key) as shelf:
                found = shelf.stat(key)
        except FileNotFoundError:
            return None
        return StoreStat(found.st_size, found.st_mtime)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Publish the bytes unless the key exists; return whether they were stored."""
        make_root(self.root)
        with Folder(self.root) as root, root.make(check_key(key)[:2]) as shelf:
            return shelf.publish(key, data)

    def list(self) -> Iterator[str]:
        """Return every key, in alphabetical order."""
        for shelf in self._shelves():
            yield from _keys(shelf)

    def newest(self, limit: int) -> Iterator[str]:
        """Return the keys of the entries that were used last."""
        used = []
        for shelf in self._shelves():
            for key in _keys(shelf):
                with suppress(FileNotFoundError):
                    used.append((shelf.stat(key).st_mtime, key))
        return (key for _, key in nlargest(limit, used))

    def delete(self, key: str) -> None:
        """Remove an entry; absent is fine."""
        with suppress(FileNotFoundError), self._shelf(key) as shelf:
            os.unlink(key, dir_fd=shelf.fd)

    def put_aside(self, key: str, data: bytes | None) -> bool:
        """Move an entry to `bad/`, if it still holds these bytes; return whether it was moved.

        Args:
            key: its key.
            data: the bytes that turned out to be bad; None: whatever is there, which cannot be read.
        """
        try:
            with Folder(self.root) as root, self._shelf(key) as shelf, root.make(BAD) as bad:
                if data is not None and _was_replaced(shelf, key, data):
                    return False
                aside = f"{key}-{os.urandom(4).hex()}"
                os.rename(key, aside, src_dir_fd=shelf.fd, dst_dir_fd=bad.fd)
                _keep_few(bad)
        except FileNotFoundError:
            return False
        return True

    def mark_used(self, key: str) -> None:
        """Note that this process uses an entry: it counts as young, and gc leaves it while we live."""
        with Folder(self.root) as root:
            self._in_use.mark(root, key)
            with Folder(key[:2], within=root) as shelf:
                os.utime(key, dir_fd=shelf.fd, follow_symlinks=False)

    def is_in_use(self, key: str) -> bool:
        """Say whether a live process on this machine has marked an entry as used."""
        with Folder(self.root) as root:
            return InUse.is_marked(root, key)

    def _shelves(self) -> Iterator[Folder]:
        """Return every folder of entries, open until the next one is asked for."""
        try:
            with Folder(self.root) as root:
                for name in filter(_SHELF.fullmatch, root.names()):
                    with suppress(FileNotFoundError), Folder(name, within=root) as shelf:
                        yield shelf
        except FileNotFoundError:
            return

    def _read(self, key: str, limit: int | None) -> bytes | None:
        try:
            with self._shelf(key) as shelf:
                return shelf.read(key, limit)
        except FileNotFoundError:
            return None

    @contextmanager
    def _shelf(self, key: str) -> Iterator[Folder]:
        with Folder(self.root) as root, Folder(check_key(key)[:2], within=root) as shelf:
            yield shelf


def _keys(shelf: Folder) -> list[str]:
    name = os.path.basename(shelf.path)
    return [key for key in shelf.names() if is_key(key) and key.startswith(name)]


def _was_replaced(shelf: Folder, key: str, data: bytes) -> bool:
    """Say whether another process moved the entry aside, and a good one took its place."""
    try:
        return shelf.read(key) != data
    except BadEntry:
        return False  # what is there now is no better


def _keep_few(bad: Folder) -> None:
    """Remove all but the youngest; which those are is a matter of taste, so the clock may be wrong."""
    ages = []
    for name in bad.names():
        with suppress(OSError):
            ages.append((bad.stat(name).st_mtime, name))
    for _, name in sorted(ages)[:-_KEPT_BAD]:
        bad.remove(name)
