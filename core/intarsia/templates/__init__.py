"""The distributions that `intarsia new` writes, as text with `${words}` in it.

Each kind is a folder; `common` belongs to all of them. The file `src.__module__.steps.py.tmpl` becomes
`src/MODULE/steps.py`, so a template has no folders and its words may stand in its path too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from string import Template

__all__ = ["KINDS", "render"]

KINDS = ("compiler", "platform", "passes")
"""What a plugin may bring from a template; each is a folder here."""

_SUFFIX = ".tmpl"


def render(kind: str, words: Mapping[str, str]) -> dict[str, str]:
    """Return path -> text of a distribution.

    Args:
        kind: one of `KINDS`.
        words: what stands for each `${word}`; "module" is part of paths too.
    """
    return {
        path.replace("__module__", words["module"]): Template(text).substitute(words)
        for path, text in _sources(kind)
    }


def _sources(kind: str) -> Iterator[tuple[str, str]]:
    for folder in ("common", kind):
        for file in sorted(files(__name__).joinpath(folder).iterdir(), key=lambda item: item.name):
            if file.name.endswith(_SUFFIX):
                yield _path(file.name.removesuffix(_SUFFIX)), file.read_text("utf-8")


def _path(name: str) -> str:
    """Return the path that a template's name stands for: its last dot is the one of the suffix."""
    stem, _, suffix = name.rpartition(".")
    return f"{stem.replace('.', '/')}.{suffix}"
