"""The CPU platform."""

from __future__ import annotations

from collections.abc import Mapping

from intarsia.interfaces import PlatformSpec

intarsia_api_version = (1, 0)


def traits_of(device: int | None) -> Mapping[str, str]:
    """Return what compiled CPU code depends on."""
    from intarsia_cpu.machine import cpu_traits  # reads torch, which discovery must not import

    return cpu_traits()


def intarsia_platforms() -> list[PlatformSpec]:
    """Bring the platform "cpu"."""
    return [
        PlatformSpec(
            name="cpu",
            device_type="cpu",
            traits=traits_of,
            compilers=("inductor", "eager"),
            priority=0,
        )
    ]
