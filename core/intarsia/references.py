"""Turns "module:name" strings into the objects they name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from intarsia.errors import PluginError

__all__ = ["describe", "resolve_reference"]


def resolve_reference(reference: Any, *, owner: str = "a plugin") -> Any:
    """Return the object that a "module:name" string names; anything but a string is returned as it is.

    Args:
        reference: the string, or the object itself.
        owner: who gave the reference, for the message.

    Raises:
        PluginError: the module cannot be imported or lacks the name; the `__cause__` says why.
    """
    if not isinstance(reference, str):
        return reference
    module, colon, name = reference.partition(":")
    if not (module and colon and name):
        raise PluginError(
            f"{owner} names {reference!r}",
            why='it is not of the form "module:name"',
            subject=reference,
        )
    try:
        value: Any = import_module(module)
        for part in name.split("."):
            value = getattr(value, part)
    except KeyboardInterrupt:
        raise
    except BaseException as problem:  # a module may even call sys.exit()
        raise PluginError(
            f"{owner} names {reference!r}, which cannot be loaded",
            why=describe(problem),
            subject=reference,
        ) from problem
    return value


def describe(problem: BaseException) -> str:
    """Return an exception as one line: its type and message."""
    text = str(problem).strip()
    return f"{type(problem).__name__}: {text}" if text else type(problem).__name__
