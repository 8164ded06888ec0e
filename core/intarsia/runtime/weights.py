"""Weights: read by qualified name from the live model, checked against what was captured."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch.nn.modules import module as module_hooks

from intarsia.capture import nodes
from intarsia.capture.graph import Graph, GraphInput
from intarsia.compiling.signature import dtype_name
from intarsia.errors import ContractError


def live_weights(graph: Graph, model: Any, name: str) -> list[Any]:
    """Return the model's tensors as they are now, one per placeholder; None for other inputs.

    Raises:
        ContractError: a weight is gone, is no longer tied, or has another shape, dtype, layout or
            device.
    """
    holes = [n for n in graph.module.graph.nodes if n.op == "placeholder"]
    return [
        _live(entry, hole, model, name) for entry, hole in zip(graph.inputs, holes, strict=True)
    ]


def _live(entry: GraphInput, hole: fx.Node, model: Any, name: str) -> Any:
    if entry.kind == "constant":
        return entry.value
    if entry.kind != "weight":
        return None
    values = [_named(model, path, name) for path in entry.names]
    if any(value is not values[0] for value in values[1:]):
        raise _error(name, entry.name, "is no longer tied",
                     f"{', '.join(entry.names)} were one tensor and are several")  # fmt: skip
    _compare(values[0], nodes.value_of(hole), entry.name, name)
    return values[0]


def _named(model: Any, path: str, name: str) -> torch.Tensor:
    owner, _, key = path.rpartition(".")
    try:
        value = getattr(model.get_submodule(owner), key)
    except AttributeError as error:
        raise _error(name, path, "is gone", str(error)) from error
    if not isinstance(value, torch.Tensor):
        raise _error(name, path, "is no tensor", f"it is {value!r}")
    return value


def _compare(value: torch.Tensor, recorded: Any, path: str, name: str) -> None:
    facts = (
        ("dtype", dtype_name(value.dtype), dtype_name(recorded.dtype)),
        ("shape", tuple(value.shape), tuple(recorded.shape)),
        ("device", value.device, recorded.device),
    )
    for what, now, then in facts:
        if now != then:
            raise _error(name, path, f"has another {what}", f"it was {then} and is {now}")
    strided = value.layout == torch.strided and recorded.layout == torch.strided
    if strided and value.stride() != tuple(recorded.stride()):
        then = tuple(recorded.stride())
        raise _error(name, path, "has another stride", f"it was {then} and is {value.stride()}")


def _error(name: str, path: str, what: str, why: str) -> ContractError:
    return ContractError(
        f"the weight {path} of {name} {what}", why=why,
        next_step="Compile the model again, or put back a weight of the same kind.", subject=path,
    )  # fmt: skip


def watch(model: Any, changed: Callable[[], None]) -> Callable[[], None]:
    """Call `changed` whenever a parameter, buffer or submodule of a model is replaced.

    Uses torch's public registration hooks, so calls of the model cost nothing. Returns what ends it.
    """
    if not isinstance(model, torch.nn.Module):
        return lambda: None
    watched = weakref.WeakSet(model.modules())

    def hook(module: torch.nn.Module, name: str, value: Any) -> None:
        if module in watched:
            changed()

    handles: Sequence[Any] = (
        module_hooks.register_module_parameter_registration_hook(hook),
        module_hooks.register_module_buffer_registration_hook(hook),
        module_hooks.register_module_module_registration_hook(hook),
    )

    def stop() -> None:
        for handle in handles:
            handle.remove()

    return stop
