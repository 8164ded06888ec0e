"""The default device operations on the CPU."""

from __future__ import annotations

import time

import pytest
import torch

from intarsia.device_ops import AcceleratorOps, device_ops
from intarsia.errors import PluginError
from intarsia.interfaces import DeviceOps, PlatformSpec


def test_cpu_has_every_operation() -> None:
    ops: DeviceOps = AcceleratorOps("cpu")
    ops.synchronize()
    ops.empty_cache()
    assert ops.device_count() == 1
    assert ops.memory() == {}
    with ops.guard(0), ops.stream() as stream:
        stream.synchronize()


def test_cpu_event_measures_wall_time() -> None:
    ops = AcceleratorOps("cpu")
    begin, end = ops.event(), ops.event()
    begin.record()
    time.sleep(0.01)
    end.record()
    assert 10 <= begin.elapsed_time(end) < 1000


def test_platform_with_operations_of_its_own_gets_the_index() -> None:
    own = AcceleratorOps("cpu")
    asked = []

    def build(index: int | None) -> DeviceOps:
        asked.append(index)
        return own

    assert device_ops(PlatformSpec(name="a", device_type="acme", device=build), 3) is own
    assert asked == [3]
    assert isinstance(device_ops(PlatformSpec(name="c", device_type="cpu"), None), AcceleratorOps)


@pytest.mark.skipif(
    torch.accelerator.current_accelerator() is not None, reason="has an accelerator"
)
def test_device_without_operations_is_named() -> None:
    with pytest.raises(
        PluginError, match='"acme" has no device operations: the accelerator .* none'
    ):
        device_ops(PlatformSpec(name="a", device_type="acme"), 0)
