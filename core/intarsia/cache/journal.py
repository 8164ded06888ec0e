"""The crash journal: which work was under way in this machine's processes that are dead now.

A file lies in `running/` while risky work runs in-process, and is removed after it. Its name says whose it
is: the key, the machine's boot, the process and when that was started; it contains what the work is, for
people. A file that is left over, of a process of this boot that is dead, says that the key took a process
down, or that somebody killed it meanwhile.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from attrs import frozen

from intarsia.cache.folder import Folder, UntrustedFolder, make_root
from intarsia.cache.key import check_key
from intarsia.cache.locks import HAS_LOCKS, close, try_lock

__all__ = ["RUNNING", "Crash", "Journal", "remove_old_notes"]

log = logging.getLogger("intarsia")

RUNNING = "running"
_UNKNOWN = "0"
_OLD = 30 * 86400.0
"""Seconds after which gc removes a note."""
_DONE = b"\ndone"
"""What a note ends with that could not be removed."""
_LONGEST = 4096
"""Bytes of a note that are read."""
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
_LOOK = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)


@frozen
class _Note:
    """What the name of a journal file says."""

    key: str
    boot: str
    pid: int
    started: str

    @property
    def name(self) -> str:
        return f"{self.key}-{self.boot}-{self.pid}-{self.started}"

    @staticmethod
    def parse(name: str) -> _Note | None:
        parts = name.split("-")
        if len(parts) != 5 or not parts[2].isdecimal():
            return None
        return _Note(parts[0], parts[1], int(parts[2]), parts[3])


@frozen
class Crash:
    """Work that was under way in a process that is dead.

    Attributes:
        key: what the work was on.
        pid: the process.
        what: the work, for people; "" where that is not known.
        when: when it began, in seconds since 1970.
    """

    key: str
    pid: int
    what: str
    when: float


class Journal:
    """Notes which work runs in-process, for whoever comes after a crash.

    Where the directory cannot be used there is no journal, and the work runs as it would without.
    """

    def __init__(self, root: str) -> None:
        """Keep the journal in a cache's directory."""
        self._root = root

    @contextmanager
    def running(self, key: str, what: str = "") -> Iterator[None]:
        """Note that work on a key runs, while the block does; `what` tells people which work it is."""
        name = f"{_this_process(check_key(key)).name}-{os.urandom(4).hex()}"
        fd = self._begin(name, what)
        try:
            yield
        finally:
            if fd is not None:
                self._end(name, fd)

    def culprit(self, key: str) -> Crash | None:
        """Return a crash during work on this key, or None where there was none."""
        return next(iter(self.crashes(lambda note: note == key)), None)

    def crashes(self, wanted: Callable[[str], bool] = lambda key: True) -> list[Crash]:
        """Return what was under way in processes that are dead, of the keys that are wanted."""
        found: list[Crash] = []
        try:
            with Folder(self._root) as root, Folder(RUNNING, within=root) as running:
                for name in running.names():
                    note = _Note.parse(name)
                    if note is not None and wanted(note.key):
                        found.extend(_crash(running, name, note))
        except FileNotFoundError:
            return found
        except (OSError, UntrustedFolder) as problem:
            log.debug("%s: the crash journal cannot be read: %s", self._root, problem)
        return found

    def clear(self, key: str) -> None:
        """Forget that work on a key ended badly."""
        try:
            with Folder(self._root) as root, Folder(RUNNING, within=root) as running:
                for name in running.names():
                    note = _Note.parse(name)
                    if note is not None and note.key == key and _crash(running, name, note):
                        running.remove(name)
        except (OSError, UntrustedFolder) as problem:
            log.debug("%s: the crash journal cannot be cleared: %s", self._root, problem)

    def _begin(self, name: str, what: str) -> int | None:
        try:
            make_root(self._root)
            with Folder(self._root) as root, root.make(RUNNING) as running:
                fd = os.open(name, _CREATE, 0o600, dir_fd=running.fd)
            _lock(fd)
            with suppress(OSError):  # the words are for people, the file itself is the note
                os.write(fd, what.encode(errors="replace")[:_LONGEST])
            return fd
        except (OSError, UntrustedFolder) as problem:
            log.debug("%s: nothing is noted in the crash journal: %s", self._root, problem)
            return None

    def _end(self, name: str, fd: int) -> None:
        try:
            with Folder(self._root) as root, Folder(RUNNING, within=root) as running:
                if not running.remove(name):
                    os.write(fd, _DONE)  # what stays must not look like a crash
        except (OSError, UntrustedFolder) as problem:
            log.debug("%s: a note stays in the crash journal: %s", self._root, problem)
        finally:
            close(fd)


def _crash(running: Folder, name: str, note: _Note) -> list[Crash]:
    """Return the crash that a note tells of, if its process is dead for certain and was not done.

    One of another boot may live on another machine that shares the directory, or have ended with this
    one's power, so nothing follows from it. Of this boot, it is dead when its number is free or was given
    to another, and the lock on its file is free: in another container the number alone means nothing.
    """
    if note.boot != _boot():
        return []
    if note.started != _UNKNOWN and _started(note.pid) == note.started:
        return []
    fd = os.open(name, _LOOK, dir_fd=running.fd)
    try:
        told = os.read(fd, _LONGEST + len(_DONE))
        if told.endswith(_DONE) or not _lock(fd):
            return []
        when = os.fstat(fd).st_mtime
    finally:
        close(fd)
    return [Crash(note.key, note.pid, told.decode(errors="replace"), when)]


def _lock(fd: int) -> bool:
    """Take the lock of a note unless another process has it; where there are no locks, say that none has."""
    try:
        return try_lock(fd) if HAS_LOCKS else True
    except OSError as problem:
        log.debug("the crash journal has no locks here: %s", problem)
        return True


def _this_process(key: str) -> _Note:
    return _Note(key, _boot(), os.getpid(), _started(os.getpid()))


def _boot() -> str:
    return _first_line("/proc/sys/kernel/random/boot_id").replace("-", "") or "unknown"


def _started(pid: int) -> str:
    """Return when a process was started, in ticks since the boot; "0" where the system does not say."""
    fields = _first_line(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else _UNKNOWN


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return ""


def remove_old_notes(root: Folder, now: float) -> int:
    """Remove notes that are so old that nobody came back for them; return how many."""
    removed = 0
    with Folder(RUNNING, within=root) as running:
        for name in running.names():
            note = _Note.parse(name)
            old = now - running.stat(name).st_mtime > _OLD
            if old and (note is None or note.boot != _boot() or _crash(running, name, note)):
                removed += running.remove(name)
    return removed
