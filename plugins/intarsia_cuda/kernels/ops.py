"""The fused operators, `torch.ops.intarsia_cuda.*`: Triton on a GPU, the plain form on the CPU.

They are `torch.library.triton_op`, so that Inductor sees the kernels and not a call that it cannot look into.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from intarsia_cuda.kernels import launch, reference

__all__ = ["OPS"]


def _like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)


def _scales(x: Tensor) -> Tensor:
    return torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)


_FAKES: dict[str, Callable[..., Any]] = {
    "add_rms_norm": lambda x, residual, weight, eps: (_like(x), _like(x)),
    "rms_norm_fp8": lambda x, weight, scale, eps: _like(x, reference.FP8),
    "rms_norm_fp8_per_row": lambda x, weight, eps: (_like(x, reference.FP8), _scales(x)),
    "silu_mul": lambda gate, up: _like(gate),
    "silu_mul_fp8": lambda gate, up, scale: _like(gate, reference.FP8),
    "silu_mul_fp8_per_row": lambda gate, up: (_like(gate, reference.FP8), _scales(gate)),
    "rotary": lambda q, k, *others: (reference.heads_like(q), reference.heads_like(k)),
    "qk_norm_rotary": lambda q, k, *others: (reference.heads_like(q), reference.heads_like(k)),
}


def _operator(name: str) -> Any:
    # Without Triton there is the CPU's form alone, and torch would warn of what it cannot look into.
    make: Any = torch.library.triton_op if find_spec("triton") else custom_op
    op = make(f"intarsia_cuda::{name}", getattr(launch, name), mutates_args=())
    op.register_kernel("cpu")(getattr(reference, name))
    op.register_fake(_FAKES[name])
    return op


OPS = {name: _operator(name) for name in _FAKES}
"""The operators, by name. They live as long as this module."""
