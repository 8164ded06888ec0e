"""The state of this process that changes what a compiler generates, so that a worker can take it on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def ambient_state() -> dict[str, Any]:
    """Return torch's process-wide settings, as plain data.

    The number of threads is one: Inductor writes it into its C++ loops, so a worker that compiled with
    one thread would return code that runs on one.
    """
    return {
        "threads": torch.get_num_threads(),
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
    }


def take_on(state: Mapping[str, Any]) -> None:
    """Give this process the settings of another one; nothing happens where they are the same."""
    here = ambient_state()
    if state["threads"] != here["threads"]:
        torch.set_num_threads(state["threads"])
    if state["matmul"] != here["matmul"]:
        torch.set_float32_matmul_precision(state["matmul"])
    names = ("deterministic", "warn_only")
    if any(state[name] != here[name] for name in names):
        torch.use_deterministic_algorithms(state["deterministic"], warn_only=state["warn_only"])
    if state["dtype"] != here["dtype"]:
        torch.set_default_dtype(getattr(torch, state["dtype"]))
