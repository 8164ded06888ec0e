"""The models of these tests; nothing here knows intarsia or the device."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LIBRARY = torch.library.Library("npu_tests", "DEF")
LIBRARY.define("attention(Tensor q, Tensor k, Tensor v) -> Tensor")


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return causal softmax attention over [tokens, heads, head size]."""
    scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(q.shape[-1])
    later = torch.ones(q.shape[0], k.shape[0], dtype=torch.bool, device=q.device).triu(1)
    weights = scores.masked_fill(later, -math.inf).softmax(-1)
    return torch.einsum("hts,shd->thd", weights, v).contiguous()


LIBRARY.impl("attention", attention, "CompositeExplicitAutograd")
torch.library.register_fake(
    "npu_tests::attention", lambda q, k, v: q.new_empty(q.shape), lib=LIBRARY
)


class Norm(nn.Module):
    """RMS norm."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Layer(nn.Module):
    """A decoder layer with gated MLP."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = Norm(hidden), Norm(hidden)
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.gate, self.up = nn.Linear(hidden, 2 * hidden), nn.Linear(hidden, 2 * hidden)
        self.down = nn.Linear(2 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer on [tokens, hidden]."""
        q, k, v = (
            part.reshape(x.shape[0], self.heads, -1)
            for part in self.qkv(self.before(x)).chunk(3, -1)
        )
        x = x + self.out(torch.ops.npu_tests.attention(q, k, v).reshape(x.shape[0], -1))
        y = self.after(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """An embedding, layers, a norm and a head: `layers` attentions, `layers + 1` pieces around them."""

    def __init__(self, layers: int = 12, hidden: int = 32, heads: int = 4, words: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, hidden)
        self.layers = nn.ModuleList(Layer(hidden, heads) for _ in range(layers))
        self.norm, self.head = Norm(hidden), nn.Linear(hidden, words)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits of [tokens] ids."""
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def decoder(**sizes: int) -> Decoder:
    """Return a decoder with seeded weights, on the host."""
    torch.manual_seed(0)
    return Decoder(**sizes).requires_grad_(False)
