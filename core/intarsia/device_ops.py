"""What the core does to a device where its platform brings nothing of its own: `torch.accelerator`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from intarsia.errors import PluginError
from intarsia.interfaces import DeviceOps, PlatformSpec, Stream
from intarsia.references import resolve_reference


def device_ops(platform: PlatformSpec, index: int | None) -> DeviceOps:
    """Return a platform's device operations: its own, or the default ones.

    Raises:
        PluginError: it brings none, and its device type is neither the CPU nor torch's accelerator.
    """
    if platform.device is None:
        return AcceleratorOps(platform.device_type, index)
    owner = f'platform "{platform.name}"'
    found: DeviceOps = resolve_reference(platform.device, owner=owner)(index)
    return found


class AcceleratorOps:
    """Device operations on the CPU, or on the one accelerator that this torch is built for."""

    def __init__(self, device_type: str, index: int | None = None) -> None:
        accelerator = torch.accelerator.current_accelerator()
        known = "none" if accelerator is None else accelerator.type
        if device_type not in ("cpu", known):
            raise PluginError(
                f'device type "{device_type}" has no device operations',
                why=f"the accelerator of this torch is {known}",
                next_step="A platform for another device brings its own: PlatformSpec.device.",
                subject=device_type,
            )
        self._is_cpu = device_type == "cpu"
        is_whole = self._is_cpu or index is None
        self._device = torch.device(device_type if is_whole else f"{device_type}:{index}")

    def synchronize(self) -> None:
        """Wait until the device has finished all work."""
        if not self._is_cpu:
            torch.accelerator.synchronize(self._device)

    def event(self) -> Any:
        """Return a new timing event; on the CPU it notes the time."""
        return CpuEvent() if self._is_cpu else torch.Event(self._device, enable_timing=True)

    def stream(self) -> Stream:
        """Return a side stream. Up to torch 2.11 one that is entered cannot be entered again inside."""
        return CpuStream() if self._is_cpu else torch.Stream(self._device)

    def memory(self) -> Mapping[str, int]:
        """Return the bytes allocated and reserved by torch and free on the device; none on the CPU."""
        if self._is_cpu:
            return {}
        stats = torch.accelerator.memory_stats(self._device)
        free, _ = torch.accelerator.get_memory_info(self._device)
        return {
            "allocated": stats.get("allocated_bytes.all.current", 0),
            "reserved": stats.get("reserved_bytes.all.current", 0),
            "free": free,
        }

    def empty_cache(self) -> None:
        """Return cached memory to the device."""
        if not self._is_cpu:
            torch.accelerator.empty_cache()

    def device_count(self) -> int:
        """Return the number of devices; a machine has one CPU."""
        return 1 if self._is_cpu else torch.accelerator.device_count()

    def guard(self, index: int) -> AbstractContextManager[Any]:
        """Return a context in which device `index` is current."""
        return nullcontext() if self._is_cpu else torch.accelerator.device_index(index)


class CpuStream:
    """The CPU's order of work: every call is done when it returns."""

    def __enter__(self) -> CpuStream:
        return self

    def __exit__(self, *error: Any) -> None:
        return None

    def synchronize(self) -> None:
        """Return at once."""


class CpuEvent:
    """A moment on the CPU."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def record(self, stream: Any = None) -> None:
        """Note the time."""
        self._seconds = time.perf_counter()

    def elapsed_time(self, other: CpuEvent) -> float:
        """Return the milliseconds from this event to another."""
        return (other._seconds - self._seconds) * 1e3

    def query(self) -> bool:
        """Say that it has happened."""
        return True

    def synchronize(self) -> None:
        """Return at once."""
