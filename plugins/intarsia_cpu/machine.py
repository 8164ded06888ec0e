"""What compiled CPU code depends on: the machine and the vector instructions that torch uses."""

from __future__ import annotations

import platform
from collections.abc import Mapping

import torch


def cpu_traits() -> Mapping[str, str]:
    """Return the machine type and the CPU capability ("AVX2", "AVX512"...)."""
    return {
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
