"""From the settings to an open cache."""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Callable, Iterator

from intarsia.cache.cache import Cache
from intarsia.cache.chain import Guarded
from intarsia.cache.local import LocalStore
from intarsia.errors import ConfigError
from intarsia.interfaces import Store, StoreSpec
from intarsia.references import resolve_reference

__all__ = ["open_cache", "read_secret", "user_root"]

log = logging.getLogger("intarsia")

Warn = Callable[[str], None]
Stores = Callable[[str], StoreSpec | None]

_URL = re.compile(r"([a-z][a-z0-9+.-]*(?:::[a-z][a-z0-9+.-]*)*)://", re.IGNORECASE)
_LEAST_SECRET, _LONGEST_SECRET = 16, 4096
"""Bytes; a shorter secret can be guessed, and what is longer counts no more."""


def open_cache(
    setting: bool | str | tuple[str, ...],
    *,
    key_file: str | None = None,
    strict: bool = False,
    warn: Warn = log.warning,
    note: Callable[[str], None] = log.info,
    stores: Stores | None = None,
) -> Cache | None:
    """Return the cache that the settings ask for; None where they ask for none.

    Without a place to keep anything the cache is open and empty: every load misses, no save is kept, and
    one warning says why. No store is touched before it is used.

    Args:
        setting: the setting `cache`.
        key_file: the setting `cache_key_file`.
        strict: raise where an entry is bad.
        warn: takes one line about what went wrong.
        note: takes one line about an entry that is fine and cannot be used here.
        stores: returns the store of a plugin by URL scheme; raises ConfigError or returns None where
            nobody brings one, and fsspec is asked then.

    Raises:
        ConfigError: a URL cannot be reached for want of a package, or the secret must not be used.
    """
    if setting is False:
        return None
    secret = read_secret(key_file) if key_file is not None else None
    places = [
        Guarded(store, name, warn)
        for name in _names(setting, warn)
        for store in [open_store(name, stores)]
    ]
    return Cache(places, secret=secret, strict=strict, warn=warn, note=note)


def user_root() -> str | None:
    """Return the directory of this user's cache, or None where there is none: no home directory."""
    from platformdirs import user_cache_dir  # 5 ms that a cache at a path of its own does not need

    # Without HOME and an entry in passwd, newer platformdirs raise; older ones keep the "~", which would
    # become a folder of that name.
    try:
        root = user_cache_dir("intarsia")
    except (RuntimeError, KeyError) as problem:
        log.debug("there is no cache directory: %s", problem)
        return None
    return root if os.path.isabs(root) else None


def read_secret(path: str) -> bytes:
    """Return the secret in a file.

    Raises:
        ConfigError: it cannot be read, is short, or others can read or change it.
    """
    try:
        fd = os.open(os.path.expanduser(path), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            reason = _why_no_secret(os.fstat(fd))
            secret = b"" if reason else os.read(fd, _LONGEST_SECRET).strip()
        finally:
            os.close(fd)
    except OSError as problem:
        raise _no_secret(path, problem.strerror or str(problem)) from problem
    if not reason and len(secret) < _LEAST_SECRET:
        reason = f"it has {len(secret)} bytes, and a secret needs {_LEAST_SECRET}"
    if reason:
        raise _no_secret(path, reason)
    return secret


def _names(setting: bool | str | tuple[str, ...], warn: Warn) -> Iterator[str]:
    """Return the absolute path or the URL of each store, in order."""
    if isinstance(setting, tuple):
        yield from (item if _URL.match(item) else _absolute(item) for item in setting)
        return
    is_url = isinstance(setting, str) and _URL.match(setting) is not None
    if isinstance(setting, bool) or is_url:
        root = user_root()
        if root is not None:
            yield root
        elif not is_url:
            warn("there is no directory for the cache, since HOME is not set: nothing is kept")
    if isinstance(setting, str):
        yield setting if is_url else _absolute(setting)


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def open_store(name: str, stores: Stores | None = None) -> Store:
    """Return the store of a folder or URL; nothing is touched before it is used.

    Raises:
        ConfigError: a URL cannot be reached for want of a package.
    """
    found = _URL.match(name)
    if found is None:
        return LocalStore(name)
    scheme = found[1].lower()
    spec = _from_plugin(scheme, stores)
    if spec is not None:
        factory = resolve_reference(spec.factory, owner=f'store "{scheme}"')
        store: Store = factory(name, {})
        return store
    if scheme in ("file", "local"):
        # Of a directory that is ours alone the same is asked however it is written.
        return LocalStore(_absolute(name[found.end() :]))
    from intarsia.cache.remote import RemoteStore, check_protocol  # only URLs need it

    check_protocol(name, scheme)
    return RemoteStore(name)


def _from_plugin(scheme: str, stores: Stores | None) -> StoreSpec | None:
    try:
        return stores(scheme) if stores is not None else None
    except ConfigError:
        return None  # nobody brings it


def _why_no_secret(found: os.stat_result) -> str:
    if not stat.S_ISREG(found.st_mode):
        return "it is not a regular file"
    if found.st_uid != os.geteuid():
        return f"it belongs to uid {found.st_uid} and we are uid {os.geteuid()}"
    mode = stat.S_IMODE(found.st_mode)
    return f"its mode is {mode:04o}, so others can read it" if mode & 0o077 else ""


def _no_secret(path: str, reason: str) -> ConfigError:
    return ConfigError(
        f"the secret in {path} cannot be used",
        why=reason,
        next_step="Name a file of yours that only you can read (chmod 600), with 16 random bytes or more.",
        subject=path,
    )
