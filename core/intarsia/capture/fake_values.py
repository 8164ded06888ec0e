"""What the nodes of a graph are on fake inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from intarsia import torch_compat

__all__ = ["NodeFailed", "Values", "fill_in", "values_in"]

Values = Mapping[fx.Node, Any]
"""Node -> its fake value."""


class NodeFailed(Exception):
    """A node raised on fake values; the text has its name and the error."""


def values_in(graph: fx.Graph, fake_inputs: Sequence[Any]) -> Values:
    """Return the fake value that every node of a graph has on some inputs.

    Raises:
        NodeFailed: a node raises on them.
    """
    holes = [n for n in graph.nodes if n.op == "placeholder"]
    mode = next((v.fake_mode for v in fake_inputs if hasattr(v, "fake_mode")), None)
    values: dict[fx.Node, Any] = {}
    with (
        torch_compat.size_oblivious(), mode or contextlib.nullcontext(), torch.no_grad(),
        torch_compat.python_dispatcher(),
    ):  # fmt: skip
        for hole, fake in zip(holes, fake_inputs, strict=True):
            # Another tensor over the same memory: operators may change what an input looks like.
            values[hole] = fake.detach() if isinstance(fake, torch.Tensor) else fake
        for node in graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            try:
                values[node] = _value(node, values, graph.owning_module, mode)
            except Exception as error:
                text = str(error).splitlines()[0] if str(error) else ""
                raise NodeFailed(f"{node.name}: {type(error).__name__}: {text}") from error
    return values


def fill_in(graph: fx.Graph, fake_inputs: Sequence[Any]) -> None:
    """Give the nodes of a graph the fake values that they have on some inputs.

    What a pass put there has none, or those of a trace of its own, whose symbols mean nothing here.
    """
    for node, value in values_in(graph, fake_inputs).items():
        if node.op != "placeholder":
            node.meta["val"] = value


def _value(node: fx.Node, values: Values, owner: Any, mode: Any) -> Any:
    if node.op == "get_attr":
        value: Any = owner
        for part in str(node.target).split("."):
            value = getattr(value, part)
        is_real = isinstance(value, torch.Tensor) and not torch_compat.is_fake(value)
        return mode.from_tensor(value) if is_real and mode is not None else value
    args: Any = fx.map_arg(node.args, values.__getitem__)
    kwargs: Any = fx.map_arg(node.kwargs, values.__getitem__)
    target: Any = node.target
    if node.op == "call_method":
        return getattr(args[0], target)(*args[1:], **kwargs)
    return target(*args, **kwargs)
