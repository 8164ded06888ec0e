"""The device's own rewriting: silu(gate) * up becomes one instruction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx


class FuseSwiglu:
    """Replaces `mul(silu(gate), up)` by `toynpu::swiglu(gate, up)`, where nothing else reads the silu."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options

    def __call__(self, graph: fx.Graph) -> int:
        """Rewrite a graph; returns how often it matched."""
        matches = 0
        for node in list(graph.nodes):
            silu = _silu_of(node)
            if silu is None:
                continue
            (up,) = (value for value in node.args if value is not silu)
            with graph.inserting_before(node):
                fused = graph.call_function(torch.ops.toynpu.swiglu.default, (silu.args[0], up))
            fused.meta.update(node.meta)
            node.replace_all_uses_with(fused)
            graph.erase_node(node)
            graph.erase_node(silu)
            matches += 1
        return matches

    def uuid(self) -> str:
        """Return an identity: the rewriting has no options."""
        return "toynpu-swiglu 1"


def _silu_of(node: fx.Node) -> fx.Node | None:
    """Return the silu that a product of two tensors of one kind reads alone, or None."""
    if node.target is not torch.ops.aten.mul.Tensor:
        return None
    factors = [value for value in node.args if isinstance(value, fx.Node)]
    kinds = {getattr(factor.meta.get("val"), "dtype", None) for factor in factors}
    if len(set(factors)) != 2 or len(kinds) != 1:
        return None
    silus = (f for f in factors if f.target is torch.ops.aten.silu.default and len(f.users) == 1)
    return next(silus, None)
