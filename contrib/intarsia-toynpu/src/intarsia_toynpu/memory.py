"""The memory of the toy NPU, and tensors on it.

The device has no memory of its own: it is the host's, which makes it a toy. All else is as on a device: a
tensor has an address, its memory comes from a caching allocator with a limit, and the host sees it through
`host_view` alone.

Torch takes a tensor on a device of ours through DLPack, which has a device type for it: the only way in pure
Python to a tensor with an address.
"""

from __future__ import annotations

import ctypes
import math
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from attrs import define, field
from torch.utils import dlpack

DEVICE_BYTES = 1 << 31
"""How much memory the device has."""

_ALIGNMENT = 64
_EXTENSION_DEVICE = 12
"""DLPack's kDLExtDev: torch's PrivateUse1."""


class _Header(ctypes.Structure):
    """The start of DLPack's DLManagedTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
    )


_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


@define(eq=False)
class Pool:
    """Memory that is used again once nobody owns it, and goes back with `trim`.

    Attributes:
        allocated: bytes that tensors own.
        reserved: bytes taken from the device, `allocated` among them.
    """

    allocated: int = 0
    reserved: int = 0
    recordings: int = 0
    """How many recordings read and write this memory, whoever owns it."""
    _free: dict[int, list[torch.Tensor]] = field(factory=dict)
    _lock: threading.RLock = field(factory=threading.RLock)  # a finaliser may run inside

    def take(self, size: int) -> Any:
        """Return memory: a ctypes buffer, which gives it back when it is gone.

        Raises:
            torch.OutOfMemoryError: the device has no more.
        """
        size = -(-max(size, 1) // _ALIGNMENT) * _ALIGNMENT
        with self._lock:
            kept = self._free.get(size)
            memory = kept.pop() if kept else self._reserve(size)
            self.allocated += size
        start = -(-memory.data_ptr() // _ALIGNMENT) * _ALIGNMENT
        # A class of its own can be referred to weakly.
        block = _block_class(size).from_address(start)
        weakref.finalize(block, self._give, size, memory).atexit = False
        return block

    def _reserve(self, size: int) -> torch.Tensor:
        if reserved_bytes() + size > DEVICE_BYTES:
            MEMORY.trim()
        if reserved_bytes() + size > DEVICE_BYTES:
            raise torch.OutOfMemoryError(
                f"toynpu is out of memory: {reserved_bytes()} of {DEVICE_BYTES} bytes are taken, and {size} "
                "are asked for"
            )
        self.reserved += size
        return torch.empty(size + _ALIGNMENT, dtype=torch.uint8, device="cpu")

    def _give(self, size: int, memory: torch.Tensor) -> None:
        with self._lock:
            self.allocated -= size
            self._free.setdefault(size, []).append(memory)

    def trim(self) -> None:
        """Give back to the device what nobody owns; a recording's memory stays."""
        with self._lock:
            if not self.recordings:
                self.reserved -= sum(size * len(kept) for size, kept in self._free.items())
                self._free.clear()


MEMORY = Pool()
"""Where tensors outside recordings have their memory."""

_pools: weakref.WeakSet[Pool] = weakref.WeakSet([MEMORY])


def new_pool() -> Pool:
    """Return a pool of its own, for recordings."""
    made = Pool()
    _pools.add(made)
    return made


def reserved_bytes() -> int:
    """Return the bytes that all pools have taken from the device."""
    return sum(pool.reserved for pool in list(_pools))


_classes: dict[int, Any] = {}


def _block_class(size: int) -> Any:
    if size not in _classes:
        _classes[size] = type("Block", (ctypes.c_char * size,), {})
    return _classes[size]


def extent(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Return how many elements lie from a strided tensor's first to its last one."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))


def empty(
    shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype, pool: Pool = MEMORY
) -> torch.Tensor:
    """Return a tensor on the device; its values are whatever lies there."""
    block = pool.take(extent(shape, stride) * dtype.itemsize)
    host = torch.frombuffer(block, dtype=dtype).as_strided(shape, stride)
    return _on_device(host)


def over(
    storage: torch.UntypedStorage, offset: int, shape: Sequence[int], stride: Sequence[int],
    dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """Return a tensor in the memory of a storage on the device, which it keeps."""
    if not storage.nbytes():
        return empty(shape, stride, dtype)
    block = _block_class(storage.nbytes()).from_address(storage.data_ptr())
    block.storage = storage
    whole = _on_device(torch.frombuffer(block, dtype=torch.uint8))
    return whole.view(dtype).as_strided_(shape, stride, offset)


def _on_device(host: torch.Tensor) -> torch.Tensor:
    """Return the device's tensor over memory that the host's one keeps."""
    capsule = dlpack.to_dlpack(host)
    header = _Header.from_address(_pointer(capsule, b"dltensor"))
    header.device_type, header.device_id = _EXTENSION_DEVICE, 0
    made = dlpack.from_dlpack(capsule)
    if made.stride() != host.stride():  # DLPack writes 1 for a dimension of size 1
        made.as_strided_(host.shape, host.stride())
    return made


def host_view(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same elements for the host. The view does not keep the memory: its owner must."""
    size = extent(tensor.shape, tensor.stride()) * tensor.element_size()
    if not size:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    block = (ctypes.c_char * size).from_address(tensor.data_ptr())
    return torch.frombuffer(block, dtype=tensor.dtype).as_strided(tensor.shape, tensor.stride())


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a row-major tensor."""
    return tuple(math.prod(max(n, 1) for n in shape[i + 1 :]) for i in range(len(shape)))
