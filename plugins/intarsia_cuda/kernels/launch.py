"""Allocates what the kernels write and launches them: the operators' form on a GPU.

Every size may be dynamic, and 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import wrap_triton

from intarsia_cuda.kernels import reference

__all__ = [
    "add_rms_norm",
    "qk_norm_rotary",
    "rms_norm_fp8",
    "rms_norm_fp8_per_row",
    "rotary",
    "silu_mul",
    "silu_mul_fp8",
    "silu_mul_fp8_per_row",
]

LARGEST_ROW = 32768
"""The longest row that one program holds in registers."""


def _block(columns: int) -> int:
    """Return the power of two that holds a row.

    Raises:
        ValueError: it is too long.
    """
    if columns > LARGEST_ROW:
        raise ValueError(
            f"a row of {columns} elements is too long for a fused operator, which takes up to "
            f"{LARGEST_ROW}; disable the pass that made it"
        )
    return 1 << max(columns - 1, 0).bit_length()


def _warps(block: int, elements: int = 16) -> int:
    """Return the warps for a row, by how many elements a thread has; 8 are one load of 16 bytes in bf16."""
    return min(max(block // (32 * elements), 1), 16)


def _launcher(kernel: Any) -> Any:
    """Return what launches a kernel so that Inductor sees it; Triton's interpreter has kernels of its own."""
    from triton.runtime.jit import JITFunction

    return wrap_triton(kernel) if isinstance(kernel, JITFunction) else kernel


def _rows(x: Tensor) -> Tensor:
    """Return a tensor as [rows, n] whose rows are contiguous; a copy only where it cannot be a view."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the norm of `x + residual` and the sum, as `reference.add_rms_norm` does."""
    from intarsia_cuda.kernels import norm

    out, total = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    one, other, columns = _rows(x), _rows(residual), x.shape[-1]
    block = _block(columns)
    _launcher(norm.add_rms_norm)[(one.shape[0],)](
        one, other, weight.contiguous(), out, total, one.stride(0), other.stride(0), columns, eps,
        BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return out, total


def rms_norm_fp8(x: Tensor, weight: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Return the norm in FP8 by one scale, as `reference.rms_norm_fp8` does."""
    out = torch.empty(x.shape, dtype=reference.FP8, device=x.device)
    rms_norm_fp8_into(x, weight, scale, out, scale, eps, per_row=False)
    return out


def rms_norm_fp8_per_row(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the norm in FP8 and each row's scale, as `reference.rms_norm_fp8_per_row` does."""
    out = torch.empty(x.shape, dtype=reference.FP8, device=x.device)
    scales = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    rms_norm_fp8_into(x, weight, scales, out, scales, eps, per_row=True)
    return out, scales


def rms_norm_fp8_into(
    x: Tensor, weight: Tensor, scale: Tensor, out: Tensor, scales: Tensor, eps: float, *, per_row: bool
) -> None:  # fmt: skip
    """Write what `rms_norm_fp8` and `rms_norm_fp8_per_row` return, the first in `out`'s dtype."""
    from intarsia_cuda.kernels import norm

    rows, columns = _rows(x), x.shape[-1]
    block = _block(columns)
    _launcher(norm.rms_norm_fp8)[(rows.shape[0],)](
        rows, weight.contiguous(), scale, out, scales, rows.stride(0), columns, eps,
        PER_ROW=per_row, BLOCK=block, num_warps=_warps(block, 8),
    )  # fmt: skip


_ACTIVATION_BLOCK = 512
"""Small, so that a few rows make many programs; with many rows it makes no difference (1%, H100)."""


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """Return `silu(gate) * up`, as `reference.silu_mul` does."""
    from intarsia_cuda.kernels import activation

    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    left, right, columns = _rows(gate), _rows(up), gate.shape[-1]
    block = min(_block(min(columns, _ACTIVATION_BLOCK)), _ACTIVATION_BLOCK)
    _launcher(activation.silu_mul)[(left.shape[0], -(-columns // block))](
        left, right, out, left.stride(0), right.stride(0), columns, BLOCK=block,
        num_warps=4,
    )  # fmt: skip
    return out


def silu_mul_fp8(gate: Tensor, up: Tensor, scale: Tensor) -> Tensor:
    """Return `silu(gate) * up` in FP8 by one scale, as `reference.silu_mul_fp8` does."""
    out = torch.empty(gate.shape, dtype=reference.FP8, device=gate.device)
    silu_mul_fp8_into(gate, up, scale, out)
    return out


def silu_mul_fp8_into(gate: Tensor, up: Tensor, scale: Tensor, out: Tensor) -> None:
    """Write what `silu_mul_fp8` returns, in `out`'s dtype."""
    from intarsia_cuda.kernels import activation

    left, right, columns = _rows(gate), _rows(up), gate.shape[-1]
    block = min(_block(min(columns, _ACTIVATION_BLOCK)), _ACTIVATION_BLOCK)
    _launcher(activation.silu_mul_fp8)[(left.shape[0], -(-columns // block))](
        left, right, scale, out, left.stride(0), right.stride(0), columns, BLOCK=block,
        num_warps=4,
    )  # fmt: skip


def silu_mul_fp8_per_row(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return `silu(gate) * up` in FP8 and scales, as `reference.silu_mul_fp8_per_row` does."""
    out = torch.empty(gate.shape, dtype=reference.FP8, device=gate.device)
    scales = torch.empty((*gate.shape[:-1], 1), dtype=torch.float32, device=gate.device)
    silu_mul_fp8_per_row_into(gate, up, out, scales)
    return out, scales


def silu_mul_fp8_per_row_into(gate: Tensor, up: Tensor, out: Tensor, scales: Tensor) -> None:
    """Write what `silu_mul_fp8_per_row` returns, the first in `out`'s dtype."""
    from intarsia_cuda.kernels import activation

    left, right, columns = _rows(gate), _rows(up), gate.shape[-1]
    block = _block(columns)
    _launcher(activation.silu_mul_fp8_per_row)[(left.shape[0],)](
        left, right, out, scales, left.stride(0), right.stride(0), columns, BLOCK=block,
        num_warps=_warps(block),
    )  # fmt: skip


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return q and k rotated, as `reference.rotary` does."""
    return _launch_rotary(q, k, q, k, cos, sin, 0.0, 0.0, norm=False)


def qk_norm_rotary(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor,
    q_eps: float, k_eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return q and k normed and rotated, as `reference.qk_norm_rotary` does."""
    return _launch_rotary(
        q, k, q_weight.contiguous(), k_weight.contiguous(), cos, sin, q_eps, k_eps, norm=True
    )


def _launch_rotary(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor,
    q_eps: float, k_eps: float, *, norm: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    from intarsia_cuda.kernels import rotary as kernels

    batch, heads, length, size = q.shape
    half = size // 2
    lanes = 1 << max(half - 1, 0).bit_length()
    # On an H100 best at few tokens and many: of heads of 128, 32 in 4 warps, and 16 in 8 warps with a norm.
    elements, warps = (1024, 8) if norm else (2048, 4)
    together = max(1, min(elements // lanes, 1 << max(heads - 1, 0).bit_length()))
    q, k, cos, sin = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, cos, sin))
    q_out, k_out = reference.heads_like(q), reference.heads_like(k)
    blocks = -(-heads // together) + -(-k.shape[1] // together)
    _launcher(kernels.rotary)[(batch * length, blocks)](
        q, k, q_weight, k_weight, cos, sin, q_out, k_out, length, heads, k.shape[1], q_eps, k_eps,
        *q.stride()[:3], *k.stride()[:3], *q_out.stride()[:3], *k_out.stride()[:3],
        cos.stride(0) if cos.shape[0] != 1 else 0, cos.stride(1),
        sin.stride(0) if sin.shape[0] != 1 else 0, sin.stride(1),
        half if cos.shape[-1] == size else 0,
        NORM=norm, HALF=half, LANES=lanes, HEADS=together, num_warps=warps,
    )  # fmt: skip
    return q_out, k_out
