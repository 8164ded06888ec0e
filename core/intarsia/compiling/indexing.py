"""How large tensors may be: kernels of accelerators index with 32 bits.

A compiler that does so (Inductor and its Triton kernels) relies on every size of the box for that. A box
without an end has none that it could rely on, so here it gets one: where a tensor of the graph has too many
elements, no artifact is called.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from attrs import evolve

from intarsia import torch_compat
from intarsia.capture import nodes
from intarsia.capture.conditions import holds, predicate, ranges_of
from intarsia.capture.graph import Condition, Graph
from intarsia.compiling.boxes import PlannedBox
from intarsia.interfaces import Box
from intarsia.runtime.size_test import SizeTest

__all__ = ["INDEXED", "MOST_ELEMENTS", "counts_of", "follows", "indexable"]

INDEXED = 2**31 - 1
"""The highest index of 32 bits."""

MOST_ELEMENTS = 3 << 29
"""How many elements a tensor of a compiled call has at most: three quarters of `INDEXED`, since compilers
make rows longer for alignment."""


def indexable(graph: Graph, planned: PlannedBox, device_type: str) -> PlannedBox:
    """Return a box without sizes at which a tensor of the graph has more than `MOST_ELEMENTS`.

    What it leaves out of a box is outside every box for a call: `uncovered` says what happens. A tensor that
    is too large at the box's lowest sizes is left to the compilers, and so is everything on the CPU.
    """
    if device_type == "cpu":
        return planned
    low = {name: lowest for name, (lowest, _) in planned.box.items()}
    lowest = {name: (size, size) for name, size in low.items()}
    broken = [
        c for c in _conditions(graph, planned.box)
        if not _kept(graph, c, planned.box) and _kept(graph, c, lowest)
    ]  # fmt: skip
    test = predicate(graph, planned.box, broken)
    if not broken or test is None:
        return planned
    box = {name: (bounds[0], _end(test, low, name, bounds)) for name, bounds in planned.box.items()}
    left = [c for c in broken if not _kept(graph, c, box)]
    return evolve(planned, box=box, test=_both(planned.test, predicate(graph, box, left)))


def counts_of(values: Iterable[Any]) -> list[Any]:
    """Return how many elements the tensors among some values have.

    Of counts that differ by a factor only the largest is there.
    """
    largest: dict[Any, Any] = {}
    for tensor in (tensor for value in values for tensor in _tensors(value)):
        count = torch_compat.expression_of(tensor.numel())
        if isinstance(count, int):
            continue
        factor, rest = count.as_coeff_Mul()
        largest[rest] = max(factor, largest.get(rest, factor))
    return [factor * rest for rest, factor in largest.items()]


def follows(condition: Any, counts: Sequence[Any], ranges: Mapping[Any, tuple[int, int]]) -> bool:
    """Say whether a condition holds at all sizes at which no count is above `MOST_ELEMENTS`.

    Args:
        counts: expressions over the symbols in `ranges`, as `counts_of` returns them.
        ranges: the lowest and highest value of each symbol.

    The sizes are cut into cells. Counts and conditions that rise with sizes are answered for a whole cell at
    its corners: from the lowest sizes of all symbols but one follows how far that one reaches, and there, at
    the highest sizes of the others, the condition has to hold.
    """
    bound = torch_compat.upper_bound(condition)
    if bound is None:
        return False
    expression, most = bound
    asked = sorted((s for s in ranges if s in expression.free_symbols), key=lambda s: ranges[s][1])
    if not 0 < len(asked) <= _MOST_SYMBOLS:
        return False
    *others, last = asked
    # A symbol that the condition leaves out bounds least where it is lowest.
    rest = {s: torch_compat.integer(low) for s, (low, _) in ranges.items() if s not in asked}
    value = torch_compat.as_function(expression, asked)
    per_unit = [count.xreplace(rest) / last for count in counts if torch_compat.rises(count)]
    factors = [
        torch_compat.as_function(factor, others)
        for factor in per_unit if last not in factor.free_symbols
    ]  # fmt: skip
    lowest, highest = ranges[last]
    for cell in itertools.product(*(_cells(*ranges[symbol]) for symbol in others)):
        lows = [low for low, _ in cell]
        reach = min([highest, *(MOST_ELEMENTS // max(factor(*lows), 1) for factor in factors)])
        if reach >= lowest and value(*(high for _, high in cell), reach) > most:
            return False
    return True


_MOST_SYMBOLS = 3
_CELL = 1.05
"""How much larger than its lowest size the highest size of a cell is."""


def _cells(low: int, high: int) -> list[tuple[int, int]]:
    found = []
    while low <= high:
        end = min(high, int(low * _CELL))
        found.append((low, end))
        low = end + 1
    return found


def _conditions(graph: Graph, box: Mapping[str, Any]) -> list[Condition]:
    values = [nodes.value_of(node) for node in graph.module.graph.nodes]
    known = {symbol for symbol, name in graph.names.items() if name in box}
    return [
        Condition(torch_compat.at_most(count, MOST_ELEMENTS), "")
        for count in counts_of(values) if count.free_symbols <= known
    ]  # fmt: skip


def _tensors(value: Any) -> Iterable[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _kept(graph: Graph, condition: Condition, box: Box) -> bool:
    return holds(condition.expression, ranges_of(graph, box)) is True


def _end(test: SizeTest, low: Mapping[str, int], name: str, bounds: tuple[int, int]) -> int:
    """Return the highest size of a symbol that passes a test while the others are lowest.

    The search takes counts to rise with sizes; where one does not, a part of the box is lost.
    """
    good, bad = bounds[0], bounds[1] + 1
    while bad - good > 1:
        middle = (good + bad) // 2
        if test({**low, name: middle}):
            good = middle
        else:
            bad = middle
    return good


def _both(test: Any, more: SizeTest | None) -> Any:
    """Return what says whether sizes pass two tests of one graph and box, whose names are the same then."""
    if more is None or not more.sources:
        return test
    return more if test is None else SizeTest(more.names, (*test.sources, *more.sources))
