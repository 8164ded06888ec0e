"""Takes out operators that return what they are given: reshapes to the same shape, slices of everything,
casts to the same dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from intarsia_passes.values import is_result, looks_the_same, tensor_of, writes_anything

aten = torch.ops.aten

_VIEWS = frozenset((
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.expand.default,
    aten.permute.default, aten.transpose.int, aten.slice.Tensor, aten.alias.default, aten.squeeze.dim,
    aten.as_strided.default, aten.detach.default,
))  # fmt: skip
_COPIES = frozenset((aten._to_copy.default, aten.clone.default, aten.lift_fresh_copy.default))


class RemoveNoops:
    """Replaces such an operator by its input.

    A copy goes only where nobody writes to anything; and nothing goes that would make a result of the piece
    one of its inputs, or two of its results one tensor.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options

    def __call__(self, graph: fx.Graph) -> int:
        """Return how many operators were taken out."""
        removable = _VIEWS if writes_anything(graph) else _VIEWS | _COPIES
        found = [n for n in graph.nodes if n.op == "call_function" and n.target in removable]
        return sum(_removed(graph, node) for node in found)

    def uuid(self) -> str:
        """Return the identity, which the version of the pass and its sources add to."""
        return "remove-noops"


def _removed(graph: fx.Graph, node: fx.Node) -> bool:
    source = node.args[0]
    before, after = tensor_of(source), tensor_of(node)
    if before is None or after is None or not looks_the_same(before, after):
        return False
    assert isinstance(source, fx.Node)
    if is_result(node) and (source.op in ("placeholder", "get_attr") or is_result(source)):
        return False
    node.replace_all_uses_with(source)
    graph.erase_node(node)
    return True
