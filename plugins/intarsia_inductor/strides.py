"""Results have the strides that eager gives them, also where one of Inductor's decompositions gives others.

*Seen* with torch 2.11 and 2.13: `torch.cat` of one tensor and an empty one, with which a key-value cache
begins, becomes a clone that keeps the tensor's order of dimensions; `torch.cat` returns a contiguous tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx

from intarsia import torch_compat
from intarsia.interfaces import CompileRequest, IntInfo, TensorInfo

__all__ = ["Strides", "keep_strides", "strides_of"]

Strides = Sequence[tuple[int, ...] | None]
"""The strides of each result at the example's sizes; None where it is no strided tensor of its own."""


def strides_of(request: CompileRequest) -> Strides:
    """Return the strides that a piece's results have to have."""
    sizes = _example_sizes(request)
    return [_at(value, sizes) for value in request.signature.outputs]


def _at(value: Any, sizes: dict[str, int]) -> tuple[int, ...] | None:
    if not isinstance(value, TensorInfo) or value.alias_class is not None:
        return None
    strides = [
        torch_compat.substituted(s, sizes) if isinstance(s, str) else s for s in value.stride
    ]
    known = tuple(s for s in strides if isinstance(s, int))
    return known if len(known) == len(strides) else None


def _example_sizes(request: CompileRequest) -> dict[str, int]:
    found: dict[str, int] = {}
    for info, fake in zip(request.signature.inputs, request.fake_inputs, strict=True):
        pairs: Iterable[tuple[int | str, Any]] = (
            [(info.expression, fake)] if isinstance(info, IntInfo)
            else zip(info.shape, fake.shape, strict=True)
        )  # fmt: skip
        for name, size in pairs:
            if isinstance(name, str):
                found[name] = torch_compat.size_in_example(size)
    return found


def keep_strides(graph: fx.Graph, wanted: Strides) -> None:
    """Copy the results of an ATen graph that have other strides than they should have."""
    output = graph.output_node()
    results: Any = output.args[0]
    if len(results) != len(wanted):
        return  # AOTAutograd's wrapper is around it, which makes the results
    with graph.inserting_before(output):
        made = [
            node if strides is None or not isinstance(node, fx.Node) else _restrided(node, strides)
            for node, strides in zip(results, wanted, strict=True)
        ]
    if any(new is not old for new, old in zip(made, results, strict=True)):
        output.args = (type(results)(made),)


def _restrided(node: fx.Node, wanted: tuple[int, ...]) -> fx.Node:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or _agrees(value, wanted):
        return node
    order = sorted(range(value.dim()), key=lambda d: -wanted[d])
    back = [order.index(d) for d in range(value.dim())]
    aten = torch.ops.aten
    steps: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
        (aten.permute.default, (order,), {}),
        (aten.clone.default, (), {"memory_format": torch.contiguous_format}),
        (aten.permute.default, (back,), {}),
    ]
    values: list[torch.Tensor] = []
    with value.fake_mode:  # type: ignore[attr-defined]
        for target, args, kwargs in steps:
            values.append(target(values[-1] if values else value, *args, **kwargs))
    if not _agrees(values[-1], wanted):
        return node  # it has gaps, which no copy makes
    for (target, args, kwargs), fake in zip(steps, values, strict=True):
        node = node.graph.call_function(target, (node, *args), kwargs)
        node.meta["val"] = fake
    return node


def _agrees(value: torch.Tensor, wanted: tuple[int, ...]) -> bool:
    sizes = [torch_compat.size_in_example(s) for s in value.shape]
    if 0 in sizes or len(sizes) != len(wanted):
        return True
    strides = [torch_compat.size_in_example(s) for s in value.stride()]
    return all(n == 1 or a == b for n, a, b in zip(sizes, strides, wanted, strict=True))
