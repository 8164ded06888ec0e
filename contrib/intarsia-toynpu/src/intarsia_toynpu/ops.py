"""The operation that the device has beyond ATen: `toynpu::swiglu`."""

from __future__ import annotations

import torch

from intarsia_toynpu.stream import launch

__all__ = ["register_ops", "swiglu"]


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up, on the host."""
    return torch.nn.functional.silu(gate) * up


def _on_device(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    made: torch.Tensor = launch(lambda views: [swiglu(*views)], [gate, up])[0]
    return made


def register_ops() -> torch.library.Library:
    """Define the operation; it stays as long as what is returned lives."""
    library = torch.library.Library("toynpu", "DEF")
    library.define("swiglu(Tensor gate, Tensor up) -> Tensor")
    library.impl("swiglu", _on_device, "PrivateUse1")
    library.impl("swiglu", swiglu, "CPU")  # for whoever enables the pass elsewhere
    torch.library.register_fake("toynpu::swiglu", swiglu, lib=library)
    return library
