"""The fused operators' kernels against their plain form; run with Triton's interpreter, or on a GPU.

    TRITON_INTERPRET=1 python -m tests.kernel_cases cpu

The interpreter rounds FP8 wrongly where a number is rounded up to the next power of two, so there the
kernels write float32, and what is compared is the number before it is rounded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from intarsia_cuda.kernels import launch, reference

ROWS = (0, 1, 5, 33)
ERRORS = {torch.float32: 1e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
Case = Callable[[int, int, torch.dtype, str], None]


def same(made: Any, expected: Any, dtype: torch.dtype) -> None:
    """Compare results; FP8 to one step of its rounding."""
    if isinstance(expected, tuple):
        assert len(made) == len(expected)
        for one, other in zip(made, expected, strict=True):
            same(one, other, dtype)
        return
    assert (made.shape, made.dtype) == (expected.shape, expected.dtype)
    error = ERRORS[dtype]
    if expected.dtype == reference.FP8:
        made, expected, error = made.float(), expected.float(), 0.02
    difference = (made.double() - expected.double()).norm()
    assert difference <= error * expected.double().norm(), f"{difference} for {dtype}"
    # Two roundings more or less, of numbers that cancel out, show in single elements.
    torch.testing.assert_close(made, expected, rtol=8 * error, atol=8 * error)


def parts(rows: int, size: int, count: int, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    """Return parts of one projection, as q, k and v or gate and up are: rows with gaps between."""
    return torch.randn(rows, count * size, dtype=dtype, device=device).chunk(count, -1)


def add_rms_norm(rows: int, size: int, dtype: torch.dtype, device: str) -> None:
    x, residual = parts(rows, size, 2, dtype, device)
    weight = torch.randn(size, dtype=dtype, device=device)
    for one, other in ((x, residual), (x.contiguous().view(1, rows, size), residual.unsqueeze(0))):
        made = launch.add_rms_norm(one, other, weight, 1e-6)
        same(made, reference.add_rms_norm(one, other, weight, 1e-6), dtype)


def unrounded(x: Tensor, scale: Tensor) -> Tensor:
    """Return what is rounded to FP8."""
    return (x.float() / scale).clamp(-reference.FP8_MAX, reference.FP8_MAX)


def fp8(
    normal: Callable[[], Any], into: Callable[[Tensor, Tensor], None], value: Tensor, scale: Tensor | None,
    expected: Any, dtype: torch.dtype,
) -> None:  # fmt: skip
    """Compare an FP8 form: as it is on a GPU, and before it is rounded."""
    scales = torch.full((*value.shape[:-1], 1), torch.nan, device=value.device)
    out = torch.full(value.shape, torch.nan, device=value.device)
    into(out, scales)
    by = reference.quantised_per_row(value)[1] if scale is None else scale
    same(out, unrounded(value, by), dtype)
    if scale is None:
        same(scales, by, dtype)
    if value.is_cuda:
        same(normal(), expected, dtype)


def rms_norm_fp8(rows: int, size: int, dtype: torch.dtype, device: str) -> None:
    x, _ = parts(rows, size, 2, dtype, device)
    weight = torch.randn(size, dtype=dtype, device=device)
    scale = torch.tensor([0.0071], device=device)  # some numbers are too large for FP8
    value = reference.rms_norm(x, weight, 1e-6)
    fp8(
        lambda: launch.rms_norm_fp8(x, weight, scale, 1e-6),
        lambda out, _: launch.rms_norm_fp8_into(x, weight, scale, out, scale, 1e-6, per_row=False),
        value, scale, reference.rms_norm_fp8(x, weight, scale, 1e-6), dtype,
    )  # fmt: skip
    fp8(
        lambda: launch.rms_norm_fp8_per_row(x, weight, 1e-6),
        lambda out, to: launch.rms_norm_fp8_into(x, weight, to, out, to, 1e-6, per_row=True),
        value, None, reference.rms_norm_fp8_per_row(x, weight, 1e-6), dtype,
    )  # fmt: skip


def silu_mul(rows: int, size: int, dtype: torch.dtype, device: str) -> None:
    gate, up = parts(rows, size, 2, dtype, device)
    same(launch.silu_mul(gate, up), reference.silu_mul(gate, up), dtype)
    tall = gate.contiguous().view(rows, 1, size)
    same(launch.silu_mul(tall, tall), reference.silu_mul(tall, tall), dtype)


def silu_mul_fp8(rows: int, size: int, dtype: torch.dtype, device: str) -> None:
    gate, up = parts(rows, size, 2, dtype, device)
    scale = torch.tensor([0.0037], device=device)
    value = reference.silu_mul(gate, up)
    fp8(
        lambda: launch.silu_mul_fp8(gate, up, scale),
        lambda out, _: launch.silu_mul_fp8_into(gate, up, scale, out),
        value, scale, reference.silu_mul_fp8(gate, up, scale), dtype,
    )  # fmt: skip
    fp8(
        lambda: launch.silu_mul_fp8_per_row(gate, up),
        lambda out, scales: launch.silu_mul_fp8_per_row_into(gate, up, out, scales),
        value, None, reference.silu_mul_fp8_per_row(gate, up), dtype,
    )  # fmt: skip


def rotary(rows: int, size: int, dtype: torch.dtype, device: str) -> None:
    head, heads, key_heads = 12 if size < 64 else 128, 6, 2
    qkv = torch.randn(2, rows, heads + key_heads, head, dtype=dtype, device=device)
    q, k = qkv[:, :, :heads].transpose(1, 2), qkv[:, :, heads:].transpose(1, 2)
    weights = [torch.randn(head, dtype=dtype, device=device) for _ in range(2)]
    for batch in (1, 2):
        for width in (head, head // 2):
            cos, sin = (
                torch.randn(batch, rows, width, dtype=dtype, device=device) for _ in range(2)
            )
            for one, other in ((q, k), (q.contiguous(), k.contiguous())):
                made = launch.rotary(one, other, cos, sin)
                expected = reference.rotary(one, other, cos, sin)
                same(made, expected, dtype)
                if rows:
                    assert [x.stride() for x in made] == [x.stride() for x in expected]
                same(
                    launch.qk_norm_rotary(one, other, *weights, cos, sin, 1e-6, 1e-3),
                    reference.qk_norm_rotary(one, other, *weights, cos, sin, 1e-6, 1e-3), dtype,
                )  # fmt: skip


CASES: tuple[Case, ...] = (add_rms_norm, rms_norm_fp8, silu_mul, silu_mul_fp8, rotary)


def main() -> None:
    """Run every case and say which ran."""
    device = sys.argv[1]
    wanted = sys.argv[2:]
    torch.manual_seed(0)
    for case in CASES:
        if wanted and case.__name__ not in wanted:
            continue
        for dtype in (torch.float32, torch.bfloat16) if device == "cpu" else ERRORS:
            for rows in ROWS[:3] if device == "cpu" else ROWS:
                for size in (48,) if device == "cpu" else (48, 4096, 8192, 14336):
                    case(rows, size, dtype, device)
        print("right:", case.__name__, flush=True)


if __name__ == "__main__":
    main()
