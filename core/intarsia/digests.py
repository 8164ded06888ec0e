"""Digests of sources and code: what a cache key says of Python that may be edited."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any


def digest(*parts: bytes | str) -> str:
    """Return a hash of some texts, in order; where one ends and the next begins matters."""
    made = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        made.update(len(data).to_bytes(8, "little"))
        made.update(data)
    return made.hexdigest()


def plain_digest(value: Any) -> str:
    """Return a hash of JSON-able data."""
    return digest(json.dumps(value, sort_keys=True, default=repr))


def file_digest(path: str | Path) -> str | None:
    """Return a hash of a file's content, or None where it cannot be read."""
    try:
        return digest(Path(path).read_bytes())
    except OSError:
        return None


def module_file(name: str) -> str | None:
    """Return the source file of an imported module, or None where it has none that can be read."""
    path = getattr(sys.modules.get(name), "__file__", None)
    if not path or not str(path).endswith(".py"):
        return None
    return str(path)


def _file_to_import(name: str) -> str | None:
    """Return the source file of a module that is not imported yet, and is not imported for this."""
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    path = None if found is None else found.origin
    return path if path is not None and path.endswith(".py") else None


def code_digest(code: CodeType) -> str:
    """Return a hash of what a code object does, wherever it stands in a file."""
    constants = [
        code_digest(c) if isinstance(c, CodeType) else f"{type(c).__name__} {_ordered(c)}"
        for c in code.co_consts
    ]
    names = [code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars]
    counts = (code.co_argcount, code.co_kwonlyargcount, code.co_posonlyargcount, code.co_flags)
    return digest(code.co_code, repr(constants), repr(names), repr(counts))


def _ordered(value: Any) -> str:
    # A set's order depends on the hash seed of the process.
    return repr(sorted(value, key=repr)) if isinstance(value, frozenset) else repr(value)


def source_digest(modules: Iterable[str]) -> str:
    """Return a hash of the source files of some modules and of the packages that they are.

    A module without a readable file counts by its functions' code.
    """
    found: dict[str, str] = {}
    for name in modules:
        path = module_file(name) if name in sys.modules else _file_to_import(name)
        if path is None:
            found[name] = digest(*(code_digest(f.__code__) for f in _functions(name)))
        elif path.endswith("__init__.py"):
            for file in sorted(Path(path).parent.rglob("*.py")):
                found[f"{name}/{file.relative_to(Path(path).parent)}"] = file_digest(file) or ""
        else:
            found[name] = file_digest(path) or ""
    return plain_digest(found)


def _functions(module: str) -> list[FunctionType]:
    values = vars(sys.modules[module]) if module in sys.modules else {}
    return [v for _, v in sorted(values.items()) if isinstance(v, FunctionType)]


def function_identity(value: Any) -> str:
    """Return what a function, method or class is, for comparison in another process."""
    inner = getattr(value, "__func__", value)
    name = getattr(inner, "__qualname__", None) or type(inner).__qualname__
    text = f"{getattr(inner, '__module__', None) or ''}:{name}"
    code = getattr(inner, "__code__", None)
    return f"{text} {code_digest(code)[:16]}" if isinstance(code, CodeType) else text
