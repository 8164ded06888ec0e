"""Writes docs/hooks.md from the hook specs and records: `python -m intarsia.hook_reference [FILE]`."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any, TypeGuard, cast

from attrs import NOTHING, Factory, fields, has

from intarsia import hookspecs, interfaces

__all__ = ["documented", "hooks", "reference"]

_HEAD = """\
# Hooks, records and contracts

This page is generated: `python -m intarsia.hook_reference docs/hooks.md`.

"""

_ANSWERS = {
    True: "The first answer other than None wins; built-in plugins are asked last.",
    False: "Every plugin's answer counts; None means nothing.",
}


def hooks() -> dict[str, Callable[..., Any]]:
    """Return every hook: name -> specification."""
    return {
        name: function
        for name, function in vars(hookspecs).items()
        if hasattr(function, f"{hookspecs.PROJECT}_spec")
    }


def documented() -> list[type]:
    """Return the records and Protocols of the plugin interface, in the order of the source."""
    return [
        value
        for value in vars(interfaces).values()
        if inspect.isclass(value)
        and value.__module__ == interfaces.__name__
        and (has(value) or _is_protocol(value))
    ]


def reference() -> str:
    """Return the page."""
    known = documented()
    parts = [_HEAD, dedent(inspect.getdoc(hookspecs) or ""), "\n\n## Hooks\n"]
    parts += [_hook(name, function) for name, function in hooks().items()]
    parts.append("\n## Types\n\n")
    parts += [f"- `{name}`: {meaning}\n" for name, meaning in _aliases()]
    parts.append("\n## Records\n\nAll of them are frozen attrs classes.\n")
    parts += [_record(cls) for cls in known if not _is_protocol(cls)]
    parts.append("\n## Contracts\n\nWhat the factories of the records build.\n")
    parts += [_contract(cls) for cls in known if _is_protocol(cls)]
    return "".join(parts)


def _is_protocol(cls: type) -> bool:
    return bool(getattr(cls, "_is_protocol", False))


# --------------------------------------------------------------------------------------- hooks


def _hook(name: str, function: Callable[..., Any]) -> str:
    signature = str(inspect.signature(function)).replace("'", "")
    if name == "intarsia_event":
        rule = "Every plugin is told; nothing is returned."
    else:
        rule = _ANSWERS[bool(getattr(function, f"{hookspecs.PROJECT}_spec")["firstresult"])]
    text = inspect.getdoc(function) or ""
    prose, _, example = text.partition("Example:")
    code = f"\n\n```python\n{dedent(example).strip()}\n```" if example else ""
    return f"\n### `{name}`\n\n```python\n{name}{signature}\n```\n\n{prose.strip()}\n{rule}{code}\n"


# ------------------------------------------------------------------------------------- records


def _aliases() -> Iterator[tuple[str, str]]:
    """Yield (name, meaning) of the types that have a name of their own."""
    body = ast.parse(inspect.getsource(interfaces)).body
    for item, following in pairwise(body):
        if isinstance(item, ast.AnnAssign) and ast.unparse(item.annotation) == "TypeAlias":
            choices = _one_line(ast.unparse(item.value or item.target).strip("\"'"))
            meaning = ast.literal_eval(following.value) if _is_string(following) else ""
            yield cast(ast.Name, item.target).id, f"`{choices}`. {_one_line(meaning)}".strip()


def _is_string(statement: ast.stmt) -> TypeGuard[ast.Expr]:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _record(cls: type) -> str:
    prose, meanings = _prose_and_meanings(cls)
    rows = "".join(
        f"| `{item.alias}` | `{_type(item.type)}` | {_default(item.default)} "
        f"| {_cell(meanings.get(item.name, ''))} |\n"
        for item in fields(cast(Any, cls))
        if not item.name.startswith("_")
    )
    table = f"\n| Field | Type | Default | Meaning |\n|---|---|---|---|\n{rows}" if rows else ""
    return f"\n### `{cls.__name__}`\n\n{prose}\n{table}{_methods(cls)}"


def _prose_and_meanings(cls: type) -> tuple[str, dict[str, str]]:
    """Return the docstring without its list of attributes, and what each attribute means."""
    prose, _, listed = (inspect.getdoc(cls) or "").partition("Attributes:")
    meanings = dict(_listed(listed)) | _below_fields(cls)
    return prose.strip(), meanings


def _listed(text: str) -> Iterator[tuple[str, str]]:
    """Yield (name, meaning) from a docstring's list; `a, b: text` is for both."""
    entries: list[str] = []
    for line in dedent(text.strip("\n")).splitlines():
        if line.startswith((" ", "\t")) and entries:
            entries[-1] += f" {line.strip()}"
        elif line.strip():
            entries.append(line.strip())
    for entry in entries:
        names, _, meaning = entry.partition(": ")
        for name in names.split(","):
            yield name.strip(), meaning


def _below_fields(cls: type) -> dict[str, str]:
    """Return the strings that stand below fields in the source."""
    tree = ast.parse(dedent(inspect.getsource(cls)))
    definition = cast(ast.ClassDef, tree.body[0])
    found = {}
    for item, following in pairwise(definition.body):
        if isinstance(item, ast.AnnAssign) and isinstance(following, ast.Expr):
            name, value = cast(ast.Name, item.target).id, cast(ast.Constant, following.value)
            found[name] = str(value.value)
    return found


def _type(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return _cell(text)


def _cell(text: str) -> str:
    return _one_line(text).replace("|", "\\|")


def _default(default: Any) -> str:
    if default is NOTHING:
        return "required"
    if isinstance(default, Factory):  # type: ignore[arg-type]  # a class, but typed as a function
        return "empty"
    if callable(default):
        return f"`{default.__name__}`"
    return f"`{default!r}`".replace("|", "\\|")


def _one_line(text: str) -> str:
    return " ".join(text.split())


# ----------------------------------------------------------------------------------- contracts


def _contract(cls: type) -> str:
    return f"\n### `{cls.__name__}`\n\n{inspect.getdoc(cls) or ''}\n{_methods(cls)}"


def _methods(cls: type) -> str:
    return "".join(_method(name, value) for name, value in vars(cls).items() if _shown(name, value))


def _shown(name: str, value: Any) -> bool:
    if name.startswith("_") and name != "__call__":
        return False
    return inspect.isfunction(value) or isinstance(value, property | staticmethod)


def _method(name: str, value: Any) -> str:
    function: Any = value.fget if isinstance(value, property) else value
    signature = str(inspect.signature(getattr(function, "__func__", function))).replace("'", "")
    if isinstance(value, property):
        signature = signature.partition(")")[2]
    prose, _, raised = (inspect.getdoc(function) or "").partition("Raises:")
    errors = " ".join(f"Raises `{error}`: {reason}" for error, reason in _listed(raised))
    return f"\n- `{name}{signature}`: {_one_line(prose)} {errors}".rstrip() + "\n"


def main(arguments: list[str]) -> None:
    """Write the page to a file, or to standard output."""
    if arguments:
        Path(arguments[0]).write_text(reference(), encoding="utf-8")
    else:
        sys.stdout.write(reference())


if __name__ == "__main__":
    main(sys.argv[1:])
