"""What the fused operators compute, in plain PyTorch: what they are tested against, and their CPU form.

Arithmetic is in float32; a value is rounded to the dtype of its input where a model's own code rounds it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

__all__ = [
    "FP8",
    "FP8_MAX",
    "add_rms_norm",
    "heads_like",
    "qk_norm_rotary",
    "quantised",
    "quantised_per_row",
    "rms_norm",
    "rms_norm_fp8",
    "rms_norm_fp8_per_row",
    "rotary",
    "silu_mul",
    "silu_mul_fp8",
    "silu_mul_fp8_per_row",
]

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
"""The largest number of `FP8`."""

SMALLEST = 1e-12
"""The least that a row's largest magnitude counts as, so that a row of zeros has a scale."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return `x` [..., n] over its root mean square along the last dimension, times `weight` [n]."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return wide.to(x.dtype) * weight


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the norm of `x + residual`, and the sum; both [..., n] in `x`'s dtype."""
    total = x + residual
    return rms_norm(total, weight, eps), total


def quantised(x: Tensor, scale: Tensor) -> Tensor:
    """Return `x / scale` in FP8; what is too large becomes the largest FP8 number. `scale` is float32 [1]."""
    return (x.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8)


def quantised_per_row(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return `x` [..., n] in FP8, and each row's scale, float32 [..., 1]: FP8 times scale is `x`."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp(min=SMALLEST) / FP8_MAX
    return quantised(x, scale), scale


def rms_norm_fp8(x: Tensor, weight: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Return the norm of `x` [..., n] over `scale` (float32 [1]) in FP8."""
    return quantised(rms_norm(x, weight, eps), scale)


def rms_norm_fp8_per_row(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the norm of `x` [..., n] in FP8, and each row's scale, float32 [..., 1]."""
    return quantised_per_row(rms_norm(x, weight, eps))


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """Return `silu(gate) * up`, all [..., n]; the two may be parts of one tensor."""
    return silu(gate) * up


def silu_mul_fp8(gate: Tensor, up: Tensor, scale: Tensor) -> Tensor:
    """Return `silu(gate) * up` over `scale` (float32 [1]) in FP8."""
    return quantised(silu_mul(gate, up), scale)


def silu_mul_fp8_per_row(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return `silu(gate) * up` in FP8, and each row's scale, float32 [..., 1]."""
    return quantised_per_row(silu_mul(gate, up))


def heads_like(x: Tensor) -> Tensor:
    """Return dense memory for heads [batch, heads, length, size], tokens or heads outside as in `x`.

    `torch.empty_like` answers otherwise in a trace than in a call where a size is 1.
    """
    batch, heads, length, size = x.shape
    if x.stride(1) < x.stride(2):
        made = torch.empty(batch, length, heads, size, dtype=x.dtype, device=x.device)
        return made.transpose(1, 2)
    return torch.empty(batch, heads, length, size, dtype=x.dtype, device=x.device)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    if cos.shape[-1] == half:
        cos, sin = torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
    wide = x.float()
    turned = torch.cat((-wide[..., half:], wide[..., :half]), -1)
    made = wide * cos.unsqueeze(1).float() + turned * sin.unsqueeze(1).float()
    return heads_like(x).copy_(made)


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return q [batch, heads, length, size] and k [batch, key heads, length, size], rotated.

    cos and sin are [batch or 1, length, size], or [..., size / 2] where both halves of a head have the same.
    Results are dense, in the order of the strides of q and of k.
    """
    return _rotated(q, cos, sin), _rotated(k, cos, sin)


def qk_norm_rotary(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor,
    q_eps: float, k_eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return q and k as `rotary` does, each head normed before, with weights [size]."""
    return rotary(rms_norm(q, q_weight, q_eps), rms_norm(k, k_weight, k_eps), cos, sin)
