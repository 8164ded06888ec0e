"""Rotary embedding of queries and keys in one launch, with a norm of each head before it or without."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _heads(
    x, out, weight, cos, sin, first, count, x_head, out_head, eps, second,
    NORM: tl.constexpr, HALF: tl.constexpr, LANES: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Rotate some heads of one token; `second` is where cos and sin of the second half begin."""
    head = first + tl.arange(0, HEADS)[:, None]
    at = tl.arange(0, LANES)[None, :]
    inside = (head < count) & (at < HALF)
    lane = at < HALF
    left_in = tl.load(x + head * x_head + at, mask=inside, other=0.0)
    left = left_in.to(tl.float32)
    right = tl.load(x + head * x_head + HALF + at, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(left * left + right * right, 1) / (2 * HALF) + eps)[:, None]
        left = (left * scale).to(left_in.dtype).to(tl.float32)
        right = (right * scale).to(left_in.dtype).to(tl.float32)
        left = left * tl.load(weight + at, mask=lane, other=0.0).to(tl.float32)
        right = right * tl.load(weight + HALF + at, mask=lane, other=0.0).to(tl.float32)
        left = left.to(left_in.dtype).to(tl.float32)
        right = right.to(left_in.dtype).to(tl.float32)
    cos_left = tl.load(cos + at, mask=lane, other=0.0).to(tl.float32)
    sin_left = tl.load(sin + at, mask=lane, other=0.0).to(tl.float32)
    cos_right = tl.load(cos + second + at, mask=lane, other=0.0).to(tl.float32)
    sin_right = tl.load(sin + second + at, mask=lane, other=0.0).to(tl.float32)
    to = out.dtype.element_ty
    tl.store(out + head * out_head + at, (left * cos_left - right * sin_left).to(to), mask=inside)
    tl.store(
        out + head * out_head + HALF + at, (right * cos_right + left * sin_right).to(to),
        mask=inside,
    )  # fmt: skip


@triton.jit
def rotary(
    q, k, q_weight, k_weight, cos, sin, q_out, k_out, length, q_heads, k_heads, q_eps, k_eps,
    q_batch, q_head, q_token, k_batch, k_head, k_token,
    qo_batch, qo_head, qo_token, ko_batch, ko_head, ko_token,
    cos_batch, cos_token, sin_batch, sin_token, second,
    NORM: tl.constexpr, HALF: tl.constexpr, LANES: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """One token and some heads for each program: first those of q, then those of k."""
    token = tl.program_id(0).to(tl.int64)
    batch, place = token // length, token % length
    block = tl.program_id(1)
    q_blocks = tl.cdiv(q_heads, HEADS)
    cos_at = cos + batch * cos_batch + place * cos_token
    sin_at = sin + batch * sin_batch + place * sin_token
    if block < q_blocks:
        _heads(
            q + batch * q_batch + place * q_token, q_out + batch * qo_batch + place * qo_token,
            q_weight, cos_at, sin_at, block * HEADS, q_heads, q_head, qo_head, q_eps, second,
            NORM, HALF, LANES, HEADS,
        )  # fmt: skip
    else:
        _heads(
            k + batch * k_batch + place * k_token, k_out + batch * ko_batch + place * ko_token,
            k_weight, cos_at, sin_at, (block - q_blocks) * HEADS, k_heads, k_head, ko_head,
            k_eps, second, NORM, HALF, LANES, HEADS,
        )  # fmt: skip
