"""The store "dask-scheduler://host:port": a cache that the scheduler of a Dask cluster holds."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from intarsia.errors import ConfigError
from intarsia.interfaces import StoreStat

__all__ = ["DaskStore"]

_TRANSPORTS = {"dask-scheduler": "tcp", "dask-scheduler+tls": "tls"}
_PATIENCE = 10.0
"""Seconds to wait for a scheduler, once per process."""


class DaskStore:
    """Entries that a scheduler holds. Any method may raise what Dask raises."""

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        """Name the scheduler; nothing is imported or connected before the first use.

        Raises:
            ConfigError: the URL has more than a host and a port.
        """
        scheme, _, place = url.partition("://")
        if not place.rstrip("/") or "/" in place.rstrip("/") or "?" in place:
            raise ConfigError(
                f'the cache "{url}" cannot be reached', why="it is not a host and a port",
                next_step=f"Name a scheduler: {scheme}://host:8786", subject=url,
            )  # fmt: skip
        self.address = f"{_TRANSPORTS[scheme]}://{place.rstrip('/')}"
        self._lock = threading.Lock()
        self._client: Any = None
        self._owner = 0
        self._failure: OSError | None = None

    def get(self, key: str) -> bytes | None:
        """Return the bytes, or None."""
        found = self._ask("get", key=key)
        return None if found is None else bytes(found)

    def stat(self, key: str) -> StoreStat | None:
        """Return an entry's size and age, or None."""
        found = self._ask("stat", key=key)
        return None if found is None else StoreStat(int(found[0]), float(found[1]))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Store the bytes unless the key exists; return whether they were stored.

        Raises:
            OSError: the scheduler has no room for them.
        """
        return bool(self._ask("put", key=key, data=data))

    def list(self) -> Iterable[str]:
        """Return every key, in alphabetical order."""
        return list(self._ask("list"))

    def delete(self, key: str) -> None:
        """Remove an entry; absent is fine."""
        self._ask("delete", key=key)

    def _ask(self, what: str, **arguments: Any) -> Any:
        client = self._opened()
        return client.sync(getattr(client.scheduler, f"intarsia_{what}"), **arguments)

    def _opened(self) -> Any:
        """Return a client of this process; a fork's child has its parent's, and none of the threads."""
        with self._lock:
            if self._client is None or self._owner != os.getpid():
                from distributed import (
                    Client,
                )  # half a second that a hit in front of it does not need

                from intarsia_dask.shelf import Shelf

                client = Client(
                    self.address, timeout=_PATIENCE, set_as_default=False, name="intarsia"
                )
                client.register_plugin(Shelf())
                self._client, self._owner = client, os.getpid()
            return self._client
