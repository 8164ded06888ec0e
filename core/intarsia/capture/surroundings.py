"""What no guard of Dynamo's tells of the objects that tracing read: their classes' code, and which are one.

Dynamo guards an object's class by its identity, which holds for as long as the process does: a method that
is put into a class before the next process traces is seen by nothing else. Nor does it guard that two
objects which it met in two places are two.
"""

from __future__ import annotations

import builtins
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType
from typing import Any

import torch

from intarsia.capture.frozen import (
    FrozenKind,
    FrozenValue,
    frame_scope,
    label_of,
    outside_arguments,
)
from intarsia.capture.scope import aliases_in, compiled_source, is_elsewhere
from intarsia.capture.structure import is_scalar
from intarsia.capture.subclasses import tensor_kind
from intarsia.classes import class_digest, is_versioned
from intarsia.digests import module_file
from intarsia.split.encode import resolve_name
from intarsia.torch_compat import FrameCapture

_SHOWN = 3


def surroundings(capture: FrameCapture, arguments: Iterable[Any]) -> list[FrozenValue]:
    """Return what another process must have alike before it may do without tracing.

    Args:
        capture: what was traced.
        arguments: everything in the call's arguments, whose classes count as well.
    """
    read = _readable(capture)
    modules = _modules_of(capture.codes)
    read.update(_met_again(modules, read))
    return [
        *_classes(capture, read, arguments), *_ties(capture, read), *_shadowed(capture, modules),
        *_tensors(capture, read),
    ]  # fmt: skip


def ties_of(values: Iterable[Any]) -> tuple[tuple[int, ...], ...]:
    """Return which of some values are one object, by position."""
    found: dict[int, list[int]] = {}
    for position, value in enumerate(values):
        found.setdefault(id(value), []).append(position)
    return tuple(tuple(same) for same in found.values() if len(same) > 1)


def globals_of(asked: tuple[tuple[str, ...], types.ModuleType]) -> tuple[str, ...]:
    """Return which of some names a module has."""
    names, module = asked
    return tuple(name for name in names if name in vars(module))


def _readable(capture: FrameCapture) -> dict[str, Any]:
    """Return the sources outside the arguments that another process can read -> their values."""
    scope = frame_scope(capture)
    found = {}
    for source in sorted({source for source, _ in capture.guards if source}):
        code = compiled_source(source)
        if code is None or not is_elsewhere(source) or not outside_arguments(source, capture):
            continue
        try:
            aliases_in([source], capture.f_globals)
            found[source] = eval(code, scope)
        except Exception:  # Dynamo's sources may name helpers of its own
            continue
    return found


# -------------------------------------------------------------------------------------------- globals


def _modules_of(codes: Iterable[CodeType]) -> dict[str, set[str]]:
    """Return the modules that inlined code stands in -> the names that it uses there."""
    by_file = {module_file(name): name for name in list(sys.modules)}
    found: dict[str, set[str]] = {}
    for code in codes:
        module = by_file.get(code.co_filename)
        if module is not None and not is_versioned(code.co_filename):
            found.setdefault(module, set()).update(code.co_names)
    return found


def _met_again(modules: Mapping[str, set[str]], read: Mapping[str, Any]) -> dict[str, Any]:
    """Return the globals that are an object which tracing had met elsewhere: it has a guard there only."""
    known = {id(value) for value in read.values() if _has_identity(value)}
    found = {}
    for module, names in modules.items():
        table = vars(sys.modules[module])
        for name in sorted(names & set(table)):
            if id(table[name]) in known:
                found[f"{_import(module)}.{name}"] = table[name]
    return found


def _shadowed(capture: FrameCapture, modules: Mapping[str, set[str]]) -> Iterator[FrozenValue]:
    """Yield which of Python's own names a module has as globals: guards are on the one that was found."""
    for module, names in sorted(modules.items()):
        own = tuple(sorted(names & set(vars(builtins))))
        if own:
            label = f"which names of Python {module} has of its own"
            source = f"({own!r}, {_import(module)})"
            then = globals_of((own, sys.modules[module]))
            yield _frozen(capture, source, label, then, "globals", globals_of)


# -------------------------------------------------------------------------------------------- classes


def _classes(
    capture: FrameCapture, read: Mapping[str, Any], arguments: Iterable[Any]
) -> Iterator[FrozenValue]:
    root = capture.root
    modules = root.modules() if isinstance(root, torch.nn.Module) else ()
    known = {type(module) for module in modules}  # the look-up key has the code of these
    sources: dict[type, str] = {type(value): "" for value in arguments}
    for source, value in read.items():
        is_class = isinstance(value, type)
        cls = value if is_class else type(value)
        sources[cls] = sources.get(cls) or (source if is_class else f"type({source})")
    for cls, source in sources.items():
        named = _source_of(cls) or source
        if cls.__module__ != "builtins" and cls not in known and named:
            label = f"the code of {cls.__module__}.{cls.__qualname__}"
            yield _frozen(capture, named, label, class_digest(cls), "methods", class_digest)


def _source_of(cls: type) -> str:
    """Return what leads to a class by its name, or "" where nothing does."""
    try:
        found = resolve_name(f"{cls.__module__}:{cls.__qualname__}")
    except (ImportError, AttributeError, ValueError):
        return ""
    return f"{_import(cls.__module__)}.{cls.__qualname__}" if found is cls else ""


def _import(module: str) -> str:
    return f"__import__('importlib').import_module({module!r})"


# ----------------------------------------------------------------------------------------------- ties


def _ties(capture: FrameCapture, read: Mapping[str, Any]) -> Iterator[FrozenValue]:
    """Yield which objects are one, for each class: objects of two classes, which are compared, never are."""
    of_model = _of_model(capture.root)
    values = {s: v for s, v in read.items() if _has_identity(v) and id(v) not in of_model}
    if any(isinstance(v, torch.Tensor) for v in values.values()):  # it may be a weight as well
        values.update((s, v) for s, v in read.items() if isinstance(v, torch.Tensor))
    by_class: dict[type, list[str]] = {}
    for source, value in values.items():
        by_class.setdefault(type(value), []).append(source)
    for sources in by_class.values():
        if len(sources) > 1:
            shown = [label_of(source, capture.root_name) for source in sources[:_SHOWN]]
            more = ", ..." if len(sources) > _SHOWN else ""
            label = f"which of {', '.join(shown)}{more} are one object"
            then = ties_of([values[source] for source in sources])
            yield _frozen(capture, f"({', '.join(sources)},)", label, then, "ties", ties_of)


def _tensors(capture: FrameCapture, read: Mapping[str, Any]) -> Iterator[FrozenValue]:
    """Yield the classes of tensors that are no weights: the look-up key has those of the weights."""
    of_model = _of_model(capture.root)
    for source, value in read.items():
        if isinstance(value, torch.Tensor) and id(value) not in of_model:
            label = f"the class of {label_of(source, capture.root_name)}"
            yield _frozen(capture, source, label, tensor_kind(value), "tensor", tensor_kind)


def _has_identity(value: Any) -> bool:
    """Say whether code may tell a value from an equal one; of numbers and texts Python promises nothing."""
    if isinstance(value, types.FunctionType):
        return not is_versioned(value.__code__.co_filename)
    if isinstance(value, type | types.ModuleType | types.BuiltinFunctionType | types.MethodType):
        return False
    return not is_scalar(value)


def _of_model(root: Any) -> set[int]:
    """Return the ids of what the look-up key tells the identity of: modules, their tables and weights."""
    if not isinstance(root, torch.nn.Module):
        return set()
    return {
        id(part) for module in root.modules()
        for table in (module._modules, module._parameters, module._buffers)
        for part in (module, vars(module), table, *table.values())
    } - {id(None)}  # fmt: skip


def _frozen(
    capture: FrameCapture, source: str, label: str, value: Any, kind: FrozenKind,
    convert: Callable[[Any], Any],
) -> FrozenValue:  # fmt: skip
    scope = frame_scope(capture)
    return FrozenValue(source, label, value, lambda: convert(eval(source, scope)), kind)
