"""The models that the tests compile: a decoder with an opaque attention op, and a zoo of small ones.

Nothing here knows intarsia. Weights and inputs are random and seeded, never zeros, so that a value
piped to the wrong place shows in the numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Sizes = Mapping[str, int]
Inputs = tuple[tuple[Any, ...], dict[str, Any]]

# --------------------------------------------------------------------------------------------- ops

# The library is kept alive by the module: torch drops the ops when it is collected.
OPS = torch.library.Library("intarsia_tests", "FRAGMENT")


def _define(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any], *tags: Any) -> None:
    name = schema.partition("(")[0]
    if hasattr(torch.ops.intarsia_tests, name):  # this module may be imported under two names
        return
    OPS.define(schema, tags=tags)
    OPS.impl(name, kernel, "CPU")
    torch.library.register_fake(f"intarsia_tests::{name}", fake, lib=OPS)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return causal softmax attention over [tokens, heads, head size]."""
    scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(q.shape[-1])
    later = torch.ones(q.shape[0], k.shape[0], dtype=torch.bool, device=q.device).triu(1)
    return torch.einsum("hts,shd->thd", scores.masked_fill(later, -math.inf).softmax(-1), v)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, layer: int | None = None, name: str | None = None
) -> None:
    out.copy_(causal_attention(q, k, v))


def _topk2(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, indices = x.topk(k)
    return values.clone(), indices.clone()


def _add_into(x: Tensor, y: Tensor) -> None:
    x.add_(y)


def _append(cache: Tensor, x: Tensor, position: int) -> Tensor:
    cache[position : position + x.shape[0]] = x
    return x.norm(dim=-1)


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


_define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor(a!) out, int? layer=None, str? name=None) -> ()",
    _attention,
    _nothing,
)
_define(
    "scale(Tensor x, float by) -> Tensor", lambda x, by: x * by, lambda x, by: x.new_empty(x.shape)
)
_define("square(Tensor x) -> Tensor", lambda x: x * x, lambda x: x.new_empty(x.shape))
_define(
    "tagged(Tensor x) -> Tensor",
    lambda x: x.sin(),
    lambda x: x.new_empty(x.shape),
    torch.Tag.cudagraph_unsafe,
)
_define(
    "topk2(Tensor x, int k) -> (Tensor, Tensor)",
    _topk2,
    lambda x, k: (
        x.new_empty((*x.shape[:-1], k)),
        x.new_empty((*x.shape[:-1], k), dtype=torch.int64),
    ),
)
_define("add_into(Tensor(a!) x, Tensor y) -> ()", _add_into, _nothing)
_define(
    "append(Tensor(a!) cache, Tensor x, int position) -> Tensor",
    _append,
    lambda cache, x, position: x.new_empty(x.shape[:-1]),
)

# ----------------------------------------------------------------------------------------- helpers


def random_(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every floating parameter and buffer with seeded random numbers and return the module."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()]):
            if tensor.is_floating_point() and not name.endswith("rotary"):
                wide = 1 / math.sqrt(tensor.shape[-1]) if tensor.dim() > 1 else 0.2
                offset = 0.0 if tensor.dim() > 1 else 1.0
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * wide + offset)
    return module


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return seeded normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def randint(low: int, high: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Return seeded integers."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


TOLERANCE: dict[torch.dtype, tuple[float, float]] = {
    torch.float64: (1e-9, 1e-9),
    torch.float32: (2e-5, 2e-5),
    torch.float16: (2e-3, 2e-3),
    torch.bfloat16: (1.6e-2, 1e-2),
}


def clone(value: Any) -> Any:
    """Return a deep copy in which tensors share memory where they did, and with the same strides."""
    storages: dict[int, torch.UntypedStorage] = {}
    copies: dict[int, Tensor] = {}

    def copy(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in copies:
            old = leaf.untyped_storage()
            new = storages.setdefault(old._cdata, old.clone())
            empty = torch.empty(0, dtype=leaf.dtype, device=leaf.device)
            copies[id(leaf)] = empty.set_(new, leaf.storage_offset(), leaf.shape, leaf.stride())
        return copies[id(leaf)]

    with torch.no_grad():
        return pytree.tree_map(copy, value)


def assert_same(actual: Any, expected: Any, *, scale: float = 1.0, where: str = "output") -> None:
    """Assert equal structure, types, dtypes, shapes and devices, and values within the tolerance.

    A reference with no non-zero number is refused: it would hide a dropped value.
    """
    if isinstance(expected, Tensor):
        assert isinstance(actual, Tensor), f"{where}: {type(actual).__name__} instead of a tensor"
        assert actual.dtype == expected.dtype, f"{where}: {actual.dtype}, not {expected.dtype}"
        assert actual.shape == expected.shape, f"{where}: {actual.shape}, not {expected.shape}"
        assert actual.device == expected.device, where
        assert not actual.requires_grad, f"{where}: requires grad"
        rtol, atol = TOLERANCE.get(expected.dtype, (0.0, 0.0))
        torch.testing.assert_close(
            actual, expected, rtol=rtol * scale, atol=atol * scale, msg=lambda m: f"{where}: {m}"
        )
    elif isinstance(expected, Mapping):
        assert type(actual) is type(expected), where
        assert list(actual) == list(expected), where
        for key in expected:
            assert_same(actual[key], expected[key], scale=scale, where=f"{where}[{key!r}]")
    elif isinstance(expected, list | tuple):
        assert type(actual) is type(expected), f"{where}: {type(actual)}, not {type(expected)}"
        assert len(actual) == len(expected), where
        for i, (one, other) in enumerate(zip(actual, expected, strict=True)):
            assert_same(one, other, scale=scale, where=f"{where}[{i}]")
    elif dataclasses.is_dataclass(expected):
        assert type(actual) is type(expected), where
        for one in dataclasses.fields(expected):
            assert_same(
                getattr(actual, one.name),
                getattr(expected, one.name),
                scale=scale,
                where=f"{where}.{one.name}",
            )
    else:
        assert type(actual) is type(expected), f"{where}: {actual!r}, not {expected!r}"
        assert actual == expected, f"{where}: {actual!r}, not {expected!r}"


# ----------------------------------------------------------------------------------------- decoder


class RMSNorm(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * (wide.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()).to(
            x.dtype
        ) * self.weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary position embedding to [tokens, heads, head size]."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, hidden: int, heads: int, layer: int | None, name: str | None) -> None:
        super().__init__()
        self.heads, self.head_size = heads, hidden // heads
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.output = nn.Linear(hidden, hidden, bias=False)
        self.layer, self.name = layer, name

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q = rotate(q.reshape(-1, self.heads, self.head_size), cos, sin)
        k = rotate(k.reshape(-1, self.heads, self.head_size), cos, sin)
        v = v.reshape(-1, self.heads, self.head_size)
        out = torch.empty_like(q)
        constants = {"layer": self.layer, "name": self.name}
        given = {key: value for key, value in constants.items() if value is not None}
        torch.ops.intarsia_tests.attention(q, k, v, out, **given)
        return self.output(out.reshape(-1, self.heads * self.head_size))


class SwiGLU(nn.Module):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(hidden, 2 * inner, bias=False)
        self.down = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class DecoderLayer(nn.Module):
    def __init__(self, hidden: int, heads: int, layer: int | None, name: str | None) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(hidden)
        self.attn = Attention(hidden, heads, layer, name)
        self.mlp_norm = RMSNorm(hidden)
        self.mlp = SwiGLU(hidden, 2 * hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.attention_norm(x), cos, sin)
        return x + self.mlp(self.mlp_norm(x))


@torch.compiler.nested_compile_region
def _marked_layer(layer: DecoderLayer, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return layer(x, cos, sin)


class Decoder(nn.Module):
    """A decoder over one flat batch of tokens: `ids` and `positions` are [tokens]."""

    def __init__(
        self,
        layers: int,
        hidden: int,
        heads: int,
        vocabulary: int,
        constants: str,
        marked: bool,
        chunked: bool,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.layers = nn.ModuleList(
            DecoderLayer(
                hidden,
                heads,
                i if constants in ("int", "both") else None,
                f"layers.{i}.attn" if constants in ("str", "both") else None,
            )
            for i in range(layers)
        )
        self.norm = RMSNorm(hidden)
        self.marked, self.chunked = marked, chunked
        half = hidden // heads // 2
        angles = torch.arange(512)[:, None] * 100.0 ** (-torch.arange(half) / half)
        self.register_buffer("cos_rotary", angles.cos())
        self.register_buffer("sin_rotary", angles.sin())

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        x = self.embedding(ids)
        if self.chunked:
            tables = torch.cat((self.cos_rotary, self.sin_rotary), dim=-1)
            cos, sin = tables[positions].unsqueeze(1).chunk(2, dim=-1)
        else:
            cos = self.cos_rotary[positions].unsqueeze(1)
            sin = self.sin_rotary[positions].unsqueeze(1)
        for layer in self.layers:
            x = _marked_layer(layer, x, cos, sin) if self.marked else layer(x, cos, sin)
        return self.norm(x)


def decoder(
    layers: int,
    hidden: int = 64,
    heads: int = 4,
    *,
    vocabulary: int = 97,
    constants: str = "none",
    marked: bool = False,
    chunked: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Decoder:
    """Return a decoder with random weights.

    `constants` says what each layer passes to its attention op: "none", "int" (its number), "str"
    (its name) or "both". *Seen:* torch 2.13 inlines marked regions whose layers differ in an int.

    With `marked` the layers are marked by `torch.compiler.nested_compile_region`. With `chunked` the
    cosine and sine that every layer takes are views of one tensor: *seen:* torch 2.13 then refuses to
    trace a region ("does not support aliasing"), so regional capture has to fall back.
    """
    model = Decoder(layers, hidden, heads, vocabulary, constants, marked, chunked)
    random_(model, seed)
    return model.to(dtype).eval()


def decoder_inputs(tokens: int, seed: int = 0, vocabulary: int = 97) -> dict[str, Tensor]:
    """Return `ids` and `positions` for a decoder; positions do not start at 0."""
    start = seed % 5 + 1
    ids = randint(0, vocabulary, (tokens,), seed)
    return {"ids": ids, "positions": (torch.arange(tokens) + start) % 512}


DECODER_DYNAMIC = {"ids": {0: "tokens"}, "positions": {0: "tokens"}}
ATTENTION = "intarsia_tests::attention"


def decoder_reference(model: Decoder, ids: Tensor, positions: Tensor) -> Tensor:
    """Compute the decoder's result without the opaque op and without its modules' forwards."""

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=1e-6).to(x.dtype) * weight

    x = F.embedding(ids, model.embedding.weight)
    cos, sin = model.cos_rotary[positions][:, None], model.sin_rotary[positions][:, None]
    for layer in model.layers:
        q, k, v = F.linear(norm(x, layer.attention_norm.weight), layer.attn.qkv.weight).split(
            x.shape[-1], -1
        )
        shape = (ids.shape[0], layer.attn.heads, layer.attn.head_size)
        q, k = rotate(q.reshape(shape), cos, sin), rotate(k.reshape(shape), cos, sin)
        heads_first = (t.transpose(0, 1)[None] for t in (q, k, v.reshape(shape)))
        y = F.scaled_dot_product_attention(*heads_first, is_causal=True)[0].transpose(0, 1)
        x = x + F.linear(y.flatten(1), layer.attn.output.weight)
        gate, up = F.linear(norm(x, layer.mlp_norm.weight), layer.mlp.gate_up.weight).chunk(2, -1)
        x = x + F.linear(F.silu(gate) * up, layer.mlp.down.weight)
    return norm(x, model.norm.weight)


# --------------------------------------------------------------------------------------------- zoo


@dataclasses.dataclass(frozen=True)
class Example:
    """A small model and how to call it.

    Attributes:
        name: names the test.
        build: returns a fresh model or function; the same weights each time.
        inputs: `(sizes, seed) -> (args, kwargs)`.
        dynamic: for `intarsia.compile`.
        sizes: what to call it with; the first is the size to compile with.
        state: whether a call changes the model, or its own arguments.
    """

    name: str
    build: Callable[[], Callable[..., Any]]
    inputs: Callable[[Sizes, int], Inputs]
    dynamic: Mapping[str, Mapping[int, str]]
    sizes: tuple[Sizes, ...] = ({"n": 6}, {"n": 3}, {"n": 9})
    state: bool = False


class InPlace(nn.Module):
    """Writes in place to activations, through views, and to an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        y = self.linear(x)
        y.add_(x)
        y[:, 1:3].mul_(2.5)
        y.view(-1)[::2] += 1
        F.relu(y, inplace=True)
        target.copy_(y * 3)
        target[0] -= 1
        return y - target


class MutatingOp(nn.Module):
    """Calls a custom op that writes to an argument and returns nothing, twice on one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        kept = y * 2
        torch.ops.intarsia_tests.add_into(y, x)
        z = y * kept
        torch.ops.intarsia_tests.add_into(y, z)
        return y + kept


class KeyValueCache(nn.Module):
    """Writes rows of a buffer at given positions and attends over the whole buffer."""

    def __init__(self, rows: int = 16, hidden: int = 8) -> None:
        super().__init__()
        self.keys = nn.Linear(hidden, hidden, bias=False)
        self.register_buffer("cache", torch.zeros(rows, hidden))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        self.cache.index_copy_(0, positions, self.keys(x))
        self.calls.add_(1)
        return (x @ self.cache.T).softmax(-1) @ self.cache + self.calls


class RunningMean(nn.Module):
    """Replaces a buffer by assignment instead of writing into it.

    *Seen:* torch's capture for export drops the assignment with no more than a warning, so this is not
    in the zoo: a front door must keep it or refuse the model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = self.mean * 0.9 + x.mean(0) * 0.1
        return x - self.mean


class PlainArguments(nn.Module):
    """Takes ints, bools, None, strings and lists next to tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(
        self,
        x: Tensor,
        times: int,
        *,
        activation: str = "relu",
        bias: Tensor | None = None,
        add: bool = False,
        order: list[int] | None = None,
        extra: list[Tensor] | None = None,
    ) -> Tensor:
        y = self.linear(x) * times
        if bias is not None:
            y = y + bias
        if add:
            y = y + x
        if order is not None:
            y = y[:, order]
        for one in extra or []:
            y = y * one
        return getattr(torch, activation)(y)


@dataclasses.dataclass
class Result:
    hidden: Tensor
    parts: dict[str, Tensor]
    count: int
    note: str | None = None


pytree.register_dataclass(Result, serialized_type_name="tests.models.Result")


class DataclassOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Result:
        y = self.linear(x)
        return Result(y, {"double": y * 2, "input": x.sin()}, count=3)


class DictOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.linear(x)
        return {"y": y, "nothing": None, "sum": y.sum(), "shape": tuple(x.shape), "flag": True}


class NestedOutput(nn.Module):
    """Returns nested containers with one tensor twice, a view, an input and a weight among them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, batch: dict[str, Any]) -> Any:
        x, (left, right) = batch["x"], batch["pair"]
        y = self.linear(x) + left * right
        return [y, (y, y.view(-1)), {"x": x, "deep": [{"w": self.linear.weight}]}]


class TiedWeights(nn.Module):
    """An embedding whose weight is the output projection's too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids).tanh())


class TwoSymbols(nn.Module):
    """Has a batch and a length, and mixes them in shapes and in arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        batch, length = x.shape[0], x.shape[1]
        y = self.linear(x).reshape(batch * length, 4)
        y = y * (length + 2 * batch) / batch
        return (y.view(batch, length, 4).transpose(0, 1) @ x.new_ones(4, 2)).flatten(1)


class MultipleOf128(nn.Module):
    """Takes another branch where the number of rows is a multiple of 128."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] % 128 == 0:  # the line that a refusal must name
            return x.view(-1, 128, x.shape[1]).cumsum(0).view_as(x)
        return x.sin()


class MoreThanTen(nn.Module):
    """Takes another branch for more than ten rows."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 10:  # the line that a refusal must name
            return x * 2 - 1
        return x.cos()


class MultipleOutputs(nn.Module):
    """Indexes the results of ops with several outputs, not all of them and not in order."""

    def forward(self, x: Tensor) -> Tensor:
        first, _, third = torch.split(x * 2, (1, 2, 3), dim=1)
        values, indices = torch.topk(x, 3)
        best, where = x.max(dim=1, keepdim=True)
        minimum = x.aminmax(dim=1).min
        return third - first + values * indices + best * where - minimum[:, None]


class Consumers(nn.Module):
    """Uses one value in many places, near and far."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.one(x)
        a = torch.sigmoid(y)
        b = self.two(a) + y
        c = torch.sigmoid(b) * a
        return self.three(c) + y + x, a, b - c


class TrainingFlag(nn.Module):
    """Has dropout and a branch on `self.training`; meant for eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(4, 4), nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dropout(self.linear(x)))
        return y * 7 if self.training else y


class Settings:
    """Plain attributes that a forward reads, as a Hugging Face config is."""

    def __init__(self) -> None:
        self.offset, self.mode = 0.25, "add"


class Attributes(nn.Module):
    """Reads a float, an int and a config object of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.power, self.settings = 1.5, 2, Settings()

    def forward(self, x: Tensor) -> Tensor:
        y = x**self.power * self.scale
        return y + self.settings.offset if self.settings.mode == "add" else y


GLOBAL_FACTOR = 3.0
GLOBAL_TABLE = {"shift": 0.5}


def closure(offset: float = 0.75) -> Callable[[Tensor], Tensor]:
    """Return a function that reads a closure variable, two globals and a default."""

    def forward(x: Tensor, power: int = 3) -> Tensor:
        return (x + offset) ** power * GLOBAL_FACTOR - GLOBAL_TABLE["shift"]

    return forward


def plain_function(x: Tensor, y: Tensor) -> Tensor:
    """Be a target that is no module."""
    return torch.sigmoid(x @ y.T) + x.sum()


class Aliased(nn.Module):
    """Returns views of its input and of its own results, and one value written after being viewed."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = x * 2
        view = y[1:]
        y.mul_(3)
        return view, x.view(-1), y.t()


class HalfPrecision(nn.Module):
    """Mixes dtypes: bfloat16 weights, float32 sums, integer and boolean results."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4).to(torch.bfloat16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.linear(x.to(torch.bfloat16))
        total = y.float().cumsum(0)
        return y, total, (total > 0.3)


class PrintsAndContinues(nn.Module):
    """Breaks the graph with a print; for the JIT door only."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(self.one(x))
        print("between", end="")
        return self.two(y) + x


class ReadsItem(nn.Module):
    """Breaks the graph with `.item()` and branches on it; for the JIT door only."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        total = y.sum().item()
        return y * 2 if total > 0 else y.sigmoid() - total


def _module(cls: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: random_(cls()).eval()


def _rows(width: int = 4, count: int = 1) -> Callable[[Sizes, int], Inputs]:
    return lambda s, seed: (
        tuple(randn(s["n"], width, seed=seed + 7 * i) for i in range(count)),
        {},
    )


_X: Mapping[str, Mapping[int, str]] = {"x": {0: "n"}}

ZOO: tuple[Example, ...] = (
    Example(
        "in-place",
        _module(InPlace),
        _rows(4, 2),
        {"x": {0: "n"}, "target": {0: "n"}},
        state=True,
    ),
    Example("mutating-op", _module(MutatingOp), _rows(), _X),
    Example(
        "kv-cache",
        _module(KeyValueCache),
        lambda s, seed: (
            (
                randn(s["n"], 8, seed=seed),
                torch.randperm(16, generator=torch.Generator().manual_seed(seed))[: s["n"]],
            ),
            {},
        ),
        {"x": {0: "n"}, "positions": {0: "n"}},
        state=True,
    ),
    Example(
        "plain-arguments",
        _module(PlainArguments),
        lambda s, seed: (
            (randn(s["n"], 4, seed=seed), 3),
            {
                "activation": "tanh",
                "bias": None,
                "add": True,
                "order": [2, 0, 3, 1],
                "extra": [randn(4, seed=seed + 1), randn(4, seed=seed + 2)],
            },
        ),
        _X,
    ),
    Example("dataclass-output", _module(DataclassOutput), _rows(), _X),
    Example("dict-output", _module(DictOutput), _rows(), _X),
    Example(
        "nested-output",
        _module(NestedOutput),
        lambda s, seed: (
            ({"x": randn(3, 4, seed=seed), "pair": (randn(4, seed=seed + 1), randn(4, seed=3))},),
            {},
        ),
        {},
        sizes=({}, {}),
    ),
    Example(
        "tied-weights",
        _module(TiedWeights),
        lambda s, seed: ((randint(0, 11, (s["n"],), seed),), {}),
        {"ids": {0: "n"}},
    ),
    Example(
        "two-symbols",
        _module(TwoSymbols),
        lambda s, seed: ((randn(s["b"], s["n"], 4, seed=seed),), {}),
        {"x": {0: "b", 1: "n"}},
        sizes=({"b": 3, "n": 5}, {"b": 2, "n": 7}, {"b": 5, "n": 5}, {"b": 4, "n": 2}),
    ),
    Example("multiple-outputs", _module(MultipleOutputs), _rows(6), _X),
    Example("consumers", _module(Consumers), _rows(), _X),
    Example("training-flag", _module(TrainingFlag), _rows(), _X),
    Example("attributes", _module(Attributes), _rows(), _X),
    Example("closure", closure, _rows(), _X),
    Example(
        "function",
        lambda: plain_function,
        _rows(4, 2),
        {"x": {0: "n"}, "y": {0: "n"}},
    ),
    Example("aliased", _module(Aliased), _rows(), _X),
    Example("half-precision", _module(HalfPrecision), _rows(), _X),
)

GRAPH_BREAKS: tuple[Example, ...] = (
    Example("print", _module(PrintsAndContinues), _rows(), _X),
    Example("item", _module(ReadsItem), _rows(), _X),
)


def by_name(name: str) -> Example:
    """Return an example of the zoo."""
    return next(one for one in (*ZOO, *GRAPH_BREAKS) if one.name == name)
