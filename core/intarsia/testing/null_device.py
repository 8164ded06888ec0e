"""The null device: static graphs without a GPU.

It replays recorded calls on the addresses that were recorded, and nothing else: a stale address gives a
wrong number that a test sees.
As on a device, nothing runs while it is recorded, the results of a recording are garbage until it was
replayed, and they lie in a pool whose memory later recordings use again once nobody owns it.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import define, field, frozen

from intarsia.interfaces import Box, PieceSignature, StaticGraphSpec, Stream
from intarsia.runtime.memory import copied, copy_values, in_original, over

FAULTS = ("begin", "first", "last", "end", "replay", "measure", "memory")
"""Where a fault may be injected: see `NullDevice.fail`."""


class NullDeviceError(RuntimeError):
    """What the null device raises: an injected fault, or a slot or a pool that is used up."""


class NullPlugin:
    """A plugin that brings one null device as the static-graph backend "null", for CPU tensors.

        plugin = NullPlugin(slots=10)
        host = intarsia.host.Host(settings, extra_plugins=[plugin])

    Attributes:
        device: the null device.
    """

    intarsia_api_version = (1, 0)
    __name__ = "intarsia_null_device"

    def __init__(self, **options: Any) -> None:
        self.device = NullDevice(options)

    def intarsia_static_graphs(self) -> list[StaticGraphSpec]:
        """Bring the backend."""
        return [StaticGraphSpec("null", lambda options, device: self.device, devices=("cpu",))]


@define(eq=False)
class NullPool:
    """A pool: memory that recordings use, some of it again and again.

    Attributes:
        limit: how many bytes it may take.
        taken: how many it has taken.
        recordings: how many use it.
    """

    limit: int
    taken: int = 0
    recordings: int = 0
    _held: list[torch.Tensor] = field(factory=list)
    _free: list[tuple[int, int]] = field(factory=list)
    _lock: threading.RLock = field(factory=threading.RLock)

    def empty_like(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return memory for a result, filled with what is no number.

        Raises:
            torch.OutOfMemoryError: the pool may take no more.
        """
        needed = max(tensor.untyped_storage().nbytes(), 1)
        address, size = self._block(needed)
        kind: Any = type(
            "Block", (ctypes.c_char * needed,), {}
        )  # a class of its own can be referred to weakly
        block = kind.from_address(address)
        weakref.finalize(block, self._give, address, size)
        made = torch.frombuffer(block, dtype=torch.uint8).fill_(0xFF)
        return over(made.untyped_storage(), tensor)

    def _block(self, needed: int) -> tuple[int, int]:
        with self._lock:
            fitting = sorted((size, address) for address, size in self._free if size >= needed)
            if fitting:
                size, address = fitting[0]
                self._free.remove((address, size))
                return address, size
            if self.taken + needed > self.limit:
                raise torch.OutOfMemoryError(
                    f"the null device is out of memory: {self.taken} of {self.limit} bytes are taken, and "
                    f"{needed} are asked for"
                )
            memory = torch.empty(needed + 64, dtype=torch.uint8)
            self._held.append(memory)
            self.taken += needed
            return -(-memory.data_ptr() // 64) * 64, needed

    def _give(self, address: int, size: int) -> None:
        with self._lock:
            self._free.append((address, size))

    def trim(self) -> None:
        """Give back all memory, if nobody owns any and no recording uses it."""
        with self._lock:
            if not self.recordings and sum(size for _, size in self._free) == self.taken:
                self._held.clear()
                self._free.clear()
                self.taken = 0


@frozen
class _Call:
    function: Callable[..., Any]
    inputs: tuple[Any, ...]
    results: tuple[tuple[int, Any], ...]

    def run(self) -> None:
        made = _listed(self.function(*self.inputs))
        for number, target in self.results:
            copy_values(target, made[number])


@define(eq=False)
class _Unfinished:
    pool: NullPool
    taken_before: int
    calls: list[_Call] = field(factory=list)


@define(eq=False)
class NullRecording:
    """Recorded calls, with the addresses that they read and write."""

    device: NullDevice
    pool: NullPool
    calls: Sequence[_Call]
    cost: Mapping[str, int]
    released: bool = False

    def replay(self) -> None:
        """Run the calls again on the recorded addresses."""
        if self.released:
            raise NullDeviceError("a released recording was replayed")
        self.device.failing("replay")
        self.device.replays += 1
        with torch.no_grad():
            for call in self.calls:
                call.run()

    def release(self) -> None:
        """Give the slot back, and with a pool's last recording the pool's memory."""
        if not self.released:
            self.released = True
            self.calls = ()
            self.device.used -= 1
            self.pool.recordings -= 1
            self.pool.trim()


class NullDevice:
    """The static-graph backend "null".

    Options: `slots`, how many recordings there may be at once; `bytes`, how much memory pools may take;
    `estimates`, whether costs are known before recording.

    Attributes:
        slots: how many recordings there may be at once.
        used: how many there are.
        recordings: how many were made.
        replays: how many times one ran.
        highest: how many there were at most.
    """

    def __init__(self, options: Mapping[str, Any], device: int | None = None) -> None:
        self.slots: int = options.get("slots", 1 << 16)
        self.bytes: int = options.get("bytes", 1 << 40)
        self.estimates: bool = options.get("estimates", True)
        self.used = self.recordings = self.replays = self.highest = 0
        self.pools: list[NullPool] = []
        self._faults: dict[str, tuple[int, BaseException]] = {}
        self._local = threading.local()

    def fail(self, where: str, error: BaseException | None = None, *, after: int = 0) -> None:
        """Raise an error once at a step of the recordings to come.

        Args:
            where: "begin", "first" (before the first recorded call), "last" (after the last one), "end",
                "replay", "measure" or "memory" (where a result gets its memory).
            error: what is raised; None: a NullDeviceError.
            after: how often the step is passed before it fails.
        """
        assert where in FAULTS, where
        self._faults[where] = (after, error or NullDeviceError(f"a fault at {where}"))

    def failing(self, where: str) -> None:
        """Raise the fault that is due at a step."""
        if where not in self._faults:
            return
        left, error = self._faults.pop(where)
        if left:
            self._faults[where] = (left - 1, error)
            return
        raise error

    @property
    def is_recording(self) -> bool:
        """Whether this thread has an unfinished recording."""
        return getattr(self._local, "unfinished", None) is not None

    # -- the backend

    def new_pool(self, device: int | None) -> NullPool:
        """Return a pool."""
        pool = NullPool(self.bytes)
        self.pools.append(pool)
        return pool

    def release_pool(self, pool: NullPool) -> None:
        """Give a pool's memory back."""
        pool.trim()
        self.pools.remove(pool)

    def begin(self, pool: NullPool, stream: Stream) -> None:
        """Start a recording.

        Raises:
            NullDeviceError: every slot is used.
        """
        assert not self.is_recording, "one recording per thread at a time"
        if self.used >= self.slots:
            raise NullDeviceError(f"all {self.slots} slots of the null device are used")
        self._local.unfinished = _Unfinished(pool, pool.taken)
        self.failing("begin")

    def run(
        self, function: Callable[..., Any], inputs: Sequence[Any],
        weights: Sequence[torch.Tensor] = (),
    ) -> tuple[Any, ...]:  # fmt: skip
        """Record a call: the results have their place and no values yet, and nothing was written.

        `weights` are tensors that the function has besides its inputs.
        """
        self.failing("first")
        unfinished: _Unfinished = self._local.unfinished
        copies, before = (
            copied(inputs, range(len(inputs))),
            [weight.detach().clone() for weight in weights],
        )
        bound = {weight.untyped_storage().data_ptr() for weight in weights} - {0}
        with torch.no_grad():
            made = _listed(function(*copies))
            for weight, value in zip(weights, before, strict=True):
                weight.detach().copy_(value)
        results: list[Any] = []
        places: list[tuple[int, Any]] = []
        owned: dict[int, torch.UntypedStorage] = {}
        for number, value in enumerate(made):
            if not isinstance(value, torch.Tensor) or value.untyped_storage().data_ptr() in bound:
                results.append(value)
                continue
            own = in_original(value, copies, inputs)
            if own is None:
                own = self._own(value, unfinished.pool, owned)
                places.append((number, _borrowed(own)))
            results.append(own)
        lent = tuple(_borrowed(v) if isinstance(v, torch.Tensor) else v for v in inputs)
        unfinished.calls.append(_Call(function, lent, tuple(places)))
        self.failing("last")
        return tuple(results)

    def _own(
        self, value: torch.Tensor, pool: NullPool, owned: dict[int, torch.UntypedStorage]
    ) -> torch.Tensor:
        """Return a result's place: results that share memory share it in the pool too."""
        start = value.untyped_storage().data_ptr()
        if start not in owned or not start:
            self.failing("memory")
            owned[start] = pool.empty_like(value).untyped_storage()
        return over(owned[start], value)

    def end(self) -> NullRecording:
        """Finish the recording."""
        self.failing("end")
        unfinished: _Unfinished = self._local.unfinished
        self._local.unfinished = None
        self.used += 1
        self.recordings += 1
        self.highest = max(self.highest, self.used)
        grown = unfinished.pool.taken - unfinished.taken_before
        unfinished.pool.recordings += 1
        cost = {"slots": 1, "bytes": grown}
        return NullRecording(self, unfinished.pool, tuple(unfinished.calls), cost)

    def abort(self, stream: Stream) -> None:
        """Drop the unfinished recording."""
        unfinished: _Unfinished | None = getattr(self._local, "unfinished", None)
        self._local.unfinished = None
        if unfinished is not None:
            unfinished.calls.clear()
            unfinished.pool.trim()

    def budget(self, device: int | None) -> Mapping[str, int]:
        """Return the slots and bytes that are left."""
        taken = sum(pool.taken for pool in self.pools)
        return {"slots": self.slots - self.used, "bytes": self.bytes - taken}

    def estimate(self, signature: PieceSignature, box: Box) -> Mapping[str, int] | None:
        """Return one slot; None where the option `estimates` is off."""
        return {"slots": 1} if self.estimates else None

    def measure(self, recording: Any) -> Mapping[str, int]:
        """Return the slot, and the bytes by which the pool has grown."""
        self.failing("measure")
        return recording.cost


def _listed(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, tuple | list) else [outputs]


def _borrowed(tensor: torch.Tensor) -> torch.Tensor:
    from intarsia.torch_compat import borrowed

    return borrowed(tensor)


def plugins() -> list[NullPlugin]:
    """Return the plugin, for the conformance kit, which makes plugins by name."""
    return [NullPlugin()]
