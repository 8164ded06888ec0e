"""Single flight: of the processes and threads that want one key, one works and the others wait for it.

A waiter learns three things apart: the leader is done (its lock file is gone), the leader died (the system
freed its lock, and the file is still there), or the deadline has passed. It waits by polling a lock that
the system frees when its owner ends, however it ends. Nothing but work saved depends on it: where locks do
not exist or do not work, everybody works.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from attrs import frozen

from intarsia.cache.folder import Folder, UntrustedFolder, make_root
from intarsia.cache.locks import HAS_LOCKS, close, try_lock

__all__ = ["LOCKS", "Flight", "remove_stale_locks"]

log = logging.getLogger("intarsia")

LOCKS = "locks"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.1
_ATTEMPTS = 10
_OPEN = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)


@frozen
class _Turn:
    """How a wait ended: with the lock held by `fd`, or without one."""

    fd: int | None = None
    waited: bool = False


class Flight:
    """Lets one at a time work on a key.

    Args:
        root: the directory that the processes share; None: only the threads of this process wait for
            each other.
        waited: called for each claim that had to wait.
    """

    def __init__(self, root: str | None, waited: Callable[[], None] = lambda: None) -> None:
        self._root = root
        self._waited = waited
        self._running: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    @contextmanager
    def claim(self, key: str, wait: float) -> Iterator[bool]:
        """Lead the work on a key, or wait until the leader is done, dead, or `wait` seconds have passed.

        Yields whether we lead. A waiter whose leader died leads in its place; one whose leader is done,
        or that waited too long, does not lead, and looks in the cache again.
        """
        deadline = time.monotonic() + wait
        done = self._enter(key)
        if done is not None:
            self._waited()
            done.wait(max(0.0, wait))
            yield False
            return
        try:
            yield from self._among_processes(key, deadline)
        finally:
            self._leave(key)

    def _enter(self, key: str) -> threading.Event | None:
        """Return what tells that the thread that works on the key is done; None: we do now."""
        with self._lock:
            if key in self._running:
                return self._running[key]
            self._running[key] = threading.Event()
            return None

    def _leave(self, key: str) -> None:
        with self._lock:
            self._running.pop(key).set()

    def _among_processes(self, key: str, deadline: float) -> Iterator[bool]:
        if self._root is None or not HAS_LOCKS:
            yield True
            return
        try:
            turn = self._turn(self._root, key, deadline)
        except (OSError, UntrustedFolder) as problem:
            log.debug("%s: cannot wait for others with %s: %s", self._root, key[:12], problem)
            turn = _Turn()
        if turn.waited:
            self._waited()
        try:
            yield turn.fd is not None
        finally:
            if turn.fd is not None:
                self._release(self._root, key, turn.fd)

    def _turn(self, root: str, key: str, deadline: float) -> _Turn:
        make_root(root)
        for _ in range(_ATTEMPTS):
            fd = _open(root, key)
            try:
                locked, waited = _wait_for(fd, deadline)
                leads = locked and _is_at(root, key, fd)
            except BaseException:
                close(fd)
                raise
            if leads:
                return _Turn(fd, waited)
            close(fd)
            # The file is gone: after a wait its leader is done; without one we came just too late.
            if waited:
                return _Turn(waited=True)
        return _Turn()

    def _release(self, root: str, key: str, fd: int) -> None:
        """Remove the lock file, and only then free the lock."""
        try:
            with Folder(root) as folder, Folder(LOCKS, within=folder) as locks:
                if _same(locks, key, fd):
                    locks.remove(key)
        except (OSError, UntrustedFolder) as problem:
            log.debug("%s: the lock of %s stays: %s", root, key[:12], problem)
        finally:
            close(fd)


def remove_stale_locks(root: Folder) -> int:
    """Remove the lock files whose owners are dead; return how many."""
    if not HAS_LOCKS:
        return 0
    removed = 0
    with Folder(LOCKS, within=root) as locks:
        for name in locks.names():
            fd = os.open(name, _OPEN & ~os.O_CREAT, dir_fd=locks.fd)
            try:
                if try_lock(fd) and _same(locks, name, fd):
                    removed += locks.remove(name)
            finally:
                close(fd)
    return removed


def _open(root: str, key: str) -> int:
    with Folder(root) as folder, folder.make(LOCKS) as locks:
        return os.open(key, _OPEN, 0o600, dir_fd=locks.fd)


def _wait_for(fd: int, deadline: float) -> tuple[bool, bool]:
    """Wait for a lock; return whether we have it now, and whether somebody else had it before."""
    pause, waited = _FIRST_PAUSE, False
    while not try_lock(fd):
        waited = True
        rest = deadline - time.monotonic()
        if rest <= 0:
            return False, True
        time.sleep(min(pause, rest))
        pause = min(2 * pause, _LONGEST_PAUSE)
    return True, waited


def _is_at(root: str, key: str, fd: int) -> bool:
    try:
        with Folder(root) as folder, Folder(LOCKS, within=folder) as locks:
            return _same(locks, key, fd)
    except FileNotFoundError:
        return False


def _same(locks: Folder, name: str, fd: int) -> bool:
    try:
        there = locks.stat(name)
    except FileNotFoundError:
        return False
    ours = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
