"""Writes docs/config.md from the settings themselves: `python -m intarsia.config.reference [FILE]`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import fields

from intarsia.config.settings import Config, PieceMatch, Route, default_of, key_in_file, kind_of
from intarsia.config.sources import PREFIX

__all__ = ["reference"]

_HEAD = """\
# Settings

This page is generated: `python -m intarsia.config.reference docs/config.md`.

A setting comes from the first of these that has it:

1. code: `intarsia.compile(..., uncovered="error")`, `config={...}`, command-line flags;
2. the environment: `INTARSIA_UNCOVERED=error`; an empty variable counts as not set;
3. one file: `intarsia.toml`, or the table `[tool.intarsia]` of `pyproject.toml`;
4. what a plugin asks for on this device;
5. the platform's defaults;
6. the defaults below.

Keys are written in kebab-case in files and in snake_case in code. The tables `options`, `plugins` and
`passes` merge key by key; every other setting is taken whole. The library reads a file only when it is
told which: `config="intarsia.toml"` or `INTARSIA_CONFIG`; only the command line looks for one, from the
working directory upward. An unknown key, variable or value is an error. Python code (`"module:name"`)
can be named by code and plugins only.

Variables take the same text as files, without quotes around strings; a list may be written `a, b`, and a
table `tokens=8,256; batch=1`. Two variables are not settings: `INTARSIA_CONFIG` names the file, and
`INTARSIA_LOG` sets how much the command line logs (`debug`, `info`, `warning`...); a program uses
Python's `logging`, logger `intarsia`. `INTARSIA_CHECK=1` turns on the checks between stages; any other
value of it is the setting `check`.
"""


def reference() -> str:
    """Return the page."""
    sections = "".join(_settings(Config, ()))
    routes = _table("The tables `[[route]]`", Route)
    return f"{_HEAD}\n{sections}{routes}{_table('The conditions of a route, `piece = {...}`', PieceMatch)}"


def _settings(cls: type, table: tuple[str, ...]) -> Iterator[str]:
    for attribute in fields(cls):
        kind = kind_of(attribute)
        if isinstance(kind.table, type):
            yield from _settings(kind.table, (*table, key_in_file(attribute)))
        else:
            yield _section(attribute, table)


def _section(attribute: Any, table: tuple[str, ...]) -> str:
    kind = kind_of(attribute)
    key = ".".join((*table, key_in_file(attribute)))
    variable = PREFIX + "_".join((*table, attribute.name)).upper()
    lines = [f"\n## `{key}`\n\n{attribute.metadata['doc']}\n"]
    lines.append(f"\n- Takes {kind.expected}; default {_shown(default_of(attribute))}.")
    lines.append("\n- From Python only." if kind.code_only else f"\n- Variable `{variable}`.")
    if attribute.metadata["example"]:
        lines.append(
            f"\n- For example: `{key_in_file(attribute)} = {attribute.metadata['example']}`."
        )
    return "".join(lines) + "\n"


def _table(title: str, cls: type) -> str:
    rows = "".join(
        f"| `{key_in_file(item)}` | {item.metadata['doc']} | {_code(item.metadata['example'])} |\n"
        for item in fields(cls)
    )
    return f"\n## {title}\n\n| Key | Meaning | Example |\n|---|---|---|\n{rows}"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _shown(default: Any) -> str:
    if default is None:
        return "not set"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, tuple | dict):
        return "empty"
    return f'`"{default}"`' if isinstance(default, str) else f"`{default}`"


def main(arguments: list[str]) -> None:
    """Write the page to a file, or to standard output."""
    if arguments:
        Path(arguments[0]).write_text(reference(), encoding="utf-8")
    else:
        sys.stdout.write(reference())


if __name__ == "__main__":
    main(sys.argv[1:])
