"""The graphs that compilers are given: functions, inputs of any size, and what each asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

__all__ = ["GRAPHS", "GraphCase"]

SCALED = "intarsia_conformance::scaled"
_LIBRARY = torch.library.Library("intarsia_conformance", "FRAGMENT")
if not hasattr(torch.ops.intarsia_conformance, "scaled"):
    _LIBRARY.define("scaled(Tensor x, float by) -> Tensor")
    _LIBRARY.impl("scaled", lambda x, by: x * by, "CompositeExplicitAutograd")
    torch.library.register_fake(SCALED, lambda x, by: torch.empty_like(x), lib=_LIBRARY)


@frozen
class GraphCase:
    """A function and its inputs.

    Attributes:
        capability: what the compiler must be able to do; "": everything that compiles.
        make: returns the function, in the state of its random seed.
        inputs: `(device, n) -> arguments`.
        dynamic: argument -> dimension -> symbol; empty: all sizes are fixed.
        sizes: the sizes n that are called, after the one that it is compiled at.
        settings: further settings.
    """

    name: str
    capability: str
    about: str
    make: Callable[[], Callable[..., Any]]
    inputs: Callable[[str, int], Sequence[Any]]
    dynamic: Mapping[str, Mapping[int, str]] = {}
    sizes: tuple[int, ...] = (4,)
    settings: Mapping[str, Any] = {}


def _rows(device: str, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return [n, 8] numbers around zero; integers are small and not negative."""
    if dtype.is_floating_point:
        return torch.randn(n, 8, device="cpu").to(dtype).to(device)
    return torch.randint(0, 2 if dtype == torch.bool else 7, (n, 8)).to(dtype).to(device)


class Block(nn.Module):
    """A norm and a gated block: what most pieces of a transformer are."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(8) + 0.5)
        self.gate, self.up = nn.Linear(8, 16, bias=False), nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n, 8] of [n, 8]."""
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


class Attention(nn.Module):
    """Projections, rotary embedding and attention: results that are transposed, or have gaps between rows."""

    def __init__(self, hidden: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(hidden)
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return [n, hidden] of [n, hidden], and cos and sin [n, hidden / heads]."""
        n, hidden = x.shape
        q, k, v = (
            part.reshape(1, n, self.heads, hidden // self.heads).transpose(1, 2)
            for part in self.qkv(self.norm(x)).chunk(3, -1)
        )
        q, k = (torch.cat((-y[..., 4:], y[..., :4]), -1) * sin + y * cos for y in (q, k))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(y[0].transpose(0, 1).reshape(n, hidden))


def _attention() -> nn.Module:
    return Attention().requires_grad_(False)


def _of_attention(device: str, n: int) -> Sequence[Any]:
    return [torch.randn(n, size).to(device) for size in (32, 8, 8)]


def _block() -> nn.Module:
    return Block().requires_grad_(False)


def _elementwise(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.tanh(x + 1) - x.abs().sqrt()


def _many(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.sum(0), x.softmax(-1), x.amax(-1, keepdim=True)


def _integers(x: Tensor) -> tuple[Tensor, Tensor]:
    return x * 3 + 1, x.sum(-1)


def _booleans(x: Tensor) -> Tensor:
    return torch.where(x, 2.5, -1.0)


def _grown(x: Tensor) -> tuple[Tensor, Tensor]:
    twice = torch.cat((x, x * 2))
    return twice, twice.reshape(x.shape[0], -1).sum(-1)


def _products(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.t()).softmax(-1)


def _written(x: Tensor, y: Tensor) -> Tensor:
    x.add_(y)
    return x * 2


def _views(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[1:], x * 2


def _pair(x: Tensor, y: Tensor) -> Tensor:
    return x * 2 + y


def _custom(x: Tensor) -> Tensor:
    return torch.ops.intarsia_conformance.scaled(x + 1, 2.5).relu()


def _looked_up(ids: Tensor, table: Tensor) -> Tensor:
    return nn.functional.embedding(ids, table) * 2


def _overlapping(device: str, n: int) -> tuple[Tensor, Tensor]:
    base = _rows(device, n + 2)
    return base[:n], base[2:]


def _fixed(function: Callable[..., Any]) -> Callable[[], Callable[..., Any]]:
    return lambda: function


def _of(dtype: torch.dtype) -> Callable[[str, int], Sequence[Any]]:
    return lambda device, n: (_rows(device, n, dtype),)


X = {"x": {0: "n"}}
LENGTHS = {name: {0: "n"} for name in ("x", "cos", "sin")}
MANY = (4, 7, 2, 16)

GRAPHS: tuple[GraphCase, ...] = (
    GraphCase("block", "", "a norm and a gated block with weights", _block, _of(torch.float32)),
    GraphCase("elementwise", "", "elementwise arithmetic", _fixed(_elementwise), _of(torch.float32)),
    GraphCase("several-results", "", "several results, reductions", _fixed(_many), _of(torch.float32)),
    GraphCase("dynamic-block", "dynamic-shapes", "the block at several numbers of rows", _block,
              _of(torch.float32), X, MANY),
    GraphCase("derived-sizes", "dynamic-shapes", "results whose sizes follow from a symbol",
              _fixed(_grown), _of(torch.float32), X, MANY),
    GraphCase("one-row", "dynamic-shapes", "one row, where dimensions may be broadcast", _block,
              _of(torch.float32), X, (1, 4, 1)),
    GraphCase("no-rows", "dynamic-shapes", "no rows at all", _fixed(_elementwise),
              _of(torch.float32), X, (0, 4, 0)),
    GraphCase("two-symbols", "several-symbols", "sizes that vary on their own", _fixed(_products),
              lambda device, n: (_rows(device, n), _rows(device, 2 * n + 1)),
              {"x": {0: "n"}, "y": {0: "m"}}, MANY),
    GraphCase("attention", "attention", "attention as a whole, at many lengths", _attention,
              _of_attention, LENGTHS, (5, 1, 17, 64)),
    GraphCase("around-attention", "attention", "the pieces around attention", _attention,
              _of_attention, LENGTHS, (5, 1, 17, 64),
              {"split_at": ["torch.nn.functional.scaled_dot_product_attention"]}),
    GraphCase("mutation", "mutation", "an input that is written to", _fixed(_written),
              lambda device, n: (_rows(device, n), _rows(device, n)), X | {"y": {0: "n"}}, (4, 6)),
    GraphCase("views-returned", "views", "a result that is a view of an input", _fixed(_views),
              _of(torch.float32)),
    GraphCase("overlap", "overlap", "inputs that share memory", _fixed(_pair), _overlapping),
    GraphCase("transposed", "strides", "an input that is transposed", _fixed(_elementwise),
              lambda device, n: (torch.randn(8, n).to(device).t(),)),
    GraphCase("expanded", "strides", "an input that repeats its elements", _fixed(_pair),
              lambda device, n: (_rows(device, n), _rows(device, 1).expand(n, 8))),
    GraphCase("sliced", "strides", "an input with gaps between its rows", _fixed(_elementwise),
              lambda device, n: (torch.randn(n, 16).to(device)[:, :8],)),
    GraphCase("integers", "integers", "64-bit integers", _fixed(_integers), _of(torch.int64)),
    GraphCase("indices", "integers", "a table that is looked up", _fixed(_looked_up),
              lambda device, n: (torch.randint(0, 9, (n,)).to(device), _rows(device, 9))),
    GraphCase("booleans", "booleans", "booleans that select", _fixed(_booleans), _of(torch.bool)),
    GraphCase("float64", "float64", "double precision", _fixed(_elementwise), _of(torch.float64)),
    GraphCase("float16", "float16", "half precision", _fixed(_elementwise), _of(torch.float16)),
    GraphCase("bfloat16", "bfloat16", "bfloat16", _fixed(_elementwise), _of(torch.bfloat16)),
    GraphCase("custom-op", "custom-ops", "an operator outside ATen", _fixed(_custom),
              _of(torch.float32)),
)  # fmt: skip
