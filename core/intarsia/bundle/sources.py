"""The sources of a model: which files its classes and everything that tracing inlined stand in."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch

from intarsia.classes import is_versioned, is_versioned_class, members_digest
from intarsia.digests import code_digest, digest, file_digest, module_file, plain_digest


def class_sources(model: Any) -> dict[str, str]:
    """Return module name -> digest of the classes of a model (or of the function) as they are loaded, and
    of the files that they stand in.

    Both, since a file may have been edited after it was imported, and Python itself may load an old
    compiled file where size and time of the new source are the same.
    """
    found: dict[str, list[str]] = {}
    for cls in _classes_of(model):
        if not is_versioned_class(cls):
            found.setdefault(cls.__module__, []).append(f"{_order(cls)} {members_digest(cls)}")
    if not isinstance(model, torch.nn.Module):
        function = getattr(model, "__func__", model)
        code = getattr(function, "__code__", None)
        if code is not None:
            found.setdefault(str(function.__module__), []).append(code_digest(code))
    return {name: digest(*parts, file_digest(module_file(name) or "") or "")
            for name, parts in found.items()}  # fmt: skip


def _order(cls: type) -> str:
    return ", ".join(base.__qualname__ for base in cls.__mro__)


def replaced_in_torch(model: Any) -> str:
    """Return a hash of what others have put into the classes of torch that a model uses."""
    classes = [cls for cls in (*_classes_of(model), torch.Tensor) if is_versioned_class(cls)]
    names = frozenset(name for module in _modules_in(model) for name in _names_in(module))
    found = {f"{c.__module__}.{c.__qualname__}": members_digest(c, names) for c in classes}
    return plain_digest(found)


def _modules_in(model: Any) -> Iterable[torch.nn.Module]:
    return model.modules() if isinstance(model, torch.nn.Module) else ()


def _names_in(module: torch.nn.Module) -> Iterable[str]:
    """Return what a module has under a name that a class' own attribute would hide."""
    return (*module._modules, *module._parameters, *module._buffers)


def _classes_of(model: Any) -> list[type]:
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    owner = getattr(model, "__self__", None)
    instances = [*modules, *(() if owner is None else (owner,))]
    classes = dict.fromkeys(type(value) for value in instances)
    return list(dict.fromkeys(base for cls in classes for base in cls.__mro__))


def inlined_sources(codes: Iterable[CodeType], model: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Return what tracing inlined: module -> digest of its file, and place -> digest of the loaded code.

    Raises:
        LookupError: some code cannot be found again without tracing, or its file was edited after it was
            imported; the text names it.
    """
    files: dict[str, str] = {}
    loaded: dict[str, str] = {}
    inlined = [code for code in codes if not is_versioned(code.co_filename)]
    by_file = {module_file(name): name for name in list(sys.modules)}
    for path in dict.fromkeys(code.co_filename for code in inlined):
        content = file_digest(path)
        if content is not None and path in by_file:
            files[str(by_file[path])] = content
    places = _places([*files, *_modules_of(model)])
    for code in inlined:
        if code in places:
            loaded[places[code]] = code_digest(code)
        elif not _stands_in_file(code):
            raise LookupError(
                f"the source of {code.co_qualname} ({code.co_filename}) cannot be read"
            )
    return files, loaded


def _stands_in_file(code: CodeType) -> bool:
    """Say whether a file, as it is now, still has this very code."""
    try:
        source = Path(code.co_filename).read_bytes()
        whole = compile(source, code.co_filename, "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError):
        return False
    wanted = (code.co_qualname, code_digest(code))
    return any((c.co_qualname, code_digest(c)) == wanted for c in _nested(whole))


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _modules_of(model: Any) -> list[str]:
    classes = {type(m) for m in model.modules()} if isinstance(model, torch.nn.Module) else set()
    names = [c.__module__ for cls in classes for c in cls.__mro__]
    return [*names, str(getattr(model, "__module__", ""))]


def _places(modules: Iterable[str]) -> dict[CodeType, str]:
    """Return where the functions of some modules and of their classes can be found: "module:Class.name"."""
    found: dict[CodeType, str] = {}
    for name in dict.fromkeys(modules):
        module = sys.modules.get(name)
        if module is None:
            continue
        for path, function in _functions(module):
            found.setdefault(function.__code__, f"{name}:{path}")
    return found


def _functions(module: ModuleType) -> Iterator[tuple[str, FunctionType]]:
    for name, value in list(vars(module).items()):
        if isinstance(value, FunctionType):
            yield name, value
        elif isinstance(value, type):
            for key, part in list(vars(value).items()):
                if isinstance(part, FunctionType):
                    yield f"{name}.{key}", part


def present_file(module: str) -> str:
    """Return the digest of a module's file as it is now, importing the module; "" where there is none."""
    import importlib

    importlib.import_module(module)
    path = module_file(module)
    return "" if path is None else file_digest(path) or ""


def present_code(place: str) -> str:
    """Return the digest of the code at a place as it is now."""
    from intarsia.split.encode import resolve_name

    return code_digest(resolve_name(place).__code__)
