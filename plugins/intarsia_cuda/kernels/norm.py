"""Root-mean-square norms: one program per row, which holds the row in registers and so reads it once."""

from __future__ import annotations

import triton
import triton.language as tl

FP8_MAX = tl.constexpr(448.0)
SMALLEST = tl.constexpr(1e-12)


@triton.jit
def _normed(wide, weight_at, at, inside, columns, eps, dtype: tl.constexpr):
    """Return a row's norm as the model's code rounds it, in float32."""
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / columns + eps)
    weight = tl.load(weight_at + at, mask=inside, other=0.0).to(tl.float32)
    normed = (wide * scale).to(dtype).to(tl.float32)
    return (normed * weight).to(dtype).to(tl.float32)


@triton.jit
def quantised(value, scale, dtype: tl.constexpr):
    """Return a value over its scale in FP8."""
    scaled = tl.div_rn(value, scale)
    return tl.minimum(tl.maximum(scaled, -FP8_MAX), FP8_MAX).to(dtype)


@triton.jit
def add_rms_norm(
    x, residual, weight, out, total, x_row, residual_row, columns, eps, BLOCK: tl.constexpr
):
    """Norm of a sum, and the sum; `out` and `total` are contiguous, a row of the others is."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    left = tl.load(x + row * x_row + at, mask=inside, other=0.0)
    right = tl.load(residual + row * residual_row + at, mask=inside, other=0.0)
    added = (left.to(tl.float32) + right.to(tl.float32)).to(total.dtype.element_ty)
    tl.store(total + row * columns + at, added, mask=inside)
    normed = _normed(added.to(tl.float32), weight, at, inside, columns, eps, out.dtype.element_ty)
    tl.store(out + row * columns + at, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def rms_norm_fp8(
    x, weight, scale, out, scales, x_row, columns, eps, PER_ROW: tl.constexpr, BLOCK: tl.constexpr
):
    """Norm in FP8, by one given scale or by each row's own, which goes to `scales`."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    value = tl.load(x + row * x_row + at, mask=inside, other=0.0)
    normed = _normed(value.to(tl.float32), weight, at, inside, columns, eps, x.dtype.element_ty)
    if PER_ROW:
        by = tl.div_rn(tl.maximum(tl.max(tl.abs(normed), 0), SMALLEST), FP8_MAX)
        tl.store(scales + row, by)
    else:
        by = tl.load(scale)
    tl.store(out + row * columns + at, quantised(normed, by, out.dtype.element_ty), mask=inside)
