"""The device "toynpu" in torch.

Torch registers it at the end of `import torch`, through the entry point in the group `torch.backends`;
where that is switched off (`TORCH_DEVICE_BACKEND_AUTOLOAD=0`), `register()` does it.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from intarsia_toynpu import kernels, memory

NAME = "toynpu"

_kept: list[Any] = []
"""The kernels' libraries: torch forgets a kernel when its library is collected."""


class BackendModule:
    """What torch shows as `torch.toynpu`."""

    @staticmethod
    def is_initialized() -> bool:
        """Say whether the device has been used: it has nothing else to begin with."""
        return memory.reserved_bytes() > 0

    @staticmethod
    def is_available() -> bool:
        """Say yes: the device is in every machine."""
        return True

    @staticmethod
    def current_device() -> int:
        """Return the only device's index."""
        return 0

    @staticmethod
    def device_count() -> int:
        """Return 1."""
        return 1

    @staticmethod
    def set_device(device: Any) -> None:
        """Do nothing: the only device is the current one."""

    @staticmethod
    def device(index: Any) -> contextlib.AbstractContextManager[None]:
        """Return a context in which a device is current."""
        return contextlib.nullcontext()

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """Do nothing: random numbers come from the host's generator, which torch seeds."""

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False


def register() -> None:
    """Give torch the device; does nothing where it has it.

    Raises:
        RuntimeError: this torch cannot take a device written in Python, or has another one already.
    """
    if _kept:
        return
    from torch.utils import backend_registration

    # Experimental, and the one way that torch documents for a device in Python.
    setup = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
    if setup is None:
        raise RuntimeError(
            f"torch {torch.__version__} takes no device that is written in Python; toynpu needs torch "
            "2.11 to 2.15"
        )
    setup(NAME, backend_module=BackendModule())
    torch.serialization.register_package(5, _location_of, _restored)
    _kept.extend(kernels.register_kernels())
    from intarsia_toynpu import ops

    _kept.append(ops.register_ops())


def _location_of(storage: Any) -> str | None:
    return NAME if storage.device.type == NAME else None


def _restored(storage: Any, location: str) -> torch.UntypedStorage | None:
    """Return what `torch.load` read, on the device: torch itself cannot make a storage there."""
    if location.partition(":")[0] != NAME:
        return None
    host = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage)
    return host.to(NAME).untyped_storage()
