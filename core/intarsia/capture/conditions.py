"""Where a captured graph is valid: its conditions against a box.

A graph that was traced at one size took the branches of that size. Every condition that tracing noted
must hold over the whole of a box, or the box is refused with the condition and its source line.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from intarsia import torch_compat
from intarsia.capture.graph import Condition, Graph
from intarsia.errors import ShapeError
from intarsia.interfaces import Box

_ENUMERATED = 1 << 14
"""Boxes of at most so many points are tried point by point where interval arithmetic has no answer."""


def text_of(condition: Condition, graph: Graph) -> str:
    """Return a condition with the user's names: "n > 10"."""
    return torch_compat.readable(condition.expression, graph.names)


def violations(graph: Graph, box: Box) -> list[Condition]:
    """Return the conditions that do not hold, or cannot be shown to hold, over a whole box."""
    ranges = _ranges(graph, box)
    return [c for c in graph.conditions if holds(c.expression, ranges) is not True]


def _ranges(graph: Graph, box: Box) -> dict[Any, tuple[int, int]]:
    found: dict[Any, tuple[int, int]] = {}
    for symbol, name in graph.names.items():
        known = graph.symbols.get(name)
        if known is None:
            continue  # replaced by other symbols, also in the conditions
        top = torch_compat.UNBOUNDED if known.high is None else known.high
        found[symbol] = tuple(box.get(name, (known.low, top)))  # type: ignore[assignment]
    return found


def holds(expression: Any, ranges: Mapping[Any, tuple[int, int]]) -> bool | None:
    """Say whether a condition holds on a whole box: yes, not everywhere, or None for "cannot tell"."""
    points = {s: low for s, (low, high) in ranges.items() if low == high}
    reduced = expression.xreplace({s: torch_compat.integer(v) for s, v in points.items()})
    if reduced in (True, False, torch_compat.TRUE, torch_compat.FALSE):
        return bool(reduced)
    free = [s for s in reduced.free_symbols if s in ranges]
    answer = torch_compat.bounds_of(reduced, {s: ranges[s] for s in free})
    if answer.is_singleton():
        return bool(answer.lower)
    return _by_points(reduced, free, ranges)


def _by_points(
    expression: Any, free: Sequence[Any], ranges: Mapping[Any, tuple[int, int]]
) -> bool | None:
    count = 1
    for symbol in free:
        count *= ranges[symbol][1] - ranges[symbol][0] + 1
    if count > _ENUMERATED:
        return None
    spans = [range(ranges[s][0], ranges[s][1] + 1) for s in free]
    test = torch_compat.as_function(expression, free)
    return all(test(*values) for values in itertools.product(*spans))


def fixing_condition(graph: Graph, name: str) -> Condition | None:
    """Return the condition that leaves a symbol only one size, or None."""
    symbols = {s for s, n in graph.names.items() if n == name}
    for condition in graph.conditions:
        if torch_compat.fixed_symbol(condition.expression) in symbols:
            return condition
    return None


def widest_box(graph: Graph, planned: Box) -> Box:
    """Return a box around the traced sizes, inside another one, in which every condition holds."""
    hints = {n: min(max(graph.symbols[n].hint, low), high) for n, (low, high) in planned.items()
             if n in graph.symbols}  # fmt: skip
    box: dict[str, tuple[int, int]] = {n: (hint, hint) for n, hint in hints.items()}
    for name, (low, high) in planned.items():
        if name not in hints:  # this graph was captured at one size of it
            box[name] = (low, high)
            continue
        hint = hints[name]
        top = _furthest(lambda end: {**box, name: (hint, end)}, graph, hint, high)  # noqa: B023
        box[name] = (hint, top)
        bottom = _furthest(lambda end: {**box, name: (end, top)}, graph, hint, low)  # noqa: B023
        box[name] = (bottom, top)
    return box


def _furthest(box_to: Callable[[int], Box], graph: Graph, start: int, end: int) -> int:
    """Return how far from `start` towards `end` a box can reach; a part of a valid box is valid."""
    if not violations(graph, box_to(end)):
        return end
    step, good = 1, start
    sign = 1 if end > start else -1
    while abs(good - start) + step < abs(end - start) and not violations(
        graph, box_to(start + sign * (abs(good - start) + step))
    ):
        good = start + sign * (abs(good - start) + step)
        step *= 2
    while step:  # the last step that worked, made exact by halving
        reach = abs(good - start) + step
        if reach < abs(end - start) and not violations(graph, box_to(start + sign * reach)):
            good = start + sign * reach
        else:
            step //= 2
    return good


def refusal(graph: Graph, box: Box, broken: Iterable[Condition]) -> ShapeError:
    """Return the error for a box and the conditions that it breaks."""
    first = next(iter(broken))
    return ShapeError(
        f"the graph is not valid for the box {describe_box(box)}",
        why=f"tracing took the branch where {text_of(first, graph)} at {first.where}",
        next_step="Ask for boxes on one side of that condition, or take the branch out of the model.",
        subject=describe_box(box),
    )


def describe_box(box: Box) -> str:
    """Return a box for a reader: "{batch: 4, tokens: 1..8}"."""
    parts = []
    for name, (low, high) in sorted(box.items()):
        end = "" if high >= torch_compat.UNBOUNDED else str(high)
        parts.append(f"{name}: {low}" if low == high else f"{name}: {low}..{end}")
    return "{" + ", ".join(parts) + "}"
