"""Where settings are read from: one file, the environment, and code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import fields

from intarsia.config import layers as layering
from intarsia.config.kinds import Kind
from intarsia.config.layers import Layer, Level, ResolvedConfig, Source
from intarsia.config.settings import Config, kind_of, unknown
from intarsia.errors import ConfigError

__all__ = ["load_config", "search_upward"]

PREFIX = "INTARSIA_"
RESERVED = frozenset({"INTARSIA_CONFIG", "INTARSIA_LOG"})
"""Variables that are not settings: which file to read, and how much is logged."""


def load_config(
    config: ResolvedConfig | Config | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    search: bool = False,
    **overrides: Any,
) -> ResolvedConfig:
    """Return the settings in effect.

    Args:
        config: a file to read; or settings given in code, as a Config or a dict in snake_case; or
            resolved settings, to which only the overrides are added. Where it is not a file, the file
            that INTARSIA_CONFIG names is read, if it names one.
        environ: the environment; None: `os.environ`.
        search: look for a file from the working directory upward if none is named; for the CLI.
        overrides: settings given in code, which win over everything; None means not set.

    Raises:
        ConfigError: a file cannot be read, a key is unknown, or a value does not fit.
    """
    if isinstance(config, ResolvedConfig):
        return config.with_layer(overrides, "code", Level.CODE)
    variables = os.environ if environ is None else environ
    given = Path(config) if isinstance(config, str | os.PathLike) else None
    resolved = ResolvedConfig(
        (*_file_layers(given, variables, search), read_environment(variables))
    )
    if isinstance(config, Config | Mapping):
        resolved = resolved.with_layer(config, "code", Level.CODE)
    return resolved.with_layer(overrides, "code", Level.CODE)


# ------------------------------------------------------------------------------------------ file


def search_upward(start: str | os.PathLike[str]) -> Path | None:
    """Return the nearest settings file in `start` or a folder above it, or None."""
    folder = Path(start).resolve()
    for place in (folder, *folder.parents):
        if (place / "intarsia.toml").is_file():
            return place / "intarsia.toml"
        project = place / "pyproject.toml"
        if project.is_file() and "intarsia" in _load(project).get("tool", {}):
            return project
    return None


def read_file(file: Path) -> Layer:
    """Read a settings file: `[tool.intarsia]` of a pyproject.toml, or a whole file of any other name.

    Raises:
        ConfigError: it cannot be read, has no settings, or they are wrong.
    """
    data = _load(file)
    if file.name != "pyproject.toml":
        return layering.read_table(data, Source(Level.FILE, lambda table: _place(file, table)))
    tools = data.get("tool", {})
    if "intarsia" not in tools:
        raise ConfigError(
            f"{file} has no table [tool.intarsia]",
            next_step="Add the table, or name another file",
            subject=str(file),
        )
    source = Source(Level.FILE, lambda table: _place(file, ("tool", "intarsia", *table)))
    return layering.read_table(tools["intarsia"], source)


def _file_layers(given: Path | None, environ: Mapping[str, str], search: bool) -> tuple[Layer, ...]:
    named = environ.get("INTARSIA_CONFIG")
    file = given or (Path(named) if named else None)
    if file is None and search:
        file = search_upward(Path.cwd())
    return (read_file(file),) if file else ()


def _load(file: Path) -> dict[str, Any]:
    import tomllib  # 3 ms that only files need; listing plugins should be fast

    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise ConfigError(
            f"the settings file {file} cannot be read", why=reason, subject=str(file)
        ) from problem
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise ConfigError(
            f"the settings file {file} is not TOML", why=str(problem), subject=str(file)
        ) from problem


def _place(file: Path, table: tuple[str, ...]) -> str:
    return f"{file} [{'.'.join(part.replace('_', '-') for part in table)}]" if table else str(file)


# ----------------------------------------------------------------------------------- environment


def variables() -> dict[str, tuple[tuple[str, ...], Kind]]:
    """Return every variable that sets something: its name -> (key, kind)."""
    found: dict[str, tuple[tuple[str, ...], Kind]] = {}
    _collect(Config, (), found)
    return found


def _collect(
    cls: type, table: tuple[str, ...], found: dict[str, tuple[tuple[str, ...], Kind]]
) -> None:
    for attribute in fields(cls):
        kind = kind_of(attribute)
        path = (*table, attribute.name)
        if isinstance(kind.table, type):
            _collect(kind.table, path, found)
        elif not kind.code_only:
            found[PREFIX + "_".join(path).upper()] = (path, kind)


def read_environment(environ: Mapping[str, str]) -> Layer:
    """Read the variables INTARSIA_*; an empty one counts as not set.

    Raises:
        ConfigError: a variable is unknown, or its value does not fit.
    """
    names = [name for name in environ if name.startswith(PREFIX) and environ[name].strip()]
    if not names:
        return Layer(Level.ENVIRONMENT, {})
    known = variables()
    values: dict[tuple[str, ...], tuple[Any, str]] = {}
    for name in sorted(names):
        if name in RESERVED or _switches_stage_checks(name, environ[name]):
            continue
        if name not in known:
            raise unknown("variable", name, "the environment", [*known, *RESERVED])
        values.update(_read_variable(name, environ[name], *known[name]))
    return Layer(Level.ENVIRONMENT, values)


def _switches_stage_checks(name: str, text: str) -> bool:
    # INTARSIA_CHECK=1 turns on the checks between stages; any other value is the setting `check`.
    return name == "INTARSIA_CHECK" and text.strip() in ("0", "1")


def _read_variable(
    name: str, text: str, path: tuple[str, ...], kind: Kind
) -> dict[tuple[str, ...], tuple[Any, str]]:
    table: Any = kind.read(text)
    for part in reversed(path):
        table = {part: table}
    source = Source(Level.ENVIRONMENT, lambda _: name)
    return dict(layering.read_table(table, source).values)
