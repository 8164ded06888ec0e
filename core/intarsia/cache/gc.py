"""Garbage collection of a local directory: what nobody used for longest goes first."""

from __future__ import annotations

import logging
import os
import re
import time

from attrs import frozen

from intarsia.cache.flight import remove_stale_locks
from intarsia.cache.folder import Folder, UntrustedFolder, is_temporary
from intarsia.cache.in_use import InUse
from intarsia.cache.journal import remove_old_notes
from intarsia.cache.key import is_key
from intarsia.cache.local import BAD

__all__ = ["Collected", "collect"]

log = logging.getLogger("intarsia")

_SHELF = re.compile(r"[0-9a-f]{2}")
_OLD = 3600.0
"""Seconds after which a temporary file has no writer any more; one that has loses a save, nothing else."""


@frozen
class Collected:
    """What a collection did.

    Attributes:
        removed: keys of the entries that it removed.
        freed: bytes of those.
        kept: entries that stay.
        kept_bytes: bytes of those.
        in_use: entries that it would have removed, had no live process used them.
        litter: temporary files, lock files of dead processes and bad entries that it removed.
    """

    removed: tuple[str, ...] = ()
    freed: int = 0
    kept: int = 0
    kept_bytes: int = 0
    in_use: int = 0
    litter: int = 0


@frozen
class _Item:
    age: float
    key: str
    size: int


def collect(root: str, *, max_bytes: int | None = None, max_age: float | None = None) -> Collected:
    """Remove entries from a directory until the limits hold, and the litter of processes that died.

    An entry's age counts from when it was last loaded or saved, by the clock of the file system that the
    directory is on; one from the future counts as new. What a live process of this machine uses stays, also
    where a limit is exceeded.

    Args:
        root: the directory.
        max_bytes: how much may stay, in bytes; None: any amount.
        max_age: how old an entry may be, in seconds; None: any age.

    Raises:
        UntrustedFolder: the directory must not be used.
        OSError: it cannot be read.
    """
    try:
        with Folder(root) as folder:
            now = _now(folder)
            litter = _sweep(folder, now)
            return _limit(folder, _items(folder, now), litter, max_bytes, max_age)
    except FileNotFoundError:
        return Collected()


def _now(folder: Folder) -> float:
    """Return the time by the clock that dates the entries: the server's, on a network file system."""
    name = f".tmp-{os.urandom(8).hex()}"
    try:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder.fd)
    except OSError as problem:  # a full disk is what gc is for
        log.debug("%s: its clock cannot be read: %s", folder.path, problem)
        return time.time()
    try:
        return os.fstat(fd).st_mtime
    finally:
        os.close(fd)
        folder.remove(name)


def _items(folder: Folder, now: float) -> list[_Item]:
    items = []
    for name in _shelves(folder):
        with Folder(name, within=folder) as shelf:
            for key in filter(is_key, shelf.names()):
                try:
                    found = shelf.stat(key)
                except FileNotFoundError:
                    continue
                items.append(_Item(max(0.0, now - found.st_mtime), key, found.st_size))
    return sorted(items, key=lambda item: (-item.age, item.key))


def _limit(
    folder: Folder, items: list[_Item], litter: int, max_bytes: int | None, max_age: float | None
) -> Collected:
    left = sum(item.size for item in items)
    removed: list[_Item] = []
    in_use = 0
    for item in items:
        too_old = max_age is not None and item.age > max_age
        too_much = max_bytes is not None and left > max_bytes
        if not (too_old or too_much):
            continue
        if InUse.is_marked(folder, item.key):
            in_use += 1
        elif _remove(folder, item.key):
            left -= item.size
            removed.append(item)
    return Collected(
        tuple(item.key for item in removed), sum(item.size for item in removed),
        len(items) - len(removed), left, in_use, litter,
    )  # fmt: skip


def _remove(folder: Folder, key: str) -> bool:
    with Folder(key[:2], within=folder) as shelf:
        return shelf.remove(key)


def _sweep(folder: Folder, now: float) -> int:
    """Remove what processes left behind that died, and the bad entries; return how many files."""
    swept = 0
    for name in _shelves(folder):
        with Folder(name, within=folder) as shelf:
            for temporary in filter(is_temporary, shelf.names()):
                swept += _is_old(shelf, temporary, now) and shelf.remove(temporary)
    for clean in (_remove_bad, remove_stale_locks, lambda root: remove_old_notes(root, now)):
        try:
            swept += clean(folder)
        except FileNotFoundError:
            continue
        except (OSError, UntrustedFolder) as problem:
            log.warning(
                "not all that dead processes left in %s is removed: %s", folder.path, problem
            )
    return swept


def _remove_bad(folder: Folder) -> int:
    with Folder(BAD, within=folder) as bad:
        return sum(bad.remove(name) for name in bad.names())


def _is_old(shelf: Folder, name: str, now: float) -> bool:
    try:
        return max(0.0, now - shelf.stat(name).st_mtime) > _OLD
    except FileNotFoundError:
        return False


def _shelves(folder: Folder) -> list[str]:
    return [name for name in folder.names() if _SHELF.fullmatch(name)]
