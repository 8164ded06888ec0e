"""What a load requires: the modules and operators that tracing would have brought along."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from intarsia.split.encode import resolve_operation


def ensure(needs: Sequence[str], imported: Sequence[str]) -> str:
    """Import what is needed; returns the first thing that is not to be had, or "".

    Args:
        needs: "module:x" and "op:ns::name".
        imported: modules that tracing imported; where an operator is missing, they are imported in turn,
            since one of them may register it.
    """
    for need in needs:
        kind, _, name = need.partition(":")
        if kind == "module":
            if not _imports(name):
                return need
        elif not _has(name) and not any(_imports(m) and _has(name) for m in imported):
            return need
    return ""


def _imports(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def _has(operation: str) -> bool:
    try:
        resolve_operation(operation)
    except AttributeError:
        return False
    return True
