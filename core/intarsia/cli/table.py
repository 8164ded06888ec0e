"""Prints tables and JSON. Plain text: the same on a terminal, in a file and in a log."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["print_json", "print_table", "render_table"]


def print_json(data: Any) -> None:
    """Print JSON-able data to standard output."""
    json.dump(data, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows under column names."""
    print(render_table(columns, rows))


def render_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return rows under column names as aligned text; numbers stand to the right.

    A column that is empty in every row is left out.
    """
    body = [list(row) for row in rows]
    kept = [
        index
        for index in range(len(columns))
        if not body or any(row[index] not in ("", None) for row in body)
    ]
    texts = [[columns[i] for i in kept], *([_text(row[i]) for i in kept] for row in body)]
    right = [bool(body) and all(_is_number(row[i]) for row in body) for i in kept]
    widths = [max(len(line[c]) for line in texts) for c in range(len(kept))]
    return "\n".join(_line(line, widths, right) for line in texts)


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = (
        cell.rjust(width) if to_right else cell.ljust(width)
        for cell, width, to_right in zip(cells, widths, right, strict=True)
    )
    return "  ".join(padded).rstrip()


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return _decimal(value)
    return " ".join(str(value).split())


def _decimal(value: float) -> str:
    """Return a number with about three digits that matter."""
    size = abs(value)
    if size == 0 or size >= 100:
        return f"{value:.0f}"
    if size < 1e-3:
        return f"{value:.1e}"
    return f"{value:.2f}" if size >= 1 else f"{value:.3f}"
