"""The names that Dynamo's sources use: `L['self'].scale`, `G['rotate']`, `G['__import_torch']`.

A source is Python that leads from a traced function to a value. Here it is evaluated again, as things are
now: after a trace with the names that Dynamo made up, and in a later process without them, since every
such name stands for a module or for Python's builtins.
"""

from __future__ import annotations

import builtins
import importlib
import re
from collections.abc import Iterable, Mapping
from types import CellType, CodeType, ModuleType
from typing import Any

_MADE_UP = re.compile(r"\bG\['(__import_\w+|__builtins_dict___\d+|___unnamed_scope_\w+)'\]")
_BY_ADDRESS = re.compile(r"\bG\['_\d+_c\d+'\]")
"""A name that Dynamo made of an object's address: it is another one in each process, and other sources lead
to the object."""
_OURS = ("G['__import_intarsia", "G['__import_torch_dot__dynamo", "G['__import_torch_dot__inductor")
"""Sources that regional capture and Dynamo's own stand-ins bring along: no part of the model."""


class Locals(dict[str, Any]):
    """The traced function's names; closure variables are read from their cells as they are now."""

    def __init__(self, cells: Iterable[tuple[str, CellType]]) -> None:
        super().__init__()
        self.cells = dict(cells)

    def __missing__(self, name: str) -> Any:
        try:
            return self.cells[name].cell_contents
        except ValueError:  # an empty cell
            raise KeyError(name) from None


def scope_of(function: Any, root: Any, f_globals: Mapping[str, Any]) -> dict[str, Any]:
    """Return what sources are evaluated in, for a traced function bound to `root` (None: to nothing)."""
    names = function.__code__.co_varnames
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    local = Locals(cells)
    if root is not None and names:
        local[names[0]] = root
    scope: dict[str, Any] = dict(f_globals)
    scope.update({"L": local, "G": f_globals})
    return scope


def aliases_in(sources: Iterable[str], f_globals: Mapping[str, Any]) -> dict[str, str]:
    """Return the names that Dynamo made up in some sources -> the module that each stands for.

    Raises:
        KeyError: one stands for something else, and cannot be made up again.
    """
    found: dict[str, str] = {}
    for source in sources:
        for name in _MADE_UP.findall(source):
            value = f_globals.get(name)
            if isinstance(value, ModuleType):
                found[name] = value.__name__
            elif name.startswith("__builtins") and value is vars(builtins):
                found[name] = ""
            else:
                raise KeyError(name)
    return found


def with_aliases(f_globals: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    """Return a function's globals with the names that Dynamo made up.

    Raises:
        ImportError: a module is not there in this process.
    """
    made = dict(f_globals)
    for name, module in aliases.items():
        made[name] = importlib.import_module(module) if module else vars(builtins)
    return made


def is_ours(source: str) -> bool:
    """Say whether a source leads to what tracing itself brought along."""
    return source.startswith(_OURS)


def is_elsewhere(source: str) -> bool:
    """Say whether a source may lead to a part of the model in another process, too."""
    return not is_ours(source) and _BY_ADDRESS.search(source) is None


def compiled_source(source: str) -> CodeType | None:
    """Return a source compiled, or None for one that is no Python."""
    try:
        return compile(source, "<frozen value>", "eval")
    except SyntaxError:
        return None
