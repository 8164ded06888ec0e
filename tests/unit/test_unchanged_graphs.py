"""A pass that leaves a graph as it was is not checked by running it, so every change has to be seen."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx

from intarsia.passes.checks import _is_same, _snapshot


def function(x: Tensor, y: Tensor) -> Tensor:
    """Call with slices, lists, numbers, dtypes and keywords."""
    z = torch.cat([x, y], dim=0)[1:4, ..., None]
    return torch.clamp(z.to(torch.float64).view(3, -1, 1), min=0.5) + x[0, 0]


def made() -> fx.Graph:
    return fx.symbolic_trace(function).graph


def node_of(graph: fx.Graph, target: object) -> fx.Node:
    return next(node for node in graph.nodes if node.target == target)


def slice_end(graph: fx.Graph) -> None:
    node = node_of(graph, operator.getitem)
    node.args = (node.args[0], (slice(1, 5), ..., None))


def list_order(graph: fx.Graph) -> None:
    node = node_of(graph, torch.cat)
    parts: list[fx.Node] = list(node.args[0])  # type: ignore[arg-type]
    node.args = (parts[::-1],)


def keyword(graph: fx.Graph) -> None:
    node_of(graph, torch.clamp).kwargs = {"min": 0.25}


def other_keyword(graph: fx.Graph) -> None:
    node_of(graph, torch.clamp).kwargs = {"max": 0.5}


def kind_of_number(graph: fx.Graph) -> None:
    node = node_of(graph, "view")
    node.args = (node.args[0], 3, -1, True)


def dtype(graph: fx.Graph) -> None:
    node = node_of(graph, "to")
    node.args = (node.args[0], torch.float16)


def target(graph: fx.Graph) -> None:
    node_of(graph, operator.add).target = operator.sub


def operand(graph: fx.Graph) -> None:
    node = node_of(graph, operator.add)
    node.args = (node.args[0], next(iter(graph.nodes)))


def result(graph: fx.Graph) -> None:
    graph.output_node().args = (node_of(graph, torch.clamp),)


def more(graph: fx.Graph) -> None:
    with graph.inserting_before(graph.output_node()):
        graph.call_function(torch.relu, (node_of(graph, torch.clamp),))


@pytest.mark.parametrize(
    "change",
    [
        slice_end,
        list_order,
        keyword,
        other_keyword,
        kind_of_number,
        dtype,
        target,
        operand,
        result,
        more,
    ],
)
def test_a_change_is_seen(change: Callable[[fx.Graph], None]) -> None:
    graph = made()
    before = _snapshot(graph)
    assert _is_same(before, graph)
    change(graph)
    assert not _is_same(before, graph)
