"""The records of a capture: the graph, its inputs, symbols and conditions, and its contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any, Literal

import torch
from attrs import Factory, field, frozen
from torch import fx

from intarsia.capture.frozen import FrozenValue
from intarsia.capture.structure import Effect, Path, Template


@frozen
class Symbol:
    """A size that may differ between calls.

    Attributes:
        name: the user's name, or torch's ("s77") where the user gave none.
        low, high: what the contract allows; high None means no end.
        hint: its size while tracing.
        dispatch: whether a call's arguments give its value; False for sizes that depend on data.
    """

    name: str
    low: int
    high: int | None
    hint: int
    dispatch: bool = True


@frozen
class Condition:
    """Something that tracing relied on about the symbols, and where in the source."""

    expression: Any
    where: str


@frozen
class GraphInput:
    """One placeholder of a graph, and where its value comes from.

    Attributes:
        kind: "symbol" (the value of symbol `name`), "argument" (a path in `path`), "weight" (a parameter
            or buffer called `name`) or "constant" (another tensor that the model holds).
        names: every name of a tied weight.
        source: Dynamo's source of a constant, from which it is read again on rebind.
        value: the tensor of a weight or constant.
        read: evaluates `source`, or a part of it, as it is now; None where that is not possible.
    """

    kind: Literal["symbol", "argument", "weight", "constant"]
    name: str
    path: Path | None = None
    names: tuple[str, ...] = ()
    source: str = ""
    is_parameter: bool = False
    value: torch.Tensor | None = field(default=None, eq=False, repr=False)
    read: Callable[[str], Any] | None = field(default=None, eq=False, repr=False)


@frozen
class Parameter:
    """A parameter of the model's forward, as the contract sees it.

    Attributes:
        kind: "positional", "keyword", "args" or "kwargs".
        default: the default object; meaningless unless `has_default`.
    """

    name: str
    kind: Literal["positional-only", "positional", "args", "keyword", "kwargs"]
    has_default: bool = False
    default: Any = None


@frozen
class ArgumentTree:
    """What the arguments of a call must look like.

    Attributes:
        parameters: the model's own parameters.
        values: (path, expected) for everything that is no tensor: scalars to be equal, containers to
            have the same length or keys, objects to have the same class.
        tensors: paths of all tensors, used by the graph or not.
        same: groups of paths that were one tensor object.
        subclasses: (path, exact type) of tensors that are neither a plain Tensor nor a Parameter.
        autocast: device type -> the dtype of `torch.autocast` while capturing, None where it was off.
    """

    parameters: tuple[Parameter, ...]
    values: tuple[tuple[Path, Expected], ...]
    tensors: tuple[Path, ...]
    same: tuple[tuple[Path, ...], ...] = ()
    subclasses: tuple[tuple[Path, type], ...] = ()
    autocast: tuple[tuple[str, torch.dtype | None], ...] = ()


@frozen
class Expected:
    """What a value that is no tensor must be.

    Attributes:
        kind: what is compared: the value, its length, keys or class; or whether it has an attribute, at all
            or of its own (not of its class).
        value: what was there at capture; for attributes `(name, whether it has it)`.
    """

    kind: Literal["equal", "length", "keys", "class", "attribute", "own attribute"]
    value: Any


@frozen
class Graph:
    """What a capture returns.

    Attributes:
        module: the normalised graph; it returns a flat tuple.
        inputs: one per placeholder, in order.
        symbols: by name.
        names: sympy symbol -> name, for reading the sizes in node metadata.
        conditions: what must hold of the symbols.
        arguments: the contract on a call's arguments.
        result: how to build the model's result from the graph's outputs.
        effects: writes to argument objects after the graph ran.
        frozen: Python values that tracing baked in.
        surroundings: what of the classes and identities of objects was baked in.
        opaque: sources of values that cannot be compared later.
        codes: the code that tracing went through.
        variables: the environment variables that it asked for.
        scope: what sources are evaluated in.
        seconds: how long the capture took.
        traces: how many frames were traced (regions included).
    """

    module: fx.GraphModule
    inputs: tuple[GraphInput, ...]
    symbols: Mapping[str, Symbol]
    names: Mapping[Any, str]
    conditions: tuple[Condition, ...]
    fake_mode: Any
    arguments: ArgumentTree | None = None
    result: Template | None = None
    effects: tuple[Effect, ...] = ()
    frozen: tuple[FrozenValue, ...] = ()
    surroundings: tuple[FrozenValue, ...] = ()
    opaque: tuple[str, ...] = ()
    codes: tuple[CodeType, ...] = ()
    variables: tuple[str, ...] = ()
    scope: Mapping[str, Any] = field(factory=dict, eq=False, repr=False)
    seconds: float = 0.0
    traces: int = 1
    notes: tuple[str, ...] = Factory(tuple)
