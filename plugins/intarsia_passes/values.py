"""What is known of the values of an ATen graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from intarsia import torch_compat
from intarsia.capture import nodes


def tensor_of(value: Any) -> torch.Tensor | None:
    """Return the fake tensor of a node, or None."""
    found = nodes.value_of(value) if isinstance(value, fx.Node) else None
    return found if isinstance(found, torch.Tensor) else None


def sizes(values: Any) -> tuple[Any, ...]:
    """Return sizes or strides as what can be compared without asking what a symbol is."""
    return tuple(torch_compat.expression_of(value) for value in values)


def looks_the_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Say whether two tensors have the same dtype, device, shape, stride and offset, at all sizes."""
    return (
        one.dtype == other.dtype
        and one.device == other.device
        and one.layout == other.layout == torch.strided
        and sizes(one.shape) == sizes(other.shape)
        and sizes(one.stride()) == sizes(other.stride())
        and sizes([one.storage_offset()]) == sizes([other.storage_offset()])
    )


def is_result(node: fx.Node) -> bool:
    """Say whether a graph returns a node's value."""
    return any(user.op == "output" for user in node.users)


def writes_anything(graph: fx.Graph) -> bool:
    """Say whether some node of a graph writes to a tensor."""
    return any(nodes.mutated_arguments(node) for node in graph.nodes)
