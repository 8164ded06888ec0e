"""The scheduler's part of the store: entries in its memory, which every client of the cluster reaches."""

from __future__ import annotations

import errno
import time
from typing import Any

from distributed import SchedulerPlugin

__all__ = ["LIMIT", "Shelf"]

LIMIT = 4 << 30
"""Bytes."""


class Shelf(SchedulerPlugin):
    """Keeps the entries of a cache in a Dask scheduler for as long as that runs.

    The scheduler works in one thread, so that of two clients that store one key only one does.
    `client.register_plugin(Shelf(limit))` before the first use sets how many bytes it takes; a store
    registers one by itself otherwise.
    """

    name = "intarsia-shelf"
    idempotent = True

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.entries: dict[str, tuple[bytes, float]] = {}

    async def start(self, scheduler: Any) -> None:
        """Take calls."""
        scheduler.handlers.update(
            intarsia_get=self.get, intarsia_stat=self.stat, intarsia_put=self.put,
            intarsia_list=self.list, intarsia_delete=self.delete,
        )  # fmt: skip

    def get(self, key: str) -> bytes | None:
        """Return an entry, or None."""
        return self.entries[key][0] if key in self.entries else None

    def stat(self, key: str) -> tuple[int, float] | None:
        """Return an entry's size and when it was stored, or None."""
        if key not in self.entries:
            return None
        data, stored = self.entries[key]
        return len(data), stored

    def put(self, key: str, data: bytes) -> bool:
        """Store an entry unless the key exists; return whether it was stored.

        Raises:
            OSError: there is no room.
        """
        if key in self.entries:
            return False
        if len(data) + sum(len(entry) for entry, _ in self.entries.values()) > self.limit:
            raise OSError(errno.ENOSPC, f"the scheduler holds {self.limit} bytes and no more")
        self.entries[key] = (data, time.time())
        return True

    def list(self) -> list[str]:
        """Return every key."""
        return sorted(self.entries)

    def delete(self, key: str) -> None:
        """Remove an entry; absent is fine."""
        self.entries.pop(key, None)
