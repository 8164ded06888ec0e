"""Defects that a review proved, each once: guards that a compiler's own trace adds, blocks that only look
equal, a rank that depends on size 1, and examples that Dynamo's guards would never let through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import intarsia
from tests.models import assert_same


def first_rows(x: Tensor) -> Tensor:
    """A slice that is shorter for short inputs."""
    return x[:5] * 2


def last_rows(x: Tensor) -> Tensor:
    """The same from the end."""
    return x[-5:] * 2


def both_ends(x: Tensor) -> Tensor:
    """Two slices that may overlap."""
    return torch.cat([x[:4], x[-2:]]) + 1


def squeezed(x: Tensor) -> Tensor:
    """A result of another rank at size 1."""
    return x.squeeze(0).sum(0)


@pytest.mark.parametrize("function", [first_rows, last_rows, both_ends, squeezed])
@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_sizes_below_a_slice_give_eagers_shapes(
    function: Callable[[Tensor], Tensor], compiler: str
) -> None:
    compiled = intarsia.compile(
        function, args=(torch.randn(7, 4),), dynamic={"x": {0: "n"}}, boxes={"n": [16]},
        uncovered="eager", compilers=[compiler, "eager"],
    )  # fmt: skip
    # torch 2.11 cannot lower such a slice size-obliviously: Inductor fails, eager takes over and says so.
    assert compiled.report.fallbacks == 0 or torch.__version__.startswith("2.11")
    for n in (8, 1, 2, 3, 5, 16):
        x = torch.randn(n, 4)
        assert_same(compiled(x), function(x))


class Block(nn.Module):
    """A block whose activation is an attribute."""

    def __init__(self, act: Any = torch.relu) -> None:
        super().__init__()
        self.linear, self.act, self.last = nn.Linear(4, 4), act, None
        self.twin = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Run both layers."""
        return self.act(self.linear(x)) + self.twin(x)


class Remembers(Block):
    """A block that keeps its last result."""

    def forward(self, x: Tensor) -> Tensor:
        """Run, and remember."""
        self.last = super().forward(x)
        return self.last


class Stack(nn.Module):
    """Blocks in a row, and a head."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList(blocks), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks and the head."""
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def functions_differ() -> Stack:
    """Blocks that differ in a function."""
    return Stack([Block(torch.relu), Block(torch.sigmoid), Block(torch.tanh)])


def first_is_tied() -> Stack:
    """Only the first block's two layers share their weight."""
    blocks = [Block() for _ in range(3)]
    blocks[0].twin.weight = blocks[0].linear.weight
    return Stack(list(blocks))


def first_shares_with_the_head() -> Stack:
    """The first block's weight is the head's too."""
    made = Stack([Block() for _ in range(3)])
    made.head.weight = made.layers[0].linear.weight  # type: ignore[union-attr]
    return made


@pytest.mark.parametrize("build", [functions_differ, first_is_tied, first_shares_with_the_head])
def test_blocks_that_only_look_equal_are_not_copied(build: Callable[[], Stack]) -> None:
    torch.manual_seed(0)
    model, x = build(), torch.randn(3, 4)
    compiled = intarsia.compile(model, args=(x,), compilers=["eager"])
    with torch.no_grad():
        assert_same(compiled(x), model(x))


def test_every_block_keeps_its_own_state() -> None:
    model, x = Stack([Remembers() for _ in range(3)]), torch.randn(3, 4)
    compiled = intarsia.compile(model, args=(x,), compilers=["eager"])
    compiled(x)
    kept = [layer.last for layer in model.layers]
    with torch.no_grad():
        model(x)
    for layer, value in zip(model.layers, kept, strict=True):
        assert value is not None
        assert_same(value, layer.last)


def test_the_jit_door_compiles_an_example_that_its_guards_let_through() -> None:
    def f(x: Tensor) -> Tensor:
        return x.view(-1, 8, 4).sum(1)

    compiled = torch.compile(
        f, backend="intarsia", dynamic=True, options={"compilers": ["inductor"], "strict": True}
    )
    with torch.no_grad():
        for n in (16, 32, 64):
            x = torch.randn(n, 4)
            assert_same(compiled(x), f(x))
