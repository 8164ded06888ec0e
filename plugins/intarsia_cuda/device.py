"""Whether CUDA can be used here, and what code that was compiled for it depends on."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

import torch

from intarsia.interfaces import Decision
from intarsia_cuda import driver


def available() -> Decision:
    """Say whether there is a CUDA device, without initialising CUDA.

    `torch.cuda.is_available()` initialises the driver, after which a forked child cannot use CUDA;
    `device_count()` asks NVML, and the driver only where NVML cannot tell.
    """
    if torch.version.hip is not None:
        return Decision(False, f"torch {torch.__version__} is built for ROCm, not for CUDA")
    if torch.version.cuda is None:
        return Decision(False, f"torch {torch.__version__} is built without CUDA")
    count = torch.cuda.device_count()
    if not count:
        return Decision(False, "no CUDA device is visible")
    return Decision(True, f"{count} device{'s' if count > 1 else ''}, CUDA {torch.version.cuda}")


def traits(device: int | None) -> Mapping[str, str]:
    """Return what compiled code depends on; reads one device's properties and allocates nothing."""
    found = torch.cuda.get_device_properties(
        torch.cuda.current_device() if device is None else device
    )
    return {
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": str(found.multi_processor_count),
        "toolkit": str(torch.version.cuda),
        "driver": driver.version(),
    }


def accepts(built_for: Mapping[str, str], here: Mapping[str, str]) -> Decision:
    """Accept what was built for this capability and toolkit, an older driver, and no larger a device.

    A kernel whose blocks wait for each other hangs where they do not all fit, so a device with fewer
    multiprocessors (a slice of one, too) is another device.
    """
    for name, fits in (
        ("capability", _same),
        ("toolkit", _same_major),
        ("driver", _not_below),
        ("multiprocessors", _not_below),
    ):
        was, now = built_for.get(name, ""), here.get(name, "")
        if not fits(was, now):
            return Decision(False, f"trait {name}: built for {was!r}, here {now!r}")
    return Decision(True)


def _same(was: str, now: str) -> bool:
    return was == now


def _same_major(was: str, now: str) -> bool:
    return was.partition(".")[0] == now.partition(".")[0]


def _not_below(was: str, now: str) -> bool:
    return _number(now) >= _number(was)


def _number(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def check_driver() -> Decision:
    """Check that the driver serves the CUDA that torch was built with."""
    usable = available()
    if not usable:
        return Decision(True, f"not needed: {usable.reason}")
    has, wants = driver.version(), str(torch.version.cuda)
    # Minor versions are compatible within a major one; a driver of an older major version is not.
    if not has or _number(has)[:1] < _number(wants)[:1]:
        return Decision(
            False, f"the driver serves CUDA {has or 'none'}, torch was built with {wants}"
        )
    return Decision(True, f"serves CUDA {has}, torch was built with {wants}")


def check_triton() -> Decision:
    """Check that Triton is installed, without importing it: Inductor writes CUDA kernels in it."""
    usable = available()
    if not usable:
        return Decision(True, f"not needed: {usable.reason}")
    if find_spec("triton") is None:
        return Decision(
            False, "triton is not installed: Inductor cannot compile for CUDA. pip install triton"
        )
    return Decision(True, "installed")
