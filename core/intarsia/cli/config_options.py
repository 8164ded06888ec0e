"""Settings on the command line. They count as given in code, so they win over files and environment."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator, Mapping
from typing import Any

from intarsia.cli import UsageError
from intarsia.config import Config, ResolvedConfig, load_config
from intarsia.config.kinds import read_names, read_pairs, toml_value
from intarsia.config.layers import Level

__all__ = ["add_config_arguments", "positive", "read_config"]

Flag = tuple[str, dict[str, Any]]
"""A flag as the user wrote it, and the settings that it stands for."""


def positive(text: str) -> int:
    """Return an argument that is a whole number from 1 upward."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"expected a whole number, 1 or more, got {text!r}")
    return int(text)


def add_config_arguments(parser: ArgumentParser, *, shortcuts: bool = True) -> None:
    """Add --config and --set, and the shortcuts for the settings that are used most."""
    group = parser.add_argument_group(
        "settings",
        "They win over the environment and over the settings file, which is intarsia.toml or "
        "[tool.intarsia] in pyproject.toml, in this folder or the nearest one above.",
    )
    group.add_argument("--config", metavar="FILE", help="read this settings file")
    group.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help='any setting, the value as in TOML: --set uncovered=error, --set "sizes={n=[1,4]}"',
    )
    if not shortcuts:
        return
    group.add_argument(
        "--compilers",
        metavar="A,B",
        action="append",
        default=[],
        help="compilers to try for each piece, in order",
    )
    group.add_argument(
        "--split-at",
        metavar="OP",
        action="append",
        default=[],
        help="cut at an op, function, method, module class or rule; may be repeated",
    )
    group.add_argument(
        "--boxes",
        metavar="SYMBOL=N,N",
        action="append",
        default=[],
        help="ends of the ranges to compile: tokens=8,256 is 1..8 and 9..256",
    )
    group.add_argument(
        "--sizes",
        metavar="SYMBOL=N,N",
        action="append",
        default=[],
        help="sizes to compile for exactly",
    )
    group.add_argument("--strict", action="store_true", help="raise where a compiler fails")
    group.add_argument("--dump", metavar="DIR", help="write graphs, pieces and plans to a folder")


def read_config(
    options: Namespace,
    *,
    in_target: Mapping[str, Any] | Config | None = None,
    defaults: tuple[str, Mapping[str, Any]] | None = None,
) -> ResolvedConfig:
    """Return the settings in effect for a command line.

    Args:
        options: the parsed command line.
        in_target: settings that the target brings along; flags win over them.
        defaults: (origin, settings) below everything that a user sets.
    """
    resolved = load_config(options.config, search=True)
    if defaults is not None:
        resolved = resolved.with_layer(defaults[1], defaults[0])
    if in_target:
        resolved = resolved.with_layer(in_target, "the target's config", Level.CODE)
    for origin, values in _flags(options):
        resolved = resolved.with_layer(values, origin, Level.CODE)
    return resolved


def _flags(options: Namespace) -> Iterator[Flag]:
    yield from map(_set, options.set)
    given = vars(options)
    for text in given.get("compilers", ()):
        yield f"--compilers {text}", {"compilers": read_names(text)}
    if given.get("split_at"):
        yield "--split-at " + " ".join(options.split_at), {"split_at": options.split_at}
    for name in ("boxes", "sizes"):
        if given.get(name):
            text = "; ".join(given[name])
            yield f"--{name} {text}", {name: read_pairs(text)}
    if given.get("strict"):
        yield "--strict", {"strict": True}
    if given.get("dump"):
        yield f"--dump {options.dump}", {"dump": options.dump}


def _set(text: str) -> Flag:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(
            f'"--set {text}" sets nothing',
            why="it needs a key and a value",
            next_step="For example: --set uncovered=error",
            subject=text,
        )
    path = _path(key.strip())
    table: Any = toml_value(value.strip(), value.strip())
    if path[0] in ("routes", "plugins", "passes"):
        table = _in_snake_case(table)
    for part in reversed(path):
        table = {part: table}
    return f"--set {text}", table


def _path(key: str) -> tuple[str, ...]:
    """Return a key's parts as code spells them; the name of a compiler stays as it is."""
    parts = key.split(".")
    if parts[0] == "options" and len(parts) > 2:
        return ("options", ".".join(parts[1:-1]), parts[-1].replace("-", "_"))
    spelled = [part.replace("-", "_") for part in parts]
    return ("routes" if spelled[0] == "route" else spelled[0], *spelled[1:])


def _in_snake_case(value: Any) -> Any:
    if isinstance(value, dict):
        return {key.replace("-", "_"): _in_snake_case(item) for key, item in value.items()}
    return [_in_snake_case(item) for item in value] if isinstance(value, list) else value
