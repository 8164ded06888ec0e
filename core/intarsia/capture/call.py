"""One call of a model: its parameters, its values, and the paths to everything in them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from attrs import frozen

from intarsia.capture.graph import Parameter
from intarsia.capture.structure import Path, walk
from intarsia.errors import CaptureError

_KINDS: Mapping[Any, Any] = {
    inspect.Parameter.POSITIONAL_ONLY: "positional-only",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "positional",
    inspect.Parameter.VAR_POSITIONAL: "args",
    inspect.Parameter.KEYWORD_ONLY: "keyword",
    inspect.Parameter.VAR_KEYWORD: "kwargs",
}


@frozen
class Call:
    """One call of a model: its parameters and the value of each."""

    parameters: tuple[Parameter, ...]
    values: Mapping[str, Any]

    def complete(self) -> dict[str, Any]:
        """Return the value of every parameter, what the call leaves out included."""
        empty: Mapping[str, Any] = {"args": (), "kwargs": {}}
        left_out = {p.name: empty.get(p.kind, p.default) for p in self.parameters}
        return {**left_out, **self.values}

    def split(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the call's (args, kwargs)."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.name not in self.values:
                continue
            value = self.values[parameter.name]
            if parameter.kind == "args":
                args.extend(value)
            elif parameter.kind == "kwargs":
                kwargs.update(value)
            elif parameter.kind == "positional-only":
                args.append(value)
            else:
                kwargs[parameter.name] = value
        if any(p.kind == "args" and self.values.get(p.name) for p in self.parameters):
            # With *args in use, what stands before them can only be passed by position.
            before = [p.name for p in self.parameters if p.kind == "positional"]
            args = [kwargs.pop(n) for n in before if n in kwargs] + args
        return tuple(args), kwargs


def bind_call(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
    """Match a call's arguments with the model's parameters.

    Raises:
        CaptureError: they do not fit the model's signature.
    """
    function = model.forward if isinstance(model, torch.nn.Module) else model
    try:
        signature = inspect.signature(function)
        bound = signature.bind(*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise CaptureError(
            f"the example call does not fit {describe(model)}",
            why=str(error),
            next_step="Pass the arguments as you would call the model.",
        ) from error
    parameters = tuple(
        Parameter(p.name, _KINDS[p.kind], p.default is not p.empty, p.default)
        for p in signature.parameters.values()
    )
    return Call(parameters, dict(bound.arguments))


def describe(model: Any) -> str:
    """Return a short name of a model for messages."""
    if isinstance(model, torch.nn.Module):
        return type(model).__qualname__
    return str(getattr(model, "__qualname__", type(model).__qualname__))


def argument_values(call: Call) -> Iterator[tuple[Path, Any]]:
    """Yield every value in a call's arguments with its path."""
    for name, value in call.values.items():
        yield from walk(value, Path(name))
