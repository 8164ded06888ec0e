"""Weights: read by qualified name from the live model, checked against what was captured."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from attrs import define, field, frozen
from torch.nn.modules import module as module_hooks

from intarsia import torch_compat
from intarsia.dtypes import dtype_name
from intarsia.errors import ContractError


@frozen
class Recorded:
    """A weight's metadata when it was captured; `stride` is None where the layout has none."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None
    device: torch.device
    layout: torch.layout = torch.strided

    @classmethod
    def of(cls, value: torch.Tensor) -> Recorded:
        """Return the metadata of a tensor, a fake one too."""
        stride = tuple(value.stride()) if value.layout == torch.strided else None
        return cls(value.dtype, tuple(value.shape), stride, value.device, value.layout)


@frozen
class PlanInput:
    """One placeholder of a plan's graph, and where its value comes from: see `capture.graph.GraphInput`.

    Attributes:
        recorded: the metadata of a weight or constant; None for other inputs.
        value: the tensor that a compile was bound to first; None after a load.
        read: evaluates Dynamo's sources as they are now; None where that is not possible.
    """

    kind: Literal["symbol", "argument", "weight", "constant"]
    name: str
    names: tuple[str, ...] = ()
    source: str = ""
    is_parameter: bool = False
    recorded: Recorded | None = None
    value: torch.Tensor | None = field(default=None, eq=False, repr=False)
    read: Callable[[str], Any] | None = field(default=None, eq=False, repr=False)


def live_weights(inputs: Sequence[PlanInput], model: Any, name: str) -> list[Any]:
    """Return the model's tensors as they are now, one per placeholder; None for other inputs.

    Raises:
        ContractError: a weight is gone, is no longer tied, or has another shape, dtype, layout or
            device.
    """
    root = module_of(model)
    return [_live(entry, root, name) for entry in inputs]


def check_weights(inputs: Sequence[PlanInput], weights: Sequence[Any], name: str) -> None:
    """Compare bound tensors with what was captured; a conversion of a module re-types them in place.

    Raises:
        ContractError: a weight has another shape, dtype, layout or device.
    """
    for entry, value in zip(inputs, weights, strict=True):
        if value is not None and entry.recorded is not None:
            _compare(value, entry.recorded, entry.name, name)


def module_of(model: Any) -> Any:
    """Return the module whose weights a model reads by name: itself, or what a method is bound to."""
    owner = getattr(model, "__self__", None)
    return owner if isinstance(owner, torch.nn.Module) else model


def _live(entry: PlanInput, model: Any, name: str) -> Any:
    if entry.kind not in ("weight", "constant"):
        return None
    assert entry.recorded is not None
    if entry.kind == "constant":
        value = _read_again(entry, name)
        _compare(value, entry.recorded, entry.name, name)
        return value
    values = [_named(model, path, name) for path in entry.names]
    if any(value is not values[0] for value in values[1:]):
        raise _error(name, entry.name, "is no longer tied",
                     f"{', '.join(entry.names)} were one tensor and are several")  # fmt: skip
    _compare(values[0], entry.recorded, entry.name, name)
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


def _compare(value: torch.Tensor, recorded: Recorded, path: str, name: str) -> None:
    facts = (
        ("dtype", dtype_name(value.dtype), dtype_name(recorded.dtype)),
        ("shape", tuple(value.shape), recorded.shape),
        ("device", value.device, recorded.device),
    )
    for what, now, then in facts:
        if now != then:
            raise _error(name, path, f"has another {what}", f"it was {then} and is {now}")
    strided = value.layout == torch.strided and recorded.stride is not None
    if strided and value.stride() != recorded.stride:
        why = f"it was {recorded.stride} and is {value.stride()}"
        raise _error(name, path, "has another stride", why)


def _error(name: str, path: str, what: str, why: str) -> ContractError:
    return ContractError(
        f"the weight {path} of {name} {what}", why=why,
        next_step="Compile the model again, or put back a weight of the same kind.", subject=path,
    )  # fmt: skip


def _read_again(entry: PlanInput, name: str) -> Any:
    if entry.read is None:
        return entry.value
    try:
        value = entry.read(entry.source)
    except Exception as error:
        raise _error(name, entry.name, "is gone", f"{type(error).__name__}: {error}") from error
    if not isinstance(value, torch.Tensor):
        raise _error(name, entry.name, "is no tensor", f"it is {value!r}")
    return value


# ------------------------------------------------------------------------------------------ hooks


def owners(inputs: Iterable[PlanInput], model: Any) -> list[torch.nn.Module]:
    """Return the modules that own a captured tensor, or a module that does."""
    root = module_of(model)
    found = list(root.modules()) if isinstance(root, torch.nn.Module) else []
    for entry in inputs:
        if entry.kind == "constant" and entry.read is not None:
            found += [m for m in _on_the_way(entry) if isinstance(m, torch.nn.Module)]
    return list(dict.fromkeys(found))


_TABLE = re.compile(r"\._(?:modules|parameters|buffers)\[")


def _on_the_way(entry: PlanInput) -> Iterable[Any]:
    for found in _TABLE.finditer(entry.source):
        assert entry.read is not None
        try:
            yield entry.read(entry.source[: found.start()])
        except Exception:  # it is gone, or named by a helper of Dynamo's
            continue


@frozen
class Announced:
    """A replacement that torch's hook announces before it is made.

    Attributes:
        before: what was there, as long as the replacement is not made.
    """

    module: torch.nn.Module
    name: str
    before: Any
    value: Any

    def is_made(self) -> bool:
        """Say whether the module has another object than before, or has the announced one."""
        now = _held(self.module, self.name)
        return now is self.value or now is not self.before


def _held(module: torch.nn.Module, name: str) -> Any:
    for table in (module._parameters, module._buffers, module._modules):
        if name in table:
            return table[name]
    return None


def watch(
    modules: Iterable[torch.nn.Module], changed: Callable[[Announced], None]
) -> Callable[[], None]:
    """Call `changed` whenever a parameter, buffer or submodule of some modules is replaced.

    Uses torch's public registration hooks, so calls of the model cost nothing. They run *before* the
    replacement. Returns what ends it.
    """
    watched = weakref.WeakSet(modules)
    if not watched:
        return lambda: None

    def hook(module: torch.nn.Module, name: str, value: Any) -> None:
        if torch.compiler.is_compiling():
            return  # tracing follows hooks too, and must not note what is in here; the real call comes later
        if module in watched:
            if isinstance(value, torch.nn.Module):
                watched.update(value.modules())
            changed(Announced(module, name, _held(module, name), value))

    handles: Sequence[Any] = (
        module_hooks.register_module_parameter_registration_hook(hook),
        module_hooks.register_module_buffer_registration_hook(hook),
        module_hooks.register_module_module_registration_hook(hook),
    )

    return lambda: _take_off(handles)


_left_on: list[Any] = []
"""Hooks that nobody needs any more, and that came to their end while Dynamo was tracing. They do nothing."""


def _take_off(handles: Iterable[Any]) -> None:
    """Remove hooks, but not under a trace, which has noted that they are there and looks for them again.

    A model may be collected at any time, so also while another is traced.
    """
    _left_on.extend(handles)
    with torch_compat.nobody_traces() as free:
        while free and _left_on:
            _left_on.pop().remove()


# ---------------------------------------------------------------------------- what no hook tells


@define
class Conversions:
    """The tests at the start of a forward for `module.half()`, `.double()`, `.to(...)`.

    They replace buffers and re-type parameters in place, and torch calls no hook. A buffer is compared
    with what its module holds; of each module's parameters one stands for all that it owns.

    Attributes:
        tests: the expression of each test, true where something was converted.
        reads: name -> (placeholder index, path) of the table of buffers that a test reads.
        facts: the dtypes that tests name.
    """

    tests: list[str] = field(factory=list)
    reads: dict[str, tuple[int, str]] = field(factory=dict)
    facts: dict[str, Any] = field(factory=dict)

    def values(self, root: Any, weights: Sequence[Any]) -> dict[str, Any]:
        """Return what the tests' names are bound to, for the present weights."""
        found = dict(self.facts)
        for name, (index, path) in self.reads.items():
            key = path.rpartition(".")[2]
            table = _buffers(root, path)
            found[name] = table if table.get(key) is weights[index] else {key: weights[index]}
        return found


def conversions(inputs: Sequence[PlanInput], names: Mapping[int, str]) -> Conversions:
    """Return the tests for a plan's weights; `names` are their variables, by placeholder index."""
    made = Conversions()
    seen: set[tuple[str, Any]] = set()
    for index, entry in enumerate(inputs):
        if index not in names:
            continue
        variable, recorded = names[index], entry.recorded
        assert recorded is not None
        path = entry.names[0] if entry.names else entry.source
        if entry.kind == "weight" and not entry.is_parameter:
            table = f"_buffers_{index}"
            made.reads[table] = (index, path)
            made.tests.append(f"{table}.get({path.rpartition('.')[2]!r}) is not {variable}")
        owner = path.rpartition(".")[0] if entry.names else path.rpartition("[")[0]
        if (owner, recorded.dtype) in seen or not entry.is_parameter:
            continue
        fact = f"_{dtype_name(recorded.dtype)}"
        if not seen:  # a module is moved as a whole
            made.tests.append(f"{variable}.device != _device")
            made.facts["_device"] = recorded.device
        seen.add((owner, recorded.dtype))
        made.facts[fact] = recorded.dtype
        made.tests.append(f"{variable}.dtype is not {fact}")
    return made


def _buffers(root: Any, path: str) -> dict[str, Any]:
    try:
        tables: dict[str, Any] = root.get_submodule(path.rpartition(".")[0])._buffers
    except AttributeError:
        return {}
    return tables
