"""The decoder of the static-graph benchmark: one new token for each of `rows` sequences.

Attention is one opaque operator that writes the key-value cache and an output tensor of the caller's. It
has no host synchronisation, so it may be recorded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor, nn

ATTENTION = "bench::attention"
DYNAMIC = {"ids": {0: "rows"}, "position": {0: "rows"}}


@frozen
class Shape:
    """The sizes of a decoder."""

    layers: int = 16
    hidden: int = 2048
    intermediate: int = 8192
    heads: int = 32
    kv_heads: int = 8
    context: int = 1024
    vocabulary: int = 32000
    rows: int = 512
    """The most sequences; the caches have room for them."""
    dtype: torch.dtype = torch.bfloat16

    @property
    def head(self) -> int:
        """The size of a head."""
        return self.hidden // self.heads


TINY = Shape(2, 64, 128, 4, 2, 32, 97, 8, torch.float32)


def attend(
    q: Tensor, k: Tensor, v: Tensor, cache_k: Tensor, cache_v: Tensor, position: Tensor, out: Tensor
) -> None:
    """Write new keys and values into the caches at each row's position, and attend up to it.

    q and out are [rows, heads, head], k and v [rows, kv heads, head], caches [rows, kv heads, context,
    head]. The query heads of one key head are passed as that head's queries, which is what `enable_gqa`
    computes, and does not copy the cache for each of them where a kernel has no grouped heads.
    """
    rows, heads, head = q.shape
    row = torch.arange(rows, device=q.device)
    cache_k[row, :, position] = k
    cache_v[row, :, position] = v
    seen = torch.arange(cache_k.shape[2], device=q.device) <= position[:, None]
    grouped = q.reshape(rows, k.shape[1], heads // k.shape[1], head)
    mask = seen[:, None, None, :].expand(-1, -1, grouped.shape[2], -1)
    y = F.scaled_dot_product_attention(grouped, cache_k[:rows], cache_v[:rows], attn_mask=mask)
    out.copy_(y.reshape(rows, heads, head))


# `torch.library.custom_op` costs tens of microseconds more per call. The library lives as long as the module.
LIBRARY = torch.library.Library("bench", "FRAGMENT")
LIBRARY.define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor(a!) cache_k, Tensor(b!) cache_v, Tensor position, "
    "Tensor(c!) out) -> ()"
)
LIBRARY.impl("attention", attend, "CPU")
LIBRARY.impl("attention", attend, "CUDA")
torch.library.register_fake(ATTENTION, lambda *args: None, lib=LIBRARY)


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return y.to(x.dtype) * self.weight


class SelfAttention(nn.Module):
    """Projections and rotary embedding around the opaque operator."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        kv = shape.kv_heads * shape.head
        self.q = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.k = nn.Linear(shape.hidden, kv, bias=False)
        self.v = nn.Linear(shape.hidden, kv, bias=False)
        self.o = nn.Linear(shape.hidden, shape.hidden, bias=False)
        size = (shape.rows, shape.kv_heads, shape.context, shape.head)
        self.register_buffer("cache_k", torch.zeros(size), persistent=False)
        self.register_buffer("cache_v", torch.zeros(size), persistent=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, position: Tensor) -> Tensor:
        head = self.shape.head
        q = rotated(self.q(x).view(-1, self.shape.heads, head), cos, sin)
        k = rotated(self.k(x).view(-1, self.shape.kv_heads, head), cos, sin)
        v = self.v(x).view(-1, self.shape.kv_heads, head)
        out = torch.empty_like(q)
        torch.ops.bench.attention(q, k, v, self.cache_k, self.cache_v, position, out)
        return self.o(out.view(-1, self.shape.hidden))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embedding to the halves of each head."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


class SwiGLU(nn.Module):
    """The gated feed-forward block."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = RMSNorm(shape.hidden), RMSNorm(shape.hidden)
        self.attention, self.mlp = SelfAttention(shape), SwiGLU(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, position: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, position)
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):
    """Takes `ids` and `position`, both [rows], and returns logits."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden)
        self.output = nn.Linear(shape.hidden, shape.vocabulary, bias=False)
        half = shape.head // 2
        speeds = 10000.0 ** (-torch.arange(half, dtype=torch.float32) / half)
        angles = torch.arange(shape.context)[:, None, None] * speeds
        self.register_buffer("cos", angles.cos().to(shape.dtype), persistent=False)
        self.register_buffer("sin", angles.sin().to(shape.dtype), persistent=False)

    def forward(self, ids: Tensor, position: Tensor) -> Tensor:
        x = self.embedding(ids)
        cos, sin = self.cos[position], self.sin[position]
        for layer in self.layers:
            x = layer(x, cos, sin, position)
        return self.output(self.norm(x))


def decoder(shape: Shape, device: str) -> Decoder:
    """Return a decoder with random weights, made on the device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(shape.dtype)
    try:
        with torch.device(device):
            torch.manual_seed(0)
            return Decoder(shape).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def inputs(shape: Shape, rows: int, device: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return ids and positions near the end of the context, different in each row."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, shape.vocabulary, (rows,), generator=generator)
    position = shape.context - 1 - torch.arange(rows) % 16
    return ids.to(device), position.to(device)
