"""Identities: what of a component enters a key."""

from __future__ import annotations

from intarsia.compiling.identity import platform_factors
from intarsia.interfaces import PlatformSpec


def test_two_devices_of_a_platform_share_no_entry() -> None:
    # What a compiler generates names the device: Inductor's code sets it, and launches there.
    platform = PlatformSpec("npu", "npu", traits=lambda index: {"memory": "8"})
    one, other = (platform_factors(platform, index) for index in (0, 1))
    assert {k for k in one if one[k] != other[k]} == {"device index"}
