"""Patterns with operators that write to their arguments: chains, inputs, and what must be left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from intarsia.interfaces import PassSpec
from intarsia.passes import writes
from intarsia.passes.pattern import PatternPass
from tests.pass_toys import Plugin, X, compiled, matches

LIBRARY = torch.library.Library("intarsia_test_writes", "FRAGMENT")
for _schema in ("add_(Tensor(a!) x, Tensor y) -> ()", "relu_(Tensor(a!) x) -> ()",
                "add_relu_(Tensor(a!) x, Tensor y) -> ()",
                "add_sum_(Tensor(a!) x, Tensor y) -> Tensor"):  # fmt: skip
    LIBRARY.define(_schema)
ran: list[str] = []


def _add(x: Tensor, y: Tensor) -> None:
    x.add_(y)


def _relu(x: Tensor) -> None:
    ran.append("relu_")
    x.relu_()


def _add_relu(x: Tensor, y: Tensor) -> None:
    ran.append("add_relu_")
    x.add_(y).relu_()


def _add_sum(x: Tensor, y: Tensor) -> Tensor:
    x.add_(y)
    return x.sum(-1)


LIBRARY.impl("add_", _add, "CPU")
LIBRARY.impl("relu_", _relu, "CPU")
LIBRARY.impl("add_relu_", _add_relu, "CPU")
LIBRARY.impl("add_sum_", _add_sum, "CPU")
for _name, _fake in (
    ("add_", lambda x, y: None), ("relu_", lambda x: None), ("add_relu_", lambda x, y: None),
    ("add_sum_", lambda x, y: x.new_empty(x.shape[:-1])),
):  # fmt: skip
    torch.library.register_fake(f"intarsia_test_writes::{_name}", _fake, lib=LIBRARY)
OPS = torch.ops.intarsia_test_writes


def in_place(x: Tensor, y: Tensor) -> None:
    """Write to the first parameter, and return nothing."""
    OPS.add_(x, y)
    OPS.relu_(x)


def returned(x: Tensor, y: Tensor) -> Tensor:
    in_place(x, y)
    return x


def fused(x: Tensor, y: Tensor) -> None:
    OPS.add_relu_(x, y)


def fused_returned(x: Tensor, y: Tensor) -> Tensor:
    fused(x, y)
    return x


def two() -> tuple[Tensor, Tensor]:
    return torch.randn(3, 4), torch.randn(3, 4)


def spec(pattern: Any = in_place, replacement: Any = fused) -> PassSpec:
    return PassSpec(
        "fuse", "1", "piece-aten", lambda options: PatternPass(pattern, replacement, two)
    )


def own(x: Tensor, y: Tensor) -> Tensor:
    mine = x * 2
    in_place(mine, y)
    return mine.sigmoid() + mine


def chain(x: Tensor, y: Tensor) -> Tensor:
    mine = x * 2
    for _ in range(3):
        in_place(mine, y)
    return mine


def given(x: Tensor, y: Tensor) -> Tensor:
    in_place(x, y)
    return x + 1


def given_twice(x: Tensor, y: Tensor) -> Tensor:
    in_place(x, y)
    in_place(x, x + 1)
    return x + 1


def through_a_view(x: Tensor, y: Tensor) -> Tensor:
    mine = x * 2
    half = mine[:1]
    in_place(mine, y)
    return mine + half


def of_a_view(x: Tensor, y: Tensor) -> Tensor:
    mine = (x * 2).t()
    in_place(mine, y.t())
    return mine.t().sigmoid()


def apart(x: Tensor, y: Tensor) -> Tensor:
    mine = x * 2
    OPS.add_(mine, y)
    between = mine.exp()
    OPS.relu_(mine)
    return mine + between


def shared_inputs(x: Tensor, y: Tensor) -> Tensor:
    half = x[:3]
    in_place(half, y[:3])
    return half.exp()


def check_call(made: Any, function: Callable[..., Tensor]) -> None:
    mine, theirs = [(X.clone(), X - 1) for _ in range(2)]
    torch.testing.assert_close(made(*mine), function(*theirs))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    "parts", [(in_place, fused), (returned, fused_returned)], ids=["none", "x"]
)
@pytest.mark.parametrize(
    ("function", "count"),
    [
        (own, 1),
        (chain, 3),
        (given, 1),
        (given_twice, 2),
        (through_a_view, 0),
        (of_a_view, 1),
        (apart, 0),
        (shared_inputs, 0),
    ],
)
def test_in_place_operators_match_where_nobody_else_reads_what_they_write(
    function: Callable[..., Tensor], count: int, parts: Any
) -> None:
    made = compiled(function, (X.clone(), X - 1), Plugin(spec(*parts)), strict=True)
    assert matches(made) == {"fuse": count}
    ran.clear()
    made(X.clone(), X - 1)
    assert ran == (["add_relu_"] * count or ["relu_"])
    check_call(made, function)


def test_inductor_takes_what_became_of_writes() -> None:
    made = compiled(
        given_twice, (X.clone(), X - 1), Plugin(spec()), compilers=["inductor"], strict=True
    )
    assert matches(made) == {"fuse": 2}
    check_call(made, given_twice)


@pytest.mark.parametrize("function", [own, given])
def test_an_operator_in_place_may_become_one_that_is_not(function: Callable[..., Tensor]) -> None:
    plugin = Plugin(spec(returned, lambda x, y: torch.clamp_min(x + y, 0)))
    made = compiled(function, (X.clone(), X - 1), plugin, strict=True)
    assert matches(made) == {"fuse": 1}
    check_call(made, function)


def test_a_replacement_in_place_copies_what_is_still_read() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        mine = x * 2
        OPS.add_(y, x)
        return torch.relu(mine + x) * mine + torch.relu(x + mine.exp())

    plugin = Plugin(spec(lambda x, y: torch.relu(x + y), fused_returned))
    made = compiled(function, (X.clone(), X - 1), plugin, strict=True)
    assert matches(made) == {"fuse": 2}
    check_call(made, function)


def test_an_operator_may_write_and_return() -> None:
    def summed(x: Tensor, y: Tensor) -> Tensor:
        OPS.add_(x, y)
        return x.sum(-1)

    def function(x: Tensor, y: Tensor) -> Tensor:
        mine = x * 2
        return summed(mine, y) + mine[:, 0]

    plugin = Plugin(spec(summed, lambda x, y: OPS.add_sum_(x, y)))
    made = compiled(function, (X.clone(), X - 1), plugin, strict=True)
    assert matches(made) == {"fuse": 1}
    check_call(made, function)


def test_a_piece_without_writes_has_none_of_them() -> None:
    made = compiled(lambda x, y: x + y, (X, X - 1), Plugin(spec()), strict=True)
    assert matches(made) == {"fuse": 0}


@pytest.mark.parametrize(
    "function", [own, chain, given, given_twice, through_a_view, of_a_view, apart, shared_inputs]
)
def test_a_graph_in_which_nothing_matches_reads_as_before(function: Callable[..., Tensor]) -> None:
    graph = make_fx(function, tracing_mode="fake")(X.clone(), X - 1).graph
    before = str(graph)
    inputs = writes.as_values(graph)
    assert (str(graph) != before) == (function not in (through_a_view, shared_inputs))
    writes.as_writes(graph, inputs)
    graph.lint()
    assert str(graph) == before
