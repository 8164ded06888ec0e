"""What the summaries of two processes differ in, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

Summary = Mapping[str, str]
"""Fact -> its value."""
Notes = Mapping[str, str]
"""Fact -> why it is so, for a message; not compared."""

_NOTE = 200


def difference(left: Summary, right: Summary, why_left: Notes, why_right: Notes) -> Iterator[str]:
    """Tell what two summaries differ in; a line has {left} and {right} for the names of the processes."""
    for name in dict.fromkeys([*left, *right]):
        if left.get(name) != right.get(name):
            there = _shown(name, left, why_left)
            here = _shown(name, right, why_right)
            yield f"{_safe(name)}: {there} {{left}} and {here} {{right}}"


def _shown(name: str, summary: Summary, why: Notes) -> str:
    value = summary.get(name, "not there")
    return _safe(f"{value} ({why[name][:_NOTE]})" if name in why else value)


def _safe(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
