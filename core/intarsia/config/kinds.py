"""The kinds of values that settings have: how each is checked, and how it is written in a variable.

A kind turns data from TOML, from the environment or from Python into one canonical form. Parsing its
own result again changes nothing, so records can be built from raw or from parsed values alike.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import field, frozen

__all__ = ["Invalid", "Kind"]

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


class Invalid(Exception):
    """A value does not fit its kind; carries what was expected, and nothing about where it stood."""


@frozen(slots=False)
class Kind:
    """One kind of value.

    Attributes:
        expected: what a reader should have written ("a list of strings").
        parse: `(value, trusted) -> value`; trusted values come from code and plugins.
        read: turns the text of an environment variable into the data that `parse` takes.
        table: how the value spreads over several keys: a class of settings, "options", or None.
        code_only: the value cannot be written in a file or variable.
    """

    expected: str
    parse: Callable[[Any, bool], Any]
    read: Callable[[str], Any] = field(default=lambda text: toml_value(text, text))
    table: type | str | None = None
    code_only: bool = False


# ---------------------------------------------------------------------------- text of variables


def toml_value(text: str, otherwise: Any) -> Any:
    """Return the text read as one TOML value, or `otherwise` where it is not TOML."""
    import tomllib  # 3 ms that only variables and files need; listing plugins should be fast

    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return otherwise
    # A line break in the text could add keys; then it was not one value.
    return table["value"] if len(table) == 1 else otherwise


def read_text(text: str) -> Any:
    """Return a string as it stands; quotes are taken off."""
    value = toml_value(text, text)
    return value if isinstance(value, str) else text


def read_names(text: str) -> Any:
    """Return a list from TOML, or from `a, b`."""
    value = toml_value(text, None)
    if isinstance(value, list):
        return value
    return [part.strip() for part in read_text(text).split(",") if part.strip()]


def read_flag(text: str) -> Any:
    """Return a boolean from true, false, 1 or 0."""
    return {"1": True, "0": False, "true": True, "false": False}.get(text.strip().lower(), text)


def read_pairs(text: str) -> Any:
    """Return a table from TOML, or from `tokens=8,256; batch=1`."""
    if text.lstrip().startswith("{"):
        return toml_value(text, text)
    table: dict[str, Any] = {}
    for part in filter(str.strip, text.split(";")):
        key, equals, value = part.partition("=")
        if not equals:
            return text
        table[key.strip()] = _read_item(value.strip())
    return table


def _read_item(text: str) -> Any:
    value = toml_value(text, None)
    if value is not None:
        return value
    listed = toml_value(f"[{text}]", None) if "," in text else None
    return text if listed is None else listed


def read_options(text: str) -> Any:
    """Return a table of tables from TOML, or from `inductor.max-autotune=true; acme.level=2`."""
    flat = read_pairs(text)
    if not isinstance(flat, dict) or any(isinstance(value, dict) for value in flat.values()):
        return flat
    nested: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        name, dot, option = key.rpartition(".")
        if not dot:
            return text
        nested.setdefault(name, {})[option] = value
    return nested


# ------------------------------------------------------------------------------------- scalars


def is_reference(value: object) -> bool:
    """Say whether a value is a string "module:name"."""
    return isinstance(value, str) and _REFERENCE.fullmatch(value) is not None


def _text(value: Any, trusted: bool) -> str:
    if isinstance(value, str) and value:
        return value
    raise Invalid


def _path(value: Any, trusted: bool) -> str:
    return _text(os.fspath(value) if isinstance(value, os.PathLike) else value, trusted)


def _name(value: Any, trusted: bool) -> str:
    if is_reference(value) and not trusted:
        raise Invalid(
            f'"{value}" names Python code, which is accepted from code and plugins only: a file or '
            "variable must not decide what is imported. Pass it from Python, or let a plugin register "
            "it under a name"
        )
    return _text(value, trusted)


def _flag(value: Any, trusted: bool) -> bool:
    if isinstance(value, bool):
        return value
    raise Invalid


def _integer(value: Any, lowest: int) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= lowest:
        return value
    raise Invalid


def _flag_or_path(value: Any, trusted: bool) -> bool | str | tuple[str, ...]:
    if isinstance(value, list | tuple) and value:
        return tuple(_path(item, trusted) for item in value)
    return value if isinstance(value, bool) else _path(value, trusted)


def _seconds(value: Any, trusted: bool) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
        return float(value)
    raise Invalid


def _read_flag_or_path(text: str) -> Any:
    flag = read_flag(text)
    if isinstance(flag, bool):
        return flag
    return read_names(text) if text.lstrip().startswith("[") else read_text(text)


def _executor(value: Any, trusted: bool) -> Any:
    if value is None or callable(getattr(value, "submit", None)):
        return value
    raise Invalid


TEXT = Kind("a string", _text, read_text)
NAME = Kind("a name", _name, read_text)
PATH = Kind("a path", _path, read_text)
FLAG = Kind("true or false", _flag, read_flag)
COUNT = Kind("a whole number, 0 or more", lambda value, trusted: _integer(value, 0))
SECONDS = Kind("a number of seconds above 0", _seconds)
FLAG_OR_PATH = Kind(
    "true, false, a path or URL, or a list of these", _flag_or_path, _read_flag_or_path
)
EXECUTOR = Kind("a `concurrent.futures.Executor`", _executor, code_only=True)


def choice(*names: str) -> Kind:
    """Return the kind of a setting that takes one of these names."""

    def parse(value: Any, trusted: bool) -> str:
        if value in names:
            return str(value)
        raise Invalid

    return Kind("one of " + ", ".join(f'"{name}"' for name in names), parse, read_text)


# ---------------------------------------------------------------------------- lists and tables


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, list | tuple | set | frozenset):
        return value if isinstance(value, list | tuple) else sorted(value)
    raise Invalid


def _names(value: Any, trusted: bool) -> tuple[str, ...]:
    # One name for a list of one is what everybody tries first.
    return tuple(
        _name(item, trusted) for item in ([value] if isinstance(value, str) else _items(value))
    )


def _rules(value: Any, trusted: bool) -> tuple[Any, ...]:
    if isinstance(value, str) or (trusted and _is_rule(value)):
        value = [value]
    return tuple(
        item if trusted and _is_rule(item) else _name(item, trusted) for item in _items(value)
    )


def _is_rule(value: Any) -> bool:
    # Op packets, overloads, functions and module classes are callable; rules have assign();
    # torch.Tag members have neither and are known by their name alone, since torch is not imported.
    return callable(value) or hasattr(value, "assign") or type(value).__name__ == "Tag"


def _mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping) and all(isinstance(key, str) and key for key in value):
        return value
    raise Invalid


def _prefer(value: Any, trusted: bool) -> dict[str, str]:
    return {key: _text(item, trusted) for key, item in _mapping(value).items()}


def _numbers(value: Any) -> tuple[int, ...]:
    # A bare number is a list of one.
    items = [value] if isinstance(value, int) else _items(value)
    return tuple(_integer(item, 0) for item in items)


def _sizes(value: Any, trusted: bool) -> dict[str, tuple[int, ...]]:
    return {key: tuple(sorted(set(_numbers(item)))) for key, item in _mapping(value).items()}


def _endpoints(value: Any, trusted: bool) -> dict[str, tuple[int, ...]]:
    parsed = {key: _numbers(item) for key, item in _mapping(value).items()}
    for ends in parsed.values():
        if not ends or list(ends) != sorted(set(ends)) or ends[0] < 1:
            raise Invalid
    return parsed


def _ranges(value: Any, trusted: bool) -> dict[str, tuple[int, int]]:
    parsed: dict[str, tuple[int, int]] = {}
    for key, item in _mapping(value).items():
        numbers = _numbers(item)
        low, high = (numbers * 2)[:2] if len(numbers) == 1 else _pair(numbers)
        if low > high:
            raise Invalid
        parsed[key] = (low, high)
    return parsed


def _pair(numbers: tuple[int, ...]) -> tuple[int, int]:
    if len(numbers) != 2:
        raise Invalid
    return numbers[0], numbers[1]


def _boxes(value: Any, trusted: bool) -> tuple[dict[str, tuple[int, int]], ...]:
    return tuple(_ranges(item, trusted) for item in _items(value))


def _options(value: Any, trusted: bool) -> dict[str, dict[str, Any]]:
    # Options are spelt like settings: kebab-case in files, snake_case in code. Compilers see snake_case.
    return {
        name: {key.replace("-", "_"): item for key, item in _mapping(table).items()}
        for name, table in _mapping(value).items()
    }


def choices(of: str, *names: str) -> Kind:
    """Return the kind of a table that gives each `of` one of these names."""

    def parse(value: Any, trusted: bool) -> dict[str, str]:
        found = _prefer(value, trusted)
        if set(found.values()) <= set(names):
            return found
        raise Invalid

    listed = " or ".join(f'"{name}"' for name in names)
    return Kind(f"a table: {of} = {listed}", parse, read_pairs)


def _amounts(value: Any, trusted: bool) -> dict[str, int]:
    return {key: _integer(item, 0) for key, item in _mapping(value).items()}


AMOUNTS = Kind("a table: resource = whole number, 0 or more", _amounts, read_pairs)
NAMES = Kind("a list of names", _names, read_names)
RULES = Kind("a list of ops, functions, modules or rule names", _rules, read_names)
PREFER = Kind("a table: component name = distribution", _prefer, read_pairs)
SIZES = Kind("a table: symbol = [size, ...]", _sizes, read_pairs)
ENDPOINTS = Kind(
    "a table: symbol = [end of the first range, end of the second, ...], rising and from 1",
    _endpoints,
    read_pairs,
)
RANGES = Kind("a table: symbol = [lowest, highest]", _ranges, read_pairs)
BOXES = Kind("a list of tables: symbol = [lowest, highest]", _boxes)
OPTIONS = Kind(
    "a table for each compiler or pass: name = { option = value }",
    _options,
    read_options,
    "options",
)
