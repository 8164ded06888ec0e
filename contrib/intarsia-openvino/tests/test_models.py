"""OpenVINO under models: dynamic sizes, several pieces, baked weights, refusals with their reasons."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import intarsia

pytestmark = pytest.mark.contrib

NAME = "openvino"


class Attention(nn.Module):
    """Projections, rotary embedding and attention: transposed results and sizes as inputs of pieces."""

    def __init__(self, hidden: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(hidden)
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        n, hidden = x.shape
        q, k, v = (
            part.reshape(n, self.heads, hidden // self.heads).transpose(0, 1)
            for part in self.qkv(self.norm(x)).chunk(3, -1)
        )
        q, k = (torch.cat((-y[..., 4:], y[..., :4]), -1) * sin + y * cos for y in (q, k))
        q, k, v = (y.unsqueeze(0) for y in (q, k, v))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(y[0].transpose(0, 1).reshape(n, hidden))


def made(n: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(n, 32), torch.randn(n, 8), torch.randn(n, 8)


def compiled(model: Any, **settings: Any) -> Any:
    settings = {"compilers": [NAME], "strict": True, "cache": False, **settings}
    dynamic = {"x": {0: "n"}, "cos": {0: "n"}, "sin": {0: "n"}}
    return intarsia.compile(model, made(5), dynamic=dynamic, **settings)


@pytest.fixture
def model() -> Attention:
    torch.manual_seed(0)
    return Attention().requires_grad_(False)


@pytest.mark.parametrize(
    "split_at", [[], ["torch.nn.functional.scaled_dot_product_attention"]], ids=["whole", "pieces"]
)
def test_attention_at_many_lengths(model: Attention, split_at: list[str]) -> None:
    call = compiled(model, split_at=split_at)
    for n in (5, 1, 3, 17, 128):
        args = made(n)
        torch.testing.assert_close(call(*args), model(*args), rtol=1e-4, atol=1e-5)
    for piece in call.report.piece_reports:
        assert piece.kind != "compiled" or piece.boxes[0].compiler == NAME


def test_weights_may_be_baked_in(model: Attention) -> None:
    call = compiled(model, options={NAME: {"weights": "bake"}})
    args = made(9)
    torch.testing.assert_close(call(*args), model(*args), rtol=1e-4, atol=1e-5)
    model.out.weight = nn.Parameter(model.out.weight * 2, requires_grad=False)
    with pytest.raises(intarsia.ContractError, match="out.weight"):
        call(*args)


def test_an_unknown_way_to_have_weights_is_an_error(model: Attention) -> None:
    with pytest.raises(intarsia.ConfigError, match='weights = "melt"'):
        compiled(model, options={NAME: {"weights": "melt"}})


def test_what_it_cannot_do_goes_to_the_next_compiler(model: Attention) -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.linalg.svdvals(x), x * 2

    x = torch.randn(4, 4)
    call = intarsia.compile(function, (x,), compilers=[NAME, "eager"], cache=False)
    torch.testing.assert_close(call(x), function(x))
    (piece,) = (p for p in call.report.piece_reports if p.kind == "compiled")
    assert piece.boxes[0].compiler == "eager"
    assert piece.boxes[0].attempts[0].reason
