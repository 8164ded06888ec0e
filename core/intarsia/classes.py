"""What classes are in this process: the code that they and their bases define, as it is loaded."""

from __future__ import annotations

import functools
import linecache
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import torch

import intarsia
from intarsia.digests import code_digest, digest, module_file

_STDLIB = sysconfig.get_paths()["stdlib"]
_KNOWN_BY_VERSION = (str(Path(torch.__file__).parent), str(Path(intarsia.__file__).parent))
"""Folders whose files change only with a version that every key has (ours with its sources' hash)."""
_SET_LATER = ("_abc_", "_dynamo", "_torchdynamo")
"""How names begin that Python and torch give classes while they are used."""


def is_versioned(path: str) -> bool:
    """Say whether a file is part of torch, intarsia or Python itself."""
    if path.startswith("<frozen "):
        return True
    in_stdlib = path.startswith(_STDLIB) and "site-packages" not in path
    return in_stdlib or path.startswith(_KNOWN_BY_VERSION)


def is_versioned_class(cls: type) -> bool:
    """Say whether a class is part of torch, intarsia or Python itself, as far as its module tells."""
    path = module_file(cls.__module__)
    if path is None:
        return cls.__module__.split(".")[0] in ("torch", "builtins")
    return is_versioned(path)


def class_digest(cls: type) -> str:
    """Return a hash of what a class and its bases define, in the order in which Python looks there."""
    return digest(*(f"{base.__qualname__} {members_digest(base)}" for base in cls.__mro__))


def members_digest(cls: type, names: frozenset[str] = frozenset()) -> str:
    """Return a hash of what a class itself defines: the code of its methods and the names of the rest.

    Of a class that a version stands for, only what is not its own counts, and of that what is new only where
    it has one of `names`: libraries add methods of their own to `torch.nn.Module` while they are used.
    """
    return digest(*(_replaced(cls, names) if is_versioned_class(cls) else _defined(cls)))


def _defined(cls: type) -> Iterator[str]:
    for name, value in sorted(vars(cls).items()):
        codes = [code_digest(function.__code__) for function in _functions_in(value)]
        if codes or hasattr(type(value), "__get__"):
            yield f"{name} {type(value).__qualname__} {' '.join(codes)}"
        elif not (name.startswith("__") or name.startswith(_SET_LATER)):
            yield name  # its value is compared where tracing reads it; a new one may hide a base's


def _replaced(cls: type, names: frozenset[str]) -> Iterator[str]:
    for name, value in sorted(vars(cls).items()):
        for function in _functions_in(value):
            if not is_versioned(function.__code__.co_filename):
                if name in names or _is_written_in(cls, name):
                    yield f"{name} {code_digest(function.__code__)}"
            elif function.__module__.startswith("torch._dynamo"):
                continue  # what Dynamo puts into torch.nn.Module once it is used
            elif function.__qualname__ != f"{cls.__qualname__}.{name}":
                yield f"{name} {function.__module__}:{function.__qualname__}"


def _is_written_in(cls: type, name: str) -> bool:
    """Say whether a name occurs in the file of a class or of a base, so that it may be one of theirs."""
    return any(re.search(rf"\b{re.escape(name)}\b", _text_of(base)) for base in cls.__mro__)


def _text_of(cls: type) -> str:
    path = module_file(cls.__module__)
    return "" if path is None else "".join(linecache.getlines(path))


def _functions_in(value: Any) -> Iterator[FunctionType]:
    """Yield the Python functions that a member of a class runs: of a property, under a decorator."""
    if isinstance(value, FunctionType):
        yield value
    inner: tuple[Any, ...] = ()
    if isinstance(value, staticmethod | classmethod):
        inner = (value.__func__,)
    elif isinstance(value, property):
        inner = (value.fget, value.fset, value.fdel)
    elif isinstance(value, functools.cached_property | functools.partialmethod | functools.partial):
        inner = (value.func,)
    else:
        inner = (getattr(value, "__dict__", {}).get("__wrapped__"),)
    for part in inner:
        if part is not None and part is not value:
            yield from _functions_in(part)
