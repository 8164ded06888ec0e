"""Makes one split of the slices that cover a tensor, and one slice of equal ones."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import fx

from intarsia_passes.values import tensor_of, writes_anything

aten = torch.ops.aten
_END = 1 << 62
"""Torch writes "to the end" as the largest int64."""


@frozen
class _Slice:
    """A slice with fixed ends along one dimension of fixed size."""

    node: fx.Node
    source: fx.Node
    dim: int
    start: int
    end: int


class CoalesceSlices:
    """Turns slices of one tensor that lie side by side and cover it into one `split_with_sizes`.

    The parts are views either way. Graphs that write to something are left alone.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options

    def __call__(self, graph: fx.Graph) -> int:
        """Return how many slices were replaced."""
        if writes_anything(graph):
            return 0
        groups: dict[tuple[fx.Node, int], list[_Slice]] = {}
        for node in graph.nodes:
            found = _slice_of(node)
            if found is not None:
                groups.setdefault((found.source, found.dim), []).append(found)
        return sum(_coalesced(graph, group) for group in groups.values())

    def uuid(self) -> str:
        """Return the identity, which the version of the pass and its sources add to."""
        return "coalesce-slices"


def _slice_of(node: fx.Node) -> _Slice | None:
    if node.op != "call_function" or node.target is not aten.slice.Tensor:
        return None
    given = (
        dict(zip(("self", "dim", "start", "end", "step"), node.args, strict=False)) | node.kwargs
    )
    source, value = given["self"], tensor_of(given["self"])
    if value is None or given.get("step", 1) != 1:
        return None
    dim: Any = given.get("dim", 0)
    size = value.shape[dim]
    start, end = given.get("start"), given.get("end")
    start, end = 0 if start is None else start, _END if end is None else end
    if not all(isinstance(number, int) for number in (dim, size, start, end)):
        return None
    first, last = (_inside(number, size) for number in (start, end))
    assert isinstance(source, fx.Node)
    return _Slice(node, source, dim % value.dim(), first, max(first, last))


def _inside(number: Any, size: int) -> int:
    return int(max(0, min(size, number + size if number < 0 else number)))


def _coalesced(graph: fx.Graph, group: Sequence[_Slice]) -> int:
    value = tensor_of(group[0].source)
    assert value is not None
    parts = sorted({(one.start, one.end) for one in group})
    ends = [0, *(end for _, end in parts)]
    covers = [start for start, _ in parts] == ends[:-1] and ends[-1] == value.shape[group[0].dim]
    if not covers or len(parts) < 2:
        return 0
    first = group[0].node
    with graph.inserting_before(first):
        lengths = [end - start for start, end in parts]
        split = graph.call_function(
            aten.split_with_sizes.default, (group[0].source, lengths, group[0].dim)
        )
        made = {part: graph.call_function(operator.getitem, (split, number))
                for number, part in enumerate(parts)}  # fmt: skip
    for one in group:
        one.node.replace_all_uses_with(made[one.start, one.end])
        graph.erase_node(one.node)
    return len(group)
