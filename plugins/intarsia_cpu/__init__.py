"""The CPU platform."""

from __future__ import annotations

from collections.abc import Mapping

from intarsia.interfaces import Decision, PlatformSpec, accepts_equal

intarsia_api_version = (1, 0)


def traits_of(device: int | None) -> Mapping[str, str]:
    """Return what compiled CPU code depends on."""
    from intarsia_cpu.machine import cpu_traits  # reads torch, which discovery must not import

    return cpu_traits()


def accepts(built_for: Mapping[str, str], here: Mapping[str, str]) -> Decision:
    """Accept what was built for this machine, or for one that has no instructions beyond this one's."""
    missing = set(built_for.get("instructions", "").split()) - set(
        here.get("instructions", "").split()
    )
    if missing:
        return Decision(
            False,
            f"trait instructions: built for {', '.join(sorted(missing))}, which this processor lacks",
        )
    return accepts_equal({**built_for, "instructions": ""}, {**here, "instructions": ""})


def intarsia_platforms() -> list[PlatformSpec]:
    """Bring the platform "cpu"."""
    return [
        PlatformSpec(
            name="cpu",
            device_type="cpu",
            traits=traits_of,
            accepts=accepts,
            compilers=("inductor", "eager"),
            priority=0,
        )
    ]
