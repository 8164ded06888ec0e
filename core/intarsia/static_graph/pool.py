"""What recordings share: a pool of device memory, the inputs that are copied in, and whose turn it is."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from attrs import define, field

from intarsia.interfaces import DeviceOps, StaticGraphBackend, Stream


@define(eq=False)
class Inputs:
    """The memory that differing inputs are copied to.

    An input is copied in right before the replay that reads it, and all replays over a pool run one after
    the other, so that the n-th copied inputs of all of them share the same memory. An argument that one
    recording passes on to the next has a slot of its own name.
    """

    _flat: dict[tuple[int | str, torch.device], torch.Tensor] = field(factory=dict)

    def like(self, slot: int | str, tensor: torch.Tensor) -> torch.Tensor:
        """Return the memory of a slot, with a tensor's dtype, shape and stride."""
        extent = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        count = 1 + extent if tensor.numel() else 0
        needed = count * tensor.element_size()
        flat = self._flat.get((slot, tensor.device))
        if flat is None or flat.numel() < needed:
            with torch.inference_mode(False):  # it is written to in calls of any mode
                flat = torch.empty(needed, dtype=torch.uint8, device=tensor.device)
            self._flat[slot, tensor.device] = flat
        with torch.inference_mode(False):
            return flat[:needed].view(tensor.dtype).as_strided(tensor.shape, tensor.stride())

    def bytes(self) -> int:
        """Return how much memory that is."""
        return sum(flat.nbytes for flat in self._flat.values())


@define(eq=False)
class Pool:
    """A pool of memory for recordings, which several compiled models may share.

    Attributes:
        lock: held by who records or replays; recordings of a pool use the same memory.
        handle: the backend's own.
        stream: what is recorded on.
        inputs: the memory of copied inputs.
        lent: where the memory of results begins that callers have borrowed.
    """

    backend: StaticGraphBackend
    device: int | None
    ops: DeviceOps
    lock: Any = field(factory=threading.RLock)
    handle: Any = field(init=False)
    stream: Stream = field(init=False)
    inputs: Inputs = field(factory=Inputs)
    lent: set[int] = field(factory=set)
    _users: weakref.WeakSet[Any] = field(factory=weakref.WeakSet, init=False)
    _end: Any = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.handle = self.backend.new_pool(self.device)
        self.stream = self.ops.stream()
        self._end = weakref.finalize(self, self.backend.release_pool, self.handle)
        self._end.atexit = False

    def join(self, user: Any) -> None:
        """Note who records into the pool."""
        self._users.add(user)

    def leave(self, user: Any) -> None:
        """Note that somebody's recordings are released; the last who leaves gives the memory back."""
        self._users.discard(user)
        if not self._users:
            self.release()

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Run the block on the stream that is recorded on, with nothing else over this pool.

        What compiled pieces make at their first run on a stream (workspaces) must be made on that one
        before it is recorded. The collector is off: a finaliser in a recording may touch the device.
        """
        with self.lock, _gc_paused():
            self.ops.synchronize()
            with self.stream:
                yield
            self.ops.synchronize()

    def release(self) -> None:
        """Give the memory back; the recordings were released before."""
        self._end()
        self.inputs = Inputs()
        self.ops.empty_cache()


@contextlib.contextmanager
def _gc_paused() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
