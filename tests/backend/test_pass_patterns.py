"""Patterns match by structure at any size, and as often as real models have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import intarsia
from intarsia.config import load_config
from intarsia.errors import PassError
from intarsia.host import Host
from intarsia.interfaces import PassSpec
from intarsia.passes.pattern import PatternPass
from tests.models import (
    ATTENTION,
    DECODER_DYNAMIC,
    RMSNorm,
    assert_same,
    decoder,
    decoder_inputs,
    decoder_reference,
)
from tests.pass_toys import Plugin, X, compiled, matches

# --------------------------------------------------------------------------------------------- patterns

LIBRARY = torch.library.Library("intarsia_test_passes", "FRAGMENT")
LIBRARY.define("rms(Tensor x, Tensor weight, float eps) -> Tensor")
LIBRARY.define("sin_cos(Tensor x) -> (Tensor, Tensor)")
LIBRARY.define("add_relu_(Tensor(a!) x, Tensor y) -> ()")


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * (wide.pow(2).mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype) * weight


def _add_relu_(x: Tensor, y: Tensor) -> None:
    x.add_(y).relu_()


LIBRARY.impl("rms", rms, "CPU")
LIBRARY.impl("sin_cos", lambda x: (x.sin(), x.cos()), "CPU")
LIBRARY.impl("add_relu_", _add_relu_, "CPU")
torch.library.register_fake(
    "intarsia_test_passes::rms", lambda x, weight, eps: torch.empty_like(x), lib=LIBRARY
)
torch.library.register_fake(
    "intarsia_test_passes::sin_cos",
    lambda x: (torch.empty_like(x), torch.empty_like(x)),
    lib=LIBRARY,
)
torch.library.register_fake("intarsia_test_passes::add_relu_", lambda x, y: None, lib=LIBRARY)
OPS = torch.ops.intarsia_test_passes


def pattern_pass(name: str, *parts: Any, **more: Any) -> PassSpec:
    """Return the spec of a pattern pass."""
    named = {k: more.pop(k) for k in ("check", "numbers") if k in more}
    return PassSpec(name, "1", "piece-aten", lambda options: PatternPass(*parts, **named), **more)


def rms_pass(pattern: Any = rms, **more: Any) -> PassSpec:
    return pattern_pass(
        "rms", pattern, lambda x, weight, eps: OPS.rms(x, weight, eps),
        lambda: (torch.randn(3, 8), torch.randn(8), 1e-6), numbers={"eps": 1e-6}, **more,
    )  # fmt: skip


class Norms(nn.Module):
    """Norms with different numbers and sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.big = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        """Run."""
        x = rms(x, self.small, 1e-5)
        return rms(torch.cat((x, x), -1), self.big, 0.25)


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_a_pattern_matches_at_any_size_and_number(compiler: str) -> None:
    model = Norms()
    made = compiled(
        model, (X,), Plugin(rms_pass(min_matches=2)), compilers=[compiler], strict=True,
        dynamic={"x": {0: "rows"}},
    )  # fmt: skip
    assert matches(made) == {"rms": 2}
    for x in (X, X[:1], X.repeat(5, 1)):
        torch.testing.assert_close(made(x), model(x).detach(), rtol=1e-5, atol=1e-5)


def test_a_check_sees_the_sizes_and_numbers_of_a_match() -> None:
    seen: list[tuple[int, float]] = []

    def check(match: Mapping[str, Any]) -> bool:
        seen.append((match["x"].shape[-1], match["eps"]))
        return bool(match["weight"].shape[0] == 16)

    made = compiled(Norms(), (X,), Plugin(rms_pass(check=check)), dynamic={"x": {0: "rows"}})
    assert matches(made) == {"rms": 1}
    assert sorted(set(seen)) == [(8, 1e-5), (16, 0.25)]


def test_a_value_that_is_used_outside_the_pattern_keeps_it_from_matching() -> None:
    def function(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        wide = x.float()
        scale = (wide.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()
        return (wide * scale).to(x.dtype) * weight, scale

    made = compiled(function, (X, X[0]), Plugin(rms_pass()))
    assert matches(made) == {"rms": 0}
    torch.testing.assert_close(made(X, X[0]), function(X, X[0]))


def sin_and_cos(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.sin(), x.cos()


def test_a_pattern_may_have_several_results() -> None:
    def function(x: Tensor) -> Tensor:
        return (x + 1).sin() * (x + 1).cos() + x.sin()

    spec = pattern_pass("pair", sin_and_cos, lambda x: OPS.sin_cos(x), lambda: (torch.randn(3, 4),))

    def both(x: Tensor) -> Tensor:
        y = x + 1
        return y.sin() * y.cos() + x.sin()

    made = compiled(both, (X,), Plugin(spec), strict=True, dynamic={"x": {0: "rows"}})
    assert matches(made) == {"pair": 1}
    torch.testing.assert_close(made(X[:3]), function(X[:3]))


def added_relu(x: Tensor, y: Tensor) -> Tensor:
    return torch.relu(x + y)


def added_relu_in_place(x: Tensor, y: Tensor) -> Tensor:
    """Do the same with an operator that writes to what it is given."""
    mine = x.clone()
    OPS.add_relu_(mine, y)
    return mine


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_a_replacement_may_write_to_what_it_made_where_the_piece_writes(compiler: str) -> None:
    def function(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        z.mul_(3)
        return torch.relu(x + y) * 2

    spec = pattern_pass(
        "fuse", added_relu, added_relu_in_place, lambda: (torch.randn(3, 4), torch.randn(3, 4))
    )
    made = compiled(function, (X, X - 1, X + 1), Plugin(spec), compilers=[compiler], strict=True)
    assert matches(made) == {"fuse": 1}
    mine, theirs = [(X.clone(), X - 1, X + 1) for _ in range(2)]
    torch.testing.assert_close(made(*mine), function(*theirs))
    torch.testing.assert_close(mine, theirs)


def test_a_pass_runs_over_a_piece_that_writes_to_its_own_tensors_by_a_custom_operator() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        mine = x * 2
        OPS.add_relu_(mine, y)
        return mine.sigmoid() + (x + y).relu()

    spec = pattern_pass(
        "fuse", added_relu, lambda x, y: torch.clamp_min(x + y, 0),
        lambda: (torch.randn(3, 4), torch.randn(3, 4)),
    )  # fmt: skip
    made = compiled(function, (X, X - 1), Plugin(spec), strict=True)
    assert matches(made) == {"fuse": 1}
    torch.testing.assert_close(made(X, X - 1), function(X, X - 1))


# ------------------------------------------------------------------------------------------ real models


def decoder_of(layers: int, plugin: Plugin, **settings: Any) -> Any:
    model = decoder(layers)
    call = decoder_inputs(6)
    config = load_config(
        None, compilers=["eager"], passes={"enable": ["rms"]}, split_at=[ATTENTION], **settings
    )
    made = intarsia.compile(
        model, kwargs=call, dynamic=DECODER_DYNAMIC, config=config,
        host=Host(config, extra_plugins=[plugin]),
    )  # fmt: skip
    for tokens in (6, 9):
        call = decoder_inputs(tokens)
        assert_same(made(**call), decoder_reference(model, **call).detach(), scale=4)
    return made


def test_a_pattern_matches_as_often_as_the_decoder_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = decoder_of(12, Plugin(rms_pass(min_matches=25)), strict=True)
    assert matches(made) == {"rms": 25}

    # one that computes the same differently, in the last norm of each layer
    def changed(self: Any, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide / ((wide * wide).mean(-1, keepdim=True) + 1e-6).sqrt()).to(
            x.dtype
        ) * self.weight

    monkeypatch.setattr(RMSNorm, "forward", changed)
    with pytest.raises(PassError, match="matched 0 times for .*, not 25 or more"):
        decoder_of(12, Plugin(rms_pass(min_matches=25)), strict=True)


def hugging_face_rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


@pytest.mark.parametrize(("name", "count"), [("Llama", 5), ("Qwen3", 9)])
def test_a_pattern_matches_as_often_as_a_hugging_face_model_has_it(name: str, count: int) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval().requires_grad_(False)
    ids = torch.arange(10).reshape(2, 5)
    plugin = Plugin(rms_pass(hugging_face_rms, min_matches=count))
    settings = load_config(None, compilers=["eager"], passes={"enable": ["rms"]}, strict=True)
    made = intarsia.compile(
        model, kwargs={"input_ids": ids, "use_cache": False}, config=settings,
        dynamic={"input_ids": {1: "length"}}, host=Host(settings, extra_plugins=[plugin]),
    )  # fmt: skip
    assert matches(made) == {"rms": count}
    ids = torch.arange(14).reshape(2, 7)
    torch.testing.assert_close(
        made(input_ids=ids, use_cache=False).logits, model(input_ids=ids, use_cache=False).logits
    )
