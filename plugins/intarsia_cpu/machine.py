"""What compiled CPU code depends on: the machine, its instructions, and those that torch uses."""

from __future__ import annotations

import functools
import platform
import re
from collections.abc import Mapping
from pathlib import Path

import torch

_SETS = re.compile(
    r"(avx|amx|sse|ssse3|pni$|fma|f16c|bmi|popcnt|abm$|lzcnt|movbe|aes$|vaes|pclmul|vpclmul|sha|gfni|adx"
    r"|xop$|tbm$|apx|rdpid|clwb|movdir"  # x86
    r"|asimd|sve|sme(\d|_|$)|fp$|fphp$|bf16|i8mm|atomics|crc32|pmull|dcp|lrcpc|jscvt|fcma|flagm"
    r"|rng$|bti$|paca"  # ARM
    r"|rv\d)"  # RISC-V
)
"""How the instruction sets are named among the processor's flags; other flags follow the kernel's version."""


def cpu_traits() -> Mapping[str, str]:
    """Return the machine type, the CPU capability ("AVX2", "AVX512"...), and the instruction sets.

    The capability alone is not enough: Inductor compiles with `-march=native`, so that its code may use
    whatever the processor has that made it, and processors of one capability differ in that.
    """
    return {
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "instructions": instructions(),
    }


@functools.cache
def instructions(file: str = "/proc/cpuinfo") -> str:
    """Return the processor's instruction sets in order, "" where the system does not tell."""
    try:
        with Path(file).open(encoding="utf-8", errors="replace") as text:
            for _, line in zip(
                range(200), text, strict=False
            ):  # the first processor's part is enough
                name, _, value = line.partition(":")
                if name.strip().lower() in ("flags", "features", "isa"):
                    return " ".join(sorted({f for f in value.split() if _SETS.match(f)}))
    except OSError:
        pass
    return ""
