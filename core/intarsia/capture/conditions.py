"""Where a captured graph is valid: its conditions against a box.

A graph that was traced at one size took the branches of that size. Every condition that tracing noted
must hold over the whole of a box, or the box is refused with the condition and its source line.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from intarsia import torch_compat
from intarsia.boxes_text import describe_box
from intarsia.capture.graph import Condition, Graph
from intarsia.errors import ShapeError
from intarsia.interfaces import Box
from intarsia.runtime.size_test import SizeTest

_ENUMERATED = 1 << 14
"""Boxes of at most so many points are tried point by point where interval arithmetic has no answer."""


def text_of(condition: Condition, graph: Graph) -> str:
    """Return a condition with the user's names: "n > 10"."""
    return torch_compat.readable(condition.expression, graph.names)


def violations(graph: Graph, box: Box) -> list[Condition]:
    """Return the conditions that do not hold, or cannot be shown to hold, over a whole box."""
    ranges = ranges_of(graph, box)
    return [c for c in graph.conditions if holds(c.expression, ranges) is not True]


def ranges_of(graph: Graph, box: Box) -> dict[Any, tuple[int, int]]:
    """Return what values a graph's symbols have in a box."""
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


def narrowed(graph: Graph, planned: Box, broken: Sequence[Condition]) -> Box:
    """Return a box without the ends at which a broken condition fails for good.

    What a condition excludes in between (multiples of 8) a box cannot say: see `predicate`.
    """
    box = dict(planned)
    for condition in broken:
        reach = _widest(graph, planned, condition)
        for name, (low, high) in planned.items():
            bottom, top = reach[name]
            tests = [range(top + 1, min(high, top + _SAMPLES) + 1), range(low, bottom)[-_SAMPLES:]]
            fails = [not any(_at(graph, condition, {name: n}) for n in test) for test in tests]
            box[name] = (max(box[name][0], bottom if fails[1] else low),
                         min(box[name][1], top if fails[0] else high))  # fmt: skip
    return box


def predicate(graph: Graph, box: Box, broken: Sequence[Condition]) -> SizeTest | None:
    """Return a test of a call's sizes, or None where a condition is about more than these."""
    symbols = {s: n for s, n in graph.names.items() if n in box}
    if any(set(c.expression.free_symbols) - set(symbols) for c in broken):
        return None
    sources = [torch_compat.function_source(c.expression, list(symbols)) for c in broken]
    return SizeTest(tuple(symbols.values()), tuple(sources))


def nearly_fixed(
    graph: Graph, planned: Box, box: Box, test: Callable[[Mapping[str, int]], bool]
) -> str | None:
    """Return a symbol that is dynamic in name only: next to none of its sizes pass a test, or None."""
    hints = {n: graph.symbols[n].hint if n in graph.symbols else low for n, (low, _) in box.items()}
    for name, (low, high) in box.items():
        if planned[name][1] - planned[name][0] < _FEW:
            continue
        sizes = range(low, min(high, low + _ENUMERATED) + 1)
        passing = (n for n in sizes if test({**hints, name: n}))
        if len(list(itertools.islice(passing, _FEW))) < _FEW:
            return name
    return None


_FEW = 4
"""A symbol with fewer sizes than this is refused: whoever called it dynamic wants more."""

_SAMPLES = 64
"""So many sizes beyond the end of a box must all break a condition for the end to be one."""


def _at(graph: Graph, condition: Condition, sizes: Mapping[str, int]) -> bool:
    """Say whether a condition holds at some sizes, the other symbols as they were while tracing."""
    point = {s: torch_compat.integer(sizes.get(n, graph.symbols[n].hint))
             for s, n in graph.names.items() if n in graph.symbols}  # fmt: skip
    return condition.expression.xreplace(point) in (True, torch_compat.TRUE)


def _widest(graph: Graph, planned: Box, condition: Condition) -> dict[str, tuple[int, int]]:
    """Return a box around the traced sizes, inside another one, in which a condition holds throughout."""
    box: dict[str, tuple[int, int]] = {}
    for name, (low, high) in planned.items():
        known = graph.symbols.get(name)
        hint = low if known is None else min(max(known.hint, low), high)
        box[name] = (hint, hint)
    for name, (low, high) in planned.items():
        if name in graph.symbols:  # else the graph was captured at one size of it
            hint = box[name][0]
            top = _furthest(graph, condition, box, name, hint, high)
            box[name] = (_furthest(graph, condition, box, name, hint, low), top)
    return box


def _furthest(graph: Graph, condition: Condition, box: Box, name: str, start: int, end: int) -> int:
    """Return how far from `start` towards `end` a box can reach; a part of a valid box is valid."""
    sign = 1 if end >= start else -1

    def works(reach: int) -> bool:
        bounds = tuple(sorted((start, start + sign * reach)))
        return holds(condition.expression, ranges_of(graph, {**box, name: bounds})) is True  # type: ignore[dict-item]

    whole = abs(end - start)
    if works(whole):
        return end
    step, good = 1, 0
    while good + step < whole and works(good + step):
        good += step
        step *= 2
    while step:  # the last step that worked, made exact by halving
        if good + step < whole and works(good + step):
            good += step
        else:
            step //= 2
    return start + sign * good


def refusal(graph: Graph, box: Box, broken: Iterable[Condition]) -> ShapeError:
    """Return the error for a box and the conditions that it breaks."""
    first = next(iter(broken))
    return ShapeError(
        f"the graph is not valid for the box {describe_box(box)}",
        why=f"tracing took the branch where {text_of(first, graph)} at {first.where}",
        next_step="Ask for boxes on one side of that condition, or take the branch out of the model.",
        subject=describe_box(box),
    )


def only_about_one(expression: Any) -> bool:
    """Say whether a condition excludes nothing but sizes 0 and 1.

    Where an operator and not the model asked, such a condition is an artefact: the kernel takes another
    path inside for size 1, and its result is the same.
    """
    ranges = dict.fromkeys(expression.free_symbols, (2, torch_compat.UNBOUNDED))
    return holds(expression, ranges) is True
