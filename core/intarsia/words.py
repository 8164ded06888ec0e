"""Fields of records that hold one of a few words: a wrong one is an error where the record is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from intarsia.errors import PluginError, nearest

__all__ = ["one_of", "some_of"]

Validator = Callable[[Any, Any, Any], None]


def one_of(words: Any) -> Validator:
    """Return the check of an attrs field that holds one word of a Literal.

    It raises PluginError, with the nearest word.
    """

    def check(record: Any, attribute: Any, value: Any) -> None:
        _check(record, attribute.name, value, get_args(words))

    return check


def some_of(words: Any) -> Validator:
    """Return the check of an attrs field that holds a tuple of words of a Literal; one at least.

    It raises PluginError, with the nearest word.
    """

    def check(record: Any, attribute: Any, value: Any) -> None:
        if not isinstance(value, tuple) or not value:
            raise PluginError(
                f"{_owner(record)}: {attribute.name} is {value!r}",
                why=f"it must be a tuple of {', '.join(map(repr, get_args(words)))}",
                subject=attribute.name,
            )
        for word in value:
            _check(record, attribute.name, word, get_args(words))

    return check


def _check(record: Any, name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise PluginError(
            f"{_owner(record)}: {name} is {value!r}; {nearest(str(value), known)}", subject=name
        )


def _owner(record: Any) -> str:
    """Return the record as messages name it: its type, and the name by which it goes."""
    name = getattr(record, "name", "") or getattr(record, "op", "")
    return f'{type(record).__name__} "{name}"' if name else type(record).__name__
