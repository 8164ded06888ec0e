"""What a phase of recording did, as a table."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

from attrs import asdict, frozen

from intarsia.static_graph.step import Mode

Status = Literal["recorded", "partly", "failed", "dropped"]


@frozen
class Row:
    """What came of one size, key and mode.

    Attributes:
        sizes: symbol -> size.
        status: "partly" where some pieces could not be recorded and run as they are.
        recordings: how many were made.
        cost: what they take of each resource.
        reason: why something was not recorded, or "".
    """

    sizes: Mapping[str, int]
    key: Hashable
    mode: Mode
    status: Status
    recordings: int = 0
    cost: Mapping[str, int] = {}
    seconds: float = 0.0
    reason: str = ""


@frozen
class RecordTable:
    """What a phase of recording did; printed, it is a table.

    Attributes:
        rows: in the order in which sizes were recorded, the largest first.
        budget: what there was of each resource.
        used: what the recordings of the pool take of it by now.
    """

    rows: tuple[Row, ...]
    budget: Mapping[str, int]
    used: Mapping[str, int]

    @property
    def recordings(self) -> int:
        """How many recordings were made."""
        return sum(row.recordings for row in self.rows)

    @property
    def dropped(self) -> tuple[Row, ...]:
        """What the budget had no room for."""
        return tuple(row for row in self.rows if row.status == "dropped")

    def to_dict(self) -> dict[str, Any]:
        """Return the table as JSON-able data; keys become text."""
        rows = [{**asdict(row), "sizes": dict(row.sizes), "cost": dict(row.cost),
                 "key": None if row.key is None else str(row.key)} for row in self.rows]  # fmt: skip
        return {"rows": rows, "budget": dict(self.budget), "used": dict(self.used)}

    def __str__(self) -> str:
        head = ("sizes", "key", "mode", "status", "recordings", "cost", "ms", "reason")
        lines = [head, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[n]) for line in lines) for n in range(len(head))]
        text = [
            "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        left = ", ".join(f"{n} {self.used.get(n, 0)} of {v}" for n, v in self.budget.items())
        return "\n".join([*text, f"used: {left}" if left else "no budget"])


def amounts(cost: Mapping[str, int]) -> str:
    """Return amounts of resources for a reader."""
    return ", ".join(f"{name} {amount}" for name, amount in cost.items())


def shown_sizes(sizes: Mapping[str, int]) -> str:
    """Return sizes for a reader."""
    return ", ".join(f"{name} = {size}" for name, size in sizes.items()) or "fixed sizes"


def _cells(row: Row) -> Sequence[str]:
    return (shown_sizes(row.sizes), "" if row.key is None else str(row.key), row.mode, row.status,
            str(row.recordings), amounts(row.cost), f"{row.seconds * 1e3:.1f}", row.reason)  # fmt: skip
