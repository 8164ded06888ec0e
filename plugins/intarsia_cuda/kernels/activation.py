"""SiLU-and-mul, alone and into FP8."""

from __future__ import annotations

import triton
import triton.language as tl

from intarsia_cuda.kernels.norm import FP8_MAX, SMALLEST, quantised


@triton.jit
def _activated(gate, up, at, inside):
    left = tl.load(gate + at, mask=inside, other=0.0)
    wide = left.to(tl.float32)
    active = (wide * tl.sigmoid(wide)).to(left.dtype).to(tl.float32)
    right = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    return (active * right).to(left.dtype)


@triton.jit
def silu_mul(gate, up, out, gate_row, up_row, columns, BLOCK: tl.constexpr):
    """One block of a row for each program; `out` is contiguous, a row of the others is."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < columns
    value = _activated(gate + row * gate_row, up + row * up_row, at, inside)
    tl.store(out + row * columns + at, value, mask=inside)


@triton.jit
def silu_mul_fp8(gate, up, scale, out, gate_row, up_row, columns, BLOCK: tl.constexpr):
    """The same into FP8, by one given scale."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < columns
    value = _activated(gate + row * gate_row, up + row * up_row, at, inside).to(tl.float32)
    by = tl.load(scale)
    tl.store(out + row * columns + at, quantised(value, by, out.dtype.element_ty), mask=inside)


@triton.jit
def silu_mul_fp8_per_row(gate, up, out, scales, gate_row, up_row, columns, BLOCK: tl.constexpr):
    """The same by each row's own scale; one program holds a row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    value = _activated(gate + row * gate_row, up + row * up_row, at, inside).to(tl.float32)
    by = tl.div_rn(tl.maximum(tl.max(tl.abs(value), 0), SMALLEST), FP8_MAX)
    tl.store(scales + row, by)
    tl.store(out + row * columns + at, quantised(value, by, out.dtype.element_ty), mask=inside)
