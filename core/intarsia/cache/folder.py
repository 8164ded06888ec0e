"""Directories that belong to us alone, held by descriptor.

A directory is checked when it is opened, and what is in it is reached through the descriptor of what was
checked: nobody can put another directory in its place between the check and the use.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from types import TracebackType

from intarsia.cache.entry import BadEntry
from intarsia.cache.locks import close
from intarsia.errors import CacheError

__all__ = ["Folder", "UntrustedFolder", "is_temporary", "make_root"]

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_AS_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _NOFOLLOW
# A pipe that somebody planted must not make us wait.
_TO_READ = os.O_RDONLY | _NOFOLLOW | getattr(os, "O_NONBLOCK", 0)
_TO_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW
_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_TEMPORARY = ".tmp-"
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


class UntrustedFolder(CacheError):
    """A directory is a symlink, belongs to somebody else, or others may write to it."""


def make_root(path: str) -> None:
    """Create a root, for us alone, where it does not exist yet."""
    if os.path.lexists(path):
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    _make(path, None)


def is_temporary(name: str) -> bool:
    """Say whether a file is one that somebody is, or was, still writing."""
    return name.startswith(_TEMPORARY)


class Folder:
    """An open directory that passed the checks; use it in a `with` block.

    Attributes:
        path: for messages.
        fd: its descriptor.
    """

    path: str
    fd: int

    def __init__(self, path: str, *, within: Folder | None = None) -> None:
        """Open a directory.

        Args:
            path: its path, or its name in the folder `within`.
            within: the folder that holds it.

        Raises:
            UntrustedFolder: it must not be used.
            OSError: it does not exist, or cannot be opened.
        """
        self.path = os.path.join(within.path, path) if within else path
        at = within.fd if within else None
        try:
            self.fd = os.open(path, _AS_FOLDER, dir_fd=at)
        except OSError as problem:
            if problem.errno in (errno.ELOOP, errno.ENOTDIR):
                _refuse_symlink(self.path, path, at)
            raise
        try:
            _check_folder(self.path, os.fstat(self.fd))
        except BaseException:
            close(self.fd)
            raise

    def __enter__(self) -> Folder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        close(self.fd)

    def make(self, name: str) -> Folder:
        """Return the open folder of this name, created where it does not exist."""
        try:
            return Folder(name, within=self)
        except FileNotFoundError:
            _make(name, self.fd)
            return Folder(name, within=self)

    def names(self) -> list[str]:
        """Return the names of everything in the folder, in alphabetical order."""
        return sorted(os.listdir(self.fd))

    def stat(self, name: str) -> os.stat_result:
        """Return what the system knows of a file, not following a symlink."""
        return os.stat(name, dir_fd=self.fd, follow_symlinks=False)

    def read(self, name: str, limit: int | None = None) -> bytes:
        """Return the bytes of a file, or the first so many.

        Raises:
            BadEntry: it is not a file of ours that only we can write to.
            OSError: it does not exist, or cannot be read.
        """
        fd = self.open_file(name)
        try:
            return _read(fd, limit)
        finally:
            close(fd)

    def open_file(self, name: str) -> int:
        """Return a descriptor to read a file by; raises as `read` does."""
        try:
            fd = os.open(name, _TO_READ, dir_fd=self.fd)
        except OSError as problem:
            if problem.errno == errno.ELOOP:
                raise BadEntry("it is a symbolic link") from problem
            raise
        try:
            _check_file(os.fstat(fd))
        except BaseException:
            close(fd)
            raise
        return fd

    def publish(self, name: str, data: bytes) -> bool:
        """Write a file that appears whole or not at all; return False where it exists already.

        Raises:
            OSError: it could not be written; nothing is left behind then, unless the system fails at
                that as well.
        """
        temporary = f"{_TEMPORARY}{os.urandom(8).hex()}"
        try:
            self._write(temporary, data)
            return self._appear(temporary, name)
        finally:
            self.remove(temporary)

    def remove(self, name: str) -> bool:
        """Remove a file; return False where there is none, or the system does not let us."""
        try:
            os.unlink(name, dir_fd=self.fd)
        except OSError:
            return False
        return True

    def _write(self, name: str, data: bytes) -> None:
        fd = os.open(name, _TO_WRITE, 0o600, dir_fd=self.fd)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(fd, rest) :]
            os.fsync(fd)
        finally:
            # Network file systems report a full disk only here, so that this error counts as well.
            os.close(fd)

    def _appear(self, temporary: str, name: str) -> bool:
        try:
            os.link(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd, follow_symlinks=False)
        except FileExistsError:
            # A repeated request to an NFS server says so of our own link as well.
            return self.stat(temporary).st_nlink > 1
        except OSError as problem:
            if problem.errno not in _NO_LINKS:
                raise
            return self._renamed(temporary, name)
        return True

    def _renamed(self, temporary: str, name: str) -> bool:
        """Publish where there are no hard links: two may win then, each with a whole entry."""
        try:
            self.stat(name)
        except FileNotFoundError:
            os.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            return True
        return False


def _make(path: str, at: int | None) -> None:
    # Somebody else may be faster; whose it is gets checked when it is opened.
    with suppress(FileExistsError):
        os.mkdir(path, 0o700, dir_fd=at)


def _read(fd: int, limit: int | None) -> bytes:
    wanted = os.fstat(fd).st_size + 1 if limit is None else limit
    parts = []
    while wanted > 0 and (part := os.read(fd, wanted)):
        parts.append(part)
        wanted -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _check_folder(path: str, found: os.stat_result) -> None:
    reason = _not_ours(found)
    if reason:
        raise _untrusted(path, reason)


def _check_file(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise BadEntry("it is not a regular file")
    reason = _not_ours(found)
    if reason:
        raise BadEntry(reason)


def _not_ours(found: os.stat_result) -> str:
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.geteuid():
        return f"it belongs to uid {found.st_uid} (mode {mode:04o}) and we are uid {os.geteuid()}"
    if mode & _BY_OTHERS:
        return f"it belongs to uid {found.st_uid} with mode {mode:04o}, so others can write to it"
    return ""


def _refuse_symlink(shown: str, path: str, at: int | None) -> None:
    try:
        found = os.stat(path, dir_fd=at, follow_symlinks=False)
    except OSError:
        return  # gone by now: the error that led here tells what happened
    if stat.S_ISLNK(found.st_mode):
        mode = stat.S_IMODE(found.st_mode)
        raise _untrusted(shown, f"it is a symbolic link of uid {found.st_uid} (mode {mode:04o})")


def _untrusted(path: str, reason: str) -> UntrustedFolder:
    return UntrustedFolder(
        f"{path} is not used as a cache",
        why=reason,
        next_step="Name a directory that is yours alone (chmod 700), or set cache = false.",
        subject=path,
    )
