"""Shape boxes for a reader."""

from __future__ import annotations

from intarsia.interfaces import Box

UNBOUNDED = (1 << 63) - 1
"""The upper end of a range without one."""


def describe_box(box: Box) -> str:
    """Return a box for a reader: "{batch: 4, tokens: 1..8}"."""
    parts = []
    for name, (low, high) in sorted(box.items()):
        end = "" if high >= UNBOUNDED else str(high)
        parts.append(f"{name}: {low}" if low == high else f"{name}: {low}..{end}")
    return "{" + ", ".join(parts) + "}"
