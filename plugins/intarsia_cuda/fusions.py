"""The passes that put fused operators in the place of what models write.

Each looks for the forms in which models write one thing: the norm's weight before or after, a head's
halves as slices or as chunks. Results differ from the model's own code by the rounding of half precision.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, fx
from torch.nn.functional import silu

from intarsia.capture import nodes
from intarsia.digests import source_digest
from intarsia.passes.pattern import Match, PatternPass
from intarsia_cuda.kernels import ops, reference
from intarsia_cuda.kernels.launch import LARGEST_ROW

__all__ = [
    "Fusion",
    "add_rms_norm",
    "qk_norm_rotary",
    "rms_norm_fp8",
    "rms_norm_fp8_per_row",
    "rotary",
    "silu_mul",
    "silu_mul_fp8",
    "silu_mul_fp8_per_row",
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EPS, OTHER_EPS = 1.25e-6, 2.5e-6
"""Numbers that no pattern holds elsewhere."""

Function = Callable[..., Any]
OPS: Any = torch.ops.intarsia_cuda
assert ops.OPS, "importing them defines the operators"
_SOURCES = ("intarsia_cuda.kernels",)


@frozen
class Form:
    """One way in which models write something, for one dtype."""

    dtype: torch.dtype
    rewrite: PatternPass


@frozen
class Fusion:
    """A pass of several forms; those of a dtype that a graph does not have are not even traced."""

    forms: Sequence[Form]

    def __call__(self, graph: fx.Graph) -> int:
        """Replace every match; returns how many there were."""
        found = _dtypes(graph)
        return sum(form.rewrite(graph) for form in self.forms if form.dtype in found)

    def uuid(self) -> str:
        """Return the identity of the forms and of the kernels."""
        return repr([source_digest(_SOURCES), [form.rewrite.uuid() for form in self.forms]])


def _dtypes(graph: fx.Graph) -> set[torch.dtype]:
    values = (nodes.value_of(node) for node in graph.nodes)
    return {value.dtype for value in values if isinstance(value, Tensor)}


def _forms(
    patterns: Iterable[Function], replacement: Function, examples: Callable[[torch.dtype], Sequence[Any]],
    check: Callable[[Match], bool], numbers: Mapping[str, float] | None = None,
) -> list[Form]:  # fmt: skip
    """Return some ways to write one thing, each in every dtype."""
    forms = []
    for pattern, dtype in itertools.product(patterns, DTYPES):

        def made(dtype: torch.dtype = dtype) -> Sequence[Any]:
            return examples(dtype)

        def fits(match: Match, dtype: torch.dtype = dtype) -> bool:
            first = next(iter(match.values()))
            return bool(first.dtype == dtype and check(match))

        forms.append(Form(dtype, PatternPass(pattern, replacement, made, fits, numbers or {})))
    return forms


def _once(make: Callable[[Mapping[str, Any]], Fusion]) -> Callable[[Mapping[str, Any]], Fusion]:
    """Return a factory that makes a fusion once in a process.

    A fusion has no options and keeps nothing of a graph, and tracing its patterns takes longer than looking
    for them.
    """
    made = functools.cache(lambda: make({}))

    @functools.wraps(make)
    def factory(options: Mapping[str, Any]) -> Fusion:
        return made()

    return factory


def _same(*sizes: Any) -> bool:
    """Say whether sizes are equal whatever their symbols are."""
    return len({str(size) for size in sizes}) == 1


def _alike(one: Tensor, other: Tensor) -> bool:
    """Say whether tensors have one shape and dtype, so that nothing is broadcast or promoted."""
    return (
        one.dtype == other.dtype
        and one.ndim == other.ndim
        and all(_same(*sizes) for sizes in zip(one.shape, other.shape, strict=True))
        and isinstance(one.shape[-1], int)
        and 0 < one.shape[-1] <= LARGEST_ROW
    )


def _is_weight_of(weight: Tensor, x: Tensor) -> bool:
    size = x.shape[-1]
    return (
        weight.ndim == 1 and weight.dtype == x.dtype and _same(weight.shape[0], size)
        and isinstance(size, int) and 0 < size <= LARGEST_ROW
    )  # fmt: skip


def _has_fp8(x: Tensor) -> bool:
    """Say whether a tensor's device converts to FP8, as NVIDIA's do from compute capability 8.9 on."""
    return not x.is_cuda or torch.cuda.get_device_capability(x.device) >= (8, 9)


def _is_scale(scale: Tensor) -> bool:
    return scale.dtype == torch.float32 and all(size == 1 for size in scale.shape)


def _random(*shape: int) -> Tensor:
    return torch.randn(shape)


# ----------------------------------------------------------------------------------------------- norms


def _weight_after(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return reference.rms_norm(x, weight, eps)


def _weight_before(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def _added_after(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x + residual
    return _weight_after(total, weight, eps), total


def _added_before(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x + residual
    return _weight_before(total, weight, eps), total


@_once
def add_rms_norm(options: Mapping[str, Any]) -> Fusion:
    """Return the pass for a residual add and RMS norm; the sum stays a result."""
    return Fusion(
        _forms(
            (_added_after, _added_before),
            lambda x, residual, weight, eps: OPS.add_rms_norm(x, residual, weight, eps),
            lambda dtype: (_random(3, 8).to(dtype), _random(3, 8).to(dtype), _random(8).to(dtype), EPS),
            lambda m: _alike(m["x"], m["residual"]) and _is_weight_of(m["weight"], m["x"]),
            {"eps": EPS},
        )
    )  # fmt: skip


def _fp8_after(x: Tensor, weight: Tensor, scale: Tensor, eps: float) -> Tensor:
    return reference.quantised(_weight_after(x, weight, eps), scale)


def _fp8_before(x: Tensor, weight: Tensor, scale: Tensor, eps: float) -> Tensor:
    return reference.quantised(_weight_before(x, weight, eps), scale)


def _per_row_after(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return reference.quantised_per_row(_weight_after(x, weight, eps))


def _per_row_before(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return reference.quantised_per_row(_weight_before(x, weight, eps))


@_once
def rms_norm_fp8(options: Mapping[str, Any]) -> Fusion:
    """Return the pass for an RMS norm into FP8 by a given scale."""
    given = _forms(
        (_fp8_after, _fp8_before),
        lambda x, weight, scale, eps: OPS.rms_norm_fp8(x, weight, scale, eps),
        lambda dtype: (_random(3, 8).to(dtype), _random(8).to(dtype), _random(1), EPS),
        lambda m: _has_fp8(m["x"]) and _is_weight_of(m["weight"], m["x"]) and _is_scale(m["scale"]),
        {"eps": EPS},
    )  # fmt: skip
    return Fusion(given)


@_once
def rms_norm_fp8_per_row(options: Mapping[str, Any]) -> Fusion:
    """Return the pass for an RMS norm into FP8 by each row's own scale."""
    own = _forms(
        (_per_row_after, _per_row_before),
        lambda x, weight, eps: OPS.rms_norm_fp8_per_row(x, weight, eps),
        lambda dtype: (_random(3, 8).to(dtype), _random(8).to(dtype), EPS),
        lambda m: _has_fp8(m["x"]) and _is_weight_of(m["weight"], m["x"]),
        {"eps": EPS},
    )  # fmt: skip
    return Fusion(own)


# ------------------------------------------------------------------------------------------ activation


def _silu_first(gate: Tensor, up: Tensor) -> Tensor:
    return silu(gate) * up


def _silu_second(gate: Tensor, up: Tensor) -> Tensor:
    return up * silu(gate)


@_once
def silu_mul(options: Mapping[str, Any]) -> Fusion:
    """Return the pass for `silu(gate) * up`."""
    return Fusion(
        _forms(
            (_silu_first, _silu_second), lambda gate, up: OPS.silu_mul(gate, up),
            lambda dtype: (_random(3, 8).to(dtype), _random(3, 8).to(dtype)),
            lambda m: _alike(m["gate"], m["up"]),
        )
    )  # fmt: skip


@_once
def silu_mul_fp8(options: Mapping[str, Any]) -> Fusion:
    """Return the pass for `silu(gate) * up` into FP8 by a given scale."""
    given = _forms(
        (reference.silu_mul_fp8,), lambda gate, up, scale: OPS.silu_mul_fp8(gate, up, scale),
        lambda dtype: (_random(3, 8).to(dtype), _random(3, 8).to(dtype), _random(1)),
        lambda m: _has_fp8(m["gate"]) and _alike(m["gate"], m["up"]) and _is_scale(m["scale"]),
    )  # fmt: skip
    return Fusion(given)


@_once
def silu_mul_fp8_per_row(options: Mapping[str, Any]) -> Fusion:
    """Return the pass for `silu(gate) * up` into FP8 by each row's own scale."""
    own = _forms(
        (reference.silu_mul_fp8_per_row,), lambda gate, up: OPS.silu_mul_fp8_per_row(gate, up),
        lambda dtype: (_random(3, 8).to(dtype), _random(3, 8).to(dtype)),
        lambda m: _has_fp8(m["gate"]) and _alike(m["gate"], m["up"]),
    )  # fmt: skip
    return Fusion(own)


# -------------------------------------------------------------------------------------------- rotary


def _turned(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def _batched(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate [batch, heads, length, size] by cos and sin of [batch, length, size]."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return q * cos + _turned(q) * sin, k * cos + _turned(k) * sin


def _chunked(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


def _flat(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate [tokens, heads, size] by cos and sin of [tokens, 1, size / 2]."""
    return _chunked(q, cos, sin), _chunked(k, cos, sin)


def _fused_flat(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    made = OPS.rotary(
        q.transpose(0, 1).unsqueeze(0), k.transpose(0, 1).unsqueeze(0),
        cos.squeeze(1).unsqueeze(0), sin.squeeze(1).unsqueeze(0),
    )  # fmt: skip
    return made[0].squeeze(0).transpose(0, 1), made[1].squeeze(0).transpose(0, 1)


def _fits_batched(m: Match) -> bool:
    q, k, cos, sin = (m[name] for name in ("q", "k", "cos", "sin"))
    return (
        q.ndim == k.ndim == 4 and cos.ndim == sin.ndim == 3 and _alike(cos, sin)
        and _rotates(q, k, cos, q.shape[-1]) and _same(cos.shape[1], q.shape[2], k.shape[2])
        and _same(q.shape[0], k.shape[0]) and (_same(cos.shape[0], q.shape[0]) or cos.shape[0] == 1)
    )  # fmt: skip


def _fits_flat(m: Match) -> bool:
    q, k, cos, sin = (m[name] for name in ("q", "k", "cos", "sin"))
    return (
        q.ndim == k.ndim == cos.ndim == sin.ndim == 3 and _alike(cos, sin)
        and cos.shape[1] == 1 and isinstance(q.shape[-1], int)
        and _rotates(q, k, cos, q.shape[-1] // 2) and _same(cos.shape[0], q.shape[0], k.shape[0])
    )  # fmt: skip


def _rotates(q: Tensor, k: Tensor, cos: Tensor, width: int) -> bool:
    size = q.shape[-1]
    return (
        isinstance(size, int) and size % 2 == 0 and _same(size, k.shape[-1])
        and _same(cos.shape[-1], width) and q.dtype == k.dtype
        and (cos.dtype == q.dtype)  # else the model's result is of the wider dtype
    )  # fmt: skip


@_once
def rotary(options: Mapping[str, Any]) -> Fusion:
    """Return the pass for rotary embedding of q and k."""
    batched = _forms(
        (_batched,), lambda q, k, cos, sin: OPS.rotary(q, k, cos, sin),
        lambda dtype: (_random(2, 4, 3, 8).to(dtype), _random(2, 2, 3, 8).to(dtype),
                       _random(2, 3, 8).to(dtype), _random(2, 3, 8).to(dtype)),
        _fits_batched,
    )  # fmt: skip
    flat = _forms(
        (_flat,), _fused_flat,
        lambda dtype: (_random(3, 4, 8).to(dtype), _random(3, 2, 8).to(dtype),
                       _random(3, 1, 4).to(dtype), _random(3, 1, 4).to(dtype)),
        _fits_flat,
    )  # fmt: skip
    return Fusion([*batched, *flat])


def _normed_batched(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor,
    q_eps: float, k_eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Norm and rotate q and k of [batch, length, heads, size]."""
    return _batched(
        _weight_before(q, q_weight, q_eps).transpose(1, 2),
        _weight_before(k, k_weight, k_eps).transpose(1, 2), cos, sin,
    )  # fmt: skip


def _fused_normed(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor,
    q_eps: float, k_eps: float,
) -> Any:  # fmt: skip
    return OPS.qk_norm_rotary(
        q.transpose(1, 2), k.transpose(1, 2), q_weight, k_weight, cos, sin, q_eps, k_eps
    )


def _fits_normed(m: Match) -> bool:
    if m["q"].ndim != 4 or m["k"].ndim != 4:
        return False
    turned = {**m, "q": m["q"].transpose(1, 2), "k": m["k"].transpose(1, 2)}
    return (
        _fits_batched(turned)
        and _is_weight_of(m["q_weight"], m["q"])
        and _is_weight_of(m["k_weight"], m["k"])
    )


@_once
def qk_norm_rotary(options: Mapping[str, Any]) -> Fusion:
    """Return the pass for a norm of each head of q and k and their rotary embedding."""
    return Fusion(
        _forms(
            (_normed_batched,), _fused_normed,
            lambda dtype: (
                _random(2, 3, 4, 8).to(dtype), _random(2, 3, 2, 8).to(dtype), _random(8).to(dtype),
                _random(8).to(dtype), _random(2, 3, 8).to(dtype), _random(2, 3, 8).to(dtype), EPS,
                OTHER_EPS,
            ),
            _fits_normed, {"q_eps": EPS, "k_eps": OTHER_EPS},
        )
    )  # fmt: skip
