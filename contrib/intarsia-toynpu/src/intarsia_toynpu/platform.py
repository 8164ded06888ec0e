"""What the platform "toynpu" is made of: whether the device is there, its traits, and its operations.

A module of its own, which imports torch before anything of this package: torch, once imported, registers the
device, and could not do so while the module that does it is being imported.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

import torch

from intarsia.interfaces import Decision
from intarsia_toynpu import memory


def available() -> Decision:
    """Say whether the device can be used in this process, without using it."""
    if not hasattr(torch, "toynpu"):
        return Decision(False, "torch does not have it: call intarsia_toynpu.device.register()")
    return Decision(True, "1 device")


def traits(device: int | None) -> Mapping[str, str]:
    """Return what programs depend on: the version of the instruction set."""
    from intarsia_toynpu.program import (
        INSTRUCTION_SET,  # a model, and not a listing, needs programs
    )

    return {"instruction-set": INSTRUCTION_SET}


class NpuOps:
    """What intarsia does to the device. Every launch is done when it returns: nothing waits.

    `torch.accelerator` has no streams and events for a device in Python.
    """

    def __init__(self, index: int | None) -> None:
        self.index = index

    def synchronize(self) -> None:
        """Return at once."""

    def event(self) -> NpuEvent:
        """Return a timing event."""
        return NpuEvent()

    def stream(self) -> NpuStream:
        """Return a stream: an order of work, which the device has one of."""
        return NpuStream()

    def memory(self) -> Mapping[str, int]:
        """Return bytes."""
        reserved = memory.reserved_bytes()
        return {
            "allocated": memory.MEMORY.allocated,
            "reserved": reserved,
            "free": memory.DEVICE_BYTES - reserved,
        }

    def empty_cache(self) -> None:
        """Give back the memory that no tensor owns."""
        memory.MEMORY.trim()

    def device_count(self) -> int:
        """Return 1."""
        return 1

    def guard(self, index: int) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the only device is current."""
        return contextlib.nullcontext()


class NpuStream:
    """A side stream."""

    def __enter__(self) -> NpuStream:
        return self

    def __exit__(self, *error: Any) -> None:
        return None

    def synchronize(self) -> None:
        """Return at once."""


class NpuEvent:
    """A moment on the device."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def record(self, stream: Any = None) -> None:
        """Note the time."""
        self._seconds = time.perf_counter()

    def elapsed_time(self, other: NpuEvent) -> float:
        """Return the milliseconds from this event to another."""
        return (other._seconds - self._seconds) * 1e3

    def query(self) -> bool:
        """Say that it has happened."""
        return True

    def synchronize(self) -> None:
        """Return at once."""
