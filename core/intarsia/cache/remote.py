"""The store behind a URL that fsspec reaches: `memory://`, `s3://`, `gs://`...

Nothing guards a bucket as the owner and mode of a directory do: whoever may write to it decides what runs
here, unless a secret is set (`cache_key_file`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from intarsia.cache.key import check_key, is_key
from intarsia.errors import ConfigError
from intarsia.interfaces import StoreStat

__all__ = ["RemoteStore", "check_protocol"]

_PACKAGES = {
    "s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"),
    "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs"),
    "az": ("adlfs", "azure"), "abfs": ("adlfs", "azure"), "abfss": ("adlfs", "azure"),
}  # fmt: skip
"""Scheme -> the package that fsspec needs for it, and the extra of ours that brings it."""

_WHOLE = frozenset({"memory", *_PACKAGES, "oss", "oci", "r2"})
"""Schemes where an object appears whole, so that it needs no other name while it is being written."""


def check_protocol(url: str, scheme: str) -> None:
    """Check that fsspec can reach a URL, without connecting to anything.

    Raises:
        ConfigError: it does not know the scheme, or lacks the package that the scheme needs.
    """
    if scheme == "memory":
        return
    package, extra = _PACKAGES.get(scheme, ("", ""))
    if not package:
        _ask_fsspec(url, scheme)
    elif find_spec(package) is None:
        raise ConfigError(
            f'the cache "{url}" cannot be reached',
            why=f'"{scheme}://" needs the package {package}, which is not installed',
            next_step=f"Install it: pip install 'intarsia[{extra}]'",
            subject=url,
        )


def _ask_fsspec(url: str, scheme: str) -> None:
    from fsspec import get_filesystem_class  # 50 ms that a local cache has no use for

    try:
        get_filesystem_class(scheme.partition("::")[0])
    except ImportError as problem:
        raise ConfigError(
            f'the cache "{url}" cannot be reached', why=str(problem), subject=url
        ) from problem
    except ValueError as problem:
        raise ConfigError(
            f'the cache "{url}" cannot be reached',
            why=f'neither fsspec nor a plugin knows "{scheme}://"',
            next_step="Name a directory, or a scheme that `intarsia_stores` or fsspec brings.",
            subject=url,
        ) from problem


class RemoteStore:
    """Keeps entries below a URL. Any method may raise what fsspec raises."""

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        """Name the URL; nothing is imported or connected before the first use.

        Args:
            url: where the entries are.
            options: fsspec's options for that file system.
        """
        self.url = url
        self._options = dict(options or {})
        self._lock = threading.Lock()
        self._opened: tuple[Any, str] | None = None

    def get(self, key: str) -> bytes | None:
        """Return the bytes, or None."""
        return self._read(key)

    def head(self, key: str, size: int) -> bytes | None:
        """Return the first so many bytes, or None."""
        return self._read(key, start=0, end=size)

    def stat(self, key: str) -> StoreStat | None:
        """Return an entry's size and age, or None."""
        fs, path = self._at(key)
        try:
            return StoreStat(int(fs.info(path)["size"]), _modified(fs, path))
        except FileNotFoundError:
            return None

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Store the bytes unless the key exists; return whether they were stored.

        Of two that store one key at the same moment both may be told that they did: their entries are
        equal, and each is whole.
        """
        fs, path = self._at(key)
        fs.invalidate_cache()
        if fs.exists(path):
            return False
        fs.makedirs(fs._parent(path), exist_ok=True)
        if _is_whole(fs):
            fs.pipe_file(path, data)
        else:
            _write_aside(fs, path, data)
        return True

    def list(self) -> Iterator[str]:
        """Return every key, in alphabetical order."""
        fs, path = self._file_system()
        fs.invalidate_cache()
        try:
            names = (found.rpartition("/")[2] for found in fs.find(path))
        except FileNotFoundError:
            return iter(())
        return iter(sorted(name for name in names if is_key(name)))

    def delete(self, key: str) -> None:
        """Remove an entry; absent is fine."""
        fs, path = self._at(key)
        try:
            fs.rm_file(path)
        except FileNotFoundError:
            return

    def _read(self, key: str, **part: int) -> bytes | None:
        fs, path = self._at(key)
        try:
            return bytes(fs.cat_file(path, **part))
        except FileNotFoundError:
            return None

    def _at(self, key: str) -> tuple[Any, str]:
        fs, path = self._file_system()
        return fs, f"{path}/{check_key(key)[:2]}/{key}"

    def _file_system(self) -> tuple[Any, str]:
        with self._lock:
            if self._opened is None:
                from fsspec.core import url_to_fs  # 50 ms that a hit in front of it does not need

                fs, path = url_to_fs(self.url, **self._options)
                self._opened = fs, path.rstrip("/")
            return self._opened


def _is_whole(fs: Any) -> bool:
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return not _WHOLE.isdisjoint(protocols)


def _write_aside(fs: Any, path: str, data: bytes) -> None:
    temporary = f"{path}.{os.urandom(8).hex()}.tmp"
    try:
        fs.pipe_file(temporary, data)
        fs.mv(temporary, path)
    except BaseException:
        _remove_quietly(fs, temporary)
        raise


def _remove_quietly(fs: Any, path: str) -> None:
    try:
        fs.rm_file(path)
    except Exception:
        return  # the error that led here is the one to tell


def _modified(fs: Any, path: str) -> float:
    try:
        return float(fs.modified(path).timestamp())
    except NotImplementedError:
        return 0.0
