"""Frozen Python values: what tracing read of the model and its surroundings, and baked into the graph.

Dynamo guards every value that it reads; a capture drops the guards, so `model.scale = 2.0` afterwards
would be ignored in silence. Each readable value is kept as source -> value instead, and compared when a
bundle is loaded, and on every call with `check = "values"`.
"""

from __future__ import annotations

import enum
import re
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeAlias

import torch
from attrs import frozen

from intarsia.capture.scope import compiled_source, scope_of
from intarsia.torch_compat import FrameCapture

_VALUE_GUARDS = {
    "CONSTANT_MATCH", "EQUALS_MATCH", "BOOL_MATCH", "NONE_MATCH", "SEQUENCE_LENGTH", "DICT_LENGTH",
    "TYPE_MATCH", "DICT_KEYS_MATCH", "MODULE_MATCH", "NN_MODULE", "HASATTR", "LIST_LENGTH",
    "TUPLE_ITERATOR_LEN", "MAPPING_KEYS_CHECK",
}  # fmt: skip
_FUNCTION_GUARDS = ("ID_MATCH", "CLOSURE_MATCH", "FUNCTION_MATCH", "BUILTIN_MATCH", "CLASS_MATCH")
_KEYS = {"DICT_KEYS_MATCH", "MAPPING_KEYS_CHECK"}
_LENGTHS = {"SEQUENCE_LENGTH", "DICT_LENGTH", "LIST_LENGTH"}
_CLASSES = {"TYPE_MATCH", "MODULE_MATCH", "NN_MODULE"}
# Whoever watches the replacement of weights registers these, we among them; a forward does not read them.
_UNREAD = re.compile(r"\b_global_(module|parameter|buffer)_registration_hooks\b")

FrozenKind: TypeAlias = Literal[
    "value",
    "length",
    "keys",
    "class",
    "function",
    "training",
    "methods",
    "ties",
    "globals",
    "tensor",
    "process group",
]
"""What of a source is compared: the value, its length, its keys in order, the name of its class, its
identity as a function or class, the code of a class, which of several objects are one, which of some
names a module has, the class of a tensor, the name and size of a process group; "training" is a
module's flag."""
_PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device,
          torch.layout, torch.memory_format, enum.Enum)  # fmt: skip


@frozen
class FrozenValue:
    """One value that tracing read.

    Attributes:
        source: where it came from, as Python ("L['self'].scale").
        label: the same for a reader ("self.scale").
        value: a plain value, a length, the name of a class, or the name of a function.
        read: gets it again from the live objects.
        kind: what of the source it is.
    """

    source: str
    label: str
    value: Any
    read: Callable[[], Any]
    kind: FrozenKind = "value"

    def changed(self) -> tuple[Any, Any] | None:
        """Return (then, now) if the value is no longer what tracing saw, else None."""
        try:
            now = self.read()
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            return self.value, f"<gone: {error}>"
        same = type(now) is type(self.value) and (
            now == self.value or (now != now and self.value != self.value)
        )
        return None if same else (self.value, now)


def frozen_values(capture: FrameCapture) -> tuple[list[FrozenValue], list[str]]:
    """Return what tracing read outside the call's arguments, and the sources that cannot be compared."""
    scope = frame_scope(capture)
    root_name = capture.root_name
    found: dict[str, FrozenValue] = {}
    opaque: list[str] = []
    for source, kind in sorted(set(capture.guards)):
        if not source or not outside_arguments(source, capture) or _UNREAD.search(source):
            continue
        if kind not in _VALUE_GUARDS:
            if kind in _FUNCTION_GUARDS and source not in found:
                same = _freeze_function(source, scope, root_name)
                if same is None:  # members of an enum are compared by identity, too
                    same = _freeze(source, "EQUALS_MATCH", scope, root_name)
                if same is None:
                    same = _freeze_group(source, scope, root_name)
                if same is not None:
                    found[source] = same
                else:
                    opaque.append(label_of(source, root_name))
            continue
        entry = _freeze(source, kind, scope, root_name)
        if entry is not None:
            found[f"{kind if kind in _LENGTHS | _KEYS else ''}{source}"] = entry
    for name, module in _modules(capture.root):
        found[f"training:{name}"] = _training(name, module)
    return list(found.values()), sorted(set(opaque))


def is_value_guard(kind: str) -> bool:
    """Say whether a guard of a kind is about a value that can be read again and compared."""
    return kind in _VALUE_GUARDS


_UNREADABLE = object()


def read_source(capture: FrameCapture, source: str, kind: str) -> Any:
    """Return the value of a source as a guard of some kind sees it; equal marks where it has none."""
    code = compiled_source(source)
    if code is None:
        return _UNREADABLE
    try:
        value = _reader(code, kind, frame_scope(capture))()
    except Exception:  # Dynamo's sources may name helpers of its own
        return _UNREADABLE
    if kind == "HASATTR":  # about the object that has the attribute, not about its identity
        return type_name(value)
    return value if _is_plain(value) or isinstance(value, torch.Tensor) else _identity(value)


def _identity(value: Any) -> Any:
    """Return what is the same for two objects that behave the same as far as an identity guard goes."""
    if isinstance(value, torch.nn.Module | dict | list | tuple | set | types.MappingProxyType):
        return type_name(value)  # what is inside has guards of its own
    if isinstance(value, types.MethodType):
        return id(value.__func__), _identity(value.__self__)
    return id(value)


def tensor_source(capture: FrameCapture, source: str, value: torch.Tensor) -> str | None:
    """Return a source that leads to a tensor: Dynamo's, or that of a module's attribute; None: neither."""
    scope = frame_scope(capture)
    try:
        if eval(source, scope) is value:
            return source
    except Exception:  # Dynamo's sources may name helpers of its own
        pass
    for path, module in _modules(capture.root):
        for key, held in vars(module).items():
            if held is value:
                return f"L[{capture.root_name!r}].get_submodule({path!r}).{key}"
    return None


def reader(capture: FrameCapture) -> Callable[[str], Any]:
    """Return what evaluates the sources of a trace as they are now."""
    scope = frame_scope(capture)
    return lambda text: eval(text, scope)


def _modules(root: Any) -> list[tuple[str, torch.nn.Module]]:
    return list(root.named_modules()) if isinstance(root, torch.nn.Module) else []


def _training(name: str, module: torch.nn.Module) -> FrozenValue:
    # Dropout and batch norm read `training` inside C++ or through the module's guard as a whole, so it
    # is kept for every module, whether a guard names it or not.
    label = f"self.{name}.training" if name else "self.training"
    return FrozenValue(
        f"training:{name}", label, module.training, lambda: module.training, "training"
    )


def frame_scope(capture: FrameCapture) -> dict[str, Any]:
    """Return what the sources of a trace are evaluated in."""
    return scope_of(capture.function, capture.root, capture.f_globals)


def source_values(capture: FrameCapture) -> Iterator[tuple[str, Any]]:
    """Yield the source and live value of everything that tracing read; closure cells as such, too."""
    scope = frame_scope(capture)
    sources = {source for source, _ in capture.guards if source}
    cells = {s.removesuffix(".cell_contents") for s in sources if s.endswith(".cell_contents")}
    for source in sorted(sources | cells):
        code = compiled_source(source)
        try:
            if code is not None:
                yield source, eval(code, scope)
        except Exception:  # Dynamo's sources may name helpers of its own
            continue
    for name, cell in zip(
        capture.function.__code__.co_freevars, capture.function.__closure__ or (), strict=True
    ):
        yield f"L[{name!r}]", cell


def outside_arguments(source: str, capture: FrameCapture) -> bool:
    """Say whether a source is no argument of the call, nor part of one."""
    code = capture.function.__code__
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & 0x04) + bool(code.co_flags & 0x08)
    parameters = list(code.co_varnames[:count])
    if capture.root is not None:
        parameters = parameters[1:]
    return not any(f"L[{name!r}]" in source for name in parameters)


def _freeze(source: str, kind: str, scope: dict[str, Any], root_name: str) -> FrozenValue | None:
    code = compiled_source(source)
    if code is None:
        return None
    get = _reader(code, kind, scope)
    try:
        value = get()
    except (
        Exception
    ):  # Dynamo's sources may name helpers of its own; such a value has no plain form
        return None
    if not _is_plain(value):
        return None
    return FrozenValue(source, label_of(source, root_name), value, get, _kind_of(kind))


def _kind_of(guard: str) -> FrozenKind:
    if guard in _LENGTHS:
        return "length"
    if guard in _KEYS:
        return "keys"
    return "class" if guard in _CLASSES else "value"


def _freeze_function(source: str, scope: dict[str, Any], root_name: str) -> FrozenValue | None:
    """Freeze a function or class, which is compared by identity; None for any other value."""
    code = compiled_source(source)
    if code is None:
        return None
    try:
        value, again = eval(code, scope), eval(code, scope)
    except Exception:  # Dynamo's sources may name helpers of its own
        return None
    wanted = _identity(value)
    if not callable(value) or isinstance(value, torch.nn.Module) or _identity(again) != wanted:
        return None
    name, kept = _function_name(value), value  # kept alive: its id must not be given to another one

    def read() -> str:
        now = eval(code, scope)
        same = now is kept or _identity(now) == wanted
        return name if same else f"another one, {_function_name(now)}"

    return FrozenValue(source, label_of(source, root_name), name, read, "function")


def _freeze_group(source: str, scope: dict[str, Any], root_name: str) -> FrozenValue | None:
    """Freeze a process group of `torch.distributed`, of which graphs hold the name; None for all else."""
    code = compiled_source(source)
    if code is None:
        return None
    try:
        value = eval(code, scope)
    except Exception:  # Dynamo's sources may name helpers of its own
        return None
    if not is_process_group(value):
        return None
    return FrozenValue(
        source, label_of(source, root_name), process_group_text(value),
        lambda: process_group_text(eval(code, scope)), "process group",
    )  # fmt: skip


def process_group_text(value: Any) -> str:
    """Return what a graph has of a process group: its name and how many ranks it has."""
    if not is_process_group(value):
        return type_name(value)
    return f"{value.group_name} of {value.size()}"


def is_process_group(value: Any) -> bool:
    """Say whether a value is a process group of `torch.distributed`."""
    kind = getattr(torch.distributed, "ProcessGroup", None)  # a torch without it has no groups
    return kind is not None and isinstance(value, kind)


def _function_name(value: Any) -> str:
    return str(getattr(value, "__qualname__", None) or type_name(value))


def _reader(code: Any, kind: str, scope: dict[str, Any]) -> Callable[[], Any]:
    if kind in _LENGTHS:
        return lambda: len(eval(code, scope))
    if kind in _KEYS:
        return lambda: keys_of(eval(code, scope))
    if kind in _CLASSES:
        return lambda: type_name(eval(code, scope))
    return lambda: eval(code, scope)


def keys_of(value: Any) -> Any:
    """Return the keys of a mapping in order, or how many there are where they are no plain values."""
    keys = tuple(value)
    return keys if _is_plain(keys) else len(keys)


def type_name(value: Any) -> str:
    """Return "module.Class" of a value's class."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list | frozenset | set):
        return all(_is_plain(part) for part in value)
    return isinstance(value, _PLAIN)


def label_of(source: str, root_name: str = "self") -> str:
    """Return a source as a reader would write it: `self.layers.0.scale`, `module.NAME`.

    `root_name` is what the model's forward calls its first parameter.
    """
    text = source.replace(f"L[{root_name!r}]", "self")
    for before, after in (("._modules['", "."), ("._parameters['", "."), ("._buffers['", ".")):
        text = text.replace(before, after)
    text = text.replace("']", "").replace("G['", "global ").replace("L['", "")
    return text.replace("__import_", "").replace("_dot_", ".")


def changes(values: Iterable[FrozenValue]) -> list[str]:
    """Return one line for each frozen value that is no longer what tracing saw."""
    lines = []
    for entry in values:
        found = entry.changed()
        if found is not None:
            lines.append(change_line(entry.label, *found))
    return lines


def change_line(label: str, then: Any, now: Any) -> str:
    """Return the line for a value that has changed."""
    return f"{label} was {then!r} at capture and is {now!r}"
