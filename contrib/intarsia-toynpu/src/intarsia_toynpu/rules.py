"""Where a graph is cut for the device."""

from __future__ import annotations

import torch
from torch import fx

_ATTENTION = (
    torch.nn.functional.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention.default,
)


def is_attention(node: fx.Node) -> bool:
    """Say whether a node is attention: torch's, or an operation of that name."""
    if node.op != "call_function":
        return False
    if node.target in _ATTENTION:
        return True
    name = getattr(node.target, "_qualified_op_name", "")
    return name.rpartition("::")[2] in ("attention", "paged_attention")
