"""The worker pools of this process: one for compiles, and one of low priority for background jobs."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Iterator

from attrs import define, field

from intarsia.compiling.planner import has_room
from intarsia.compiling.pool import Lease, WorkerPool
from intarsia.compiling.worker_jobs import get_ready

_BACKGROUND_NICE = 15


@define
class Workers:
    """Owns the pools, which are made at first use."""

    _compiling: WorkerPool | None = None
    _background: WorkerPool | None = None
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def compiling(self, limit: int, *, bounded: bool = True) -> WorkerPool:
        """Return the pool for compiles, which all compiles of the process share.

        Args:
            limit: how many workers there may be; more, while another compile has asked for more.
            bounded: whether free memory bounds them too; not where the user set their number.
        """
        with self._lock:
            if self._compiling is None:
                self._compiling = WorkerPool(limit, initializer=get_ready)
            others = self._compiling.limit if self._compiling.is_held else 0
            self._compiling.limit = max(limit, others)
            self._compiling.may_grow = has_room if bounded else lambda: True
            return self._compiling

    def background(self) -> WorkerPool:
        """Return the pool for background jobs: one worker, of low priority.

        The order of the disk follows the priority by itself.
        """
        with self._lock:
            if self._background is None:
                self._background = WorkerPool(1, nice=_BACKGROUND_NICE, initializer=get_ready)
            return self._background

    def live(self) -> int:
        """Return how many workers for compiles are up or being started."""
        pool = self._compiling
        return 0 if pool is None else pool.live

    def warm(self, count: int) -> Lease:
        """Start workers for a compile that will surely need them; they stay until the lease is released."""
        pool = self.compiling(count)
        lease = pool.hold()
        pool.warm(count)
        return lease

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep the workers for compiles, if there are any, until the block is done."""
        pool = self._compiling
        with contextlib.nullcontext() if pool is None else pool.hold():
            yield

    def close(self) -> None:
        """End every worker, whatever it does; later compiles get new ones."""
        with self._lock:
            pools = (self._compiling, self._background)
            self._compiling = self._background = None
        for pool in pools:
            if pool is not None:
                pool.close()

    def forget(self) -> None:
        """Drop the pools without ending them: a fork's child has their parent's, and none of the threads."""
        self._compiling = self._background = None
        self._lock = threading.Lock()


workers = Workers()
atexit.register(workers.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=workers.forget)
