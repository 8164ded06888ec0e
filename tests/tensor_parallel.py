"""A decoder whose layers are split over the ranks of a job, with functional collectives between the parts."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import _functional_collectives as collectives

COLLECTIVES = ["_c10d_functional::all_reduce", "_c10d_functional::wait_tensor"]
HIDDEN, HEADS, INNER, VOCABULARY = 64, 4, 128, 97


class Layer(nn.Module):
    """One block: each rank has some heads and some inner columns; two all-reduces add up their parts."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.heads = HEADS // parts
        own = HIDDEN // parts
        self.parts = parts
        self.qkv = nn.Linear(HIDDEN, 3 * own, bias=False)
        self.out = nn.Linear(own, HIDDEN, bias=False)
        self.gate = nn.Linear(HIDDEN, INNER // parts, bias=False)
        self.up = nn.Linear(HIDDEN, INNER // parts, bias=False)
        self.down = nn.Linear(INNER // parts, HIDDEN, bias=False)

    def summed(self, x: Tensor) -> Tensor:
        if self.parts == 1:
            return x
        return collectives.wait_tensor(collectives.all_reduce(x, "sum", dist.group.WORLD))

    def forward(self, x: Tensor) -> Tensor:
        normed = nn.functional.rms_norm(x, (HIDDEN,))
        q, k, v = (
            part.view(x.shape[0], self.heads, -1).transpose(0, 1)
            for part in self.qkv(normed).chunk(3, -1)
        )
        mixed = nn.functional.scaled_dot_product_attention(
            q[None], k[None], v[None], is_causal=True
        )
        x = x + self.summed(self.out(mixed[0].transpose(0, 1).flatten(1)))
        normed = nn.functional.rms_norm(x, (HIDDEN,))
        return x + self.summed(self.down(nn.functional.silu(self.gate(normed)) * self.up(normed)))


class Decoder(nn.Module):
    """Layers between an embedding and a head, which every rank has whole."""

    def __init__(self, parts: int, layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Layer(parts) for _ in range(layers))
        self.head = nn.Linear(HIDDEN, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def whole(seed: int = 0) -> Decoder:
    """Return the decoder with all its weights, the same in every process."""
    torch.manual_seed(seed)
    return Decoder(1).eval()


def part_of(model: Decoder, rank: int, parts: int) -> Decoder:
    """Return what one rank has of a decoder."""
    made = Decoder(parts, len(model.layers)).eval()
    with torch.no_grad():
        made.embed.weight.copy_(model.embed.weight)
        made.head.weight.copy_(model.head.weight)
        for mine, full in zip(made.layers, model.layers, strict=True):
            thirds = full.qkv.weight.chunk(3, 0)
            mine.qkv.weight.copy_(torch.cat([t.chunk(parts, 0)[rank] for t in thirds]))
            mine.out.weight.copy_(full.out.weight.chunk(parts, 1)[rank])
            mine.gate.weight.copy_(full.gate.weight.chunk(parts, 0)[rank])
            mine.up.weight.copy_(full.up.weight.chunk(parts, 0)[rank])
            mine.down.weight.copy_(full.down.weight.chunk(parts, 1)[rank])
    return made


class AsksForRank(nn.Module):
    """A forward in which the rank and the number of ranks are constants of the graph."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (dist.get_rank() + 2) + dist.get_world_size()
