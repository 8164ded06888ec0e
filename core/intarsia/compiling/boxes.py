"""Shape boxes: from what config asks for to the boxes that are compiled, and the box for a call."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from attrs import field, frozen

from intarsia.capture.graph import Symbol
from intarsia.config import Config
from intarsia.errors import ConfigError, nearest
from intarsia.interfaces import Box
from intarsia.torch_compat import UNBOUNDED


@frozen
class PlannedBox:
    """One box to compile, and why: a range, a size, an explicit box, or the general box.

    Attributes:
        test: says which sizes in the general box the graph is valid for; None: all.
        hints: sizes inside the box that pass the test, for compilers that want an example.
    """

    box: Box
    origin: Literal["range", "size", "explicit", "general"]
    test: Callable[[Mapping[str, int]], bool] | None = field(default=None, eq=False, repr=False)
    hints: Mapping[str, int] = field(factory=dict, eq=False, repr=False)

    @property
    def points(self) -> int:
        """How many combinations of sizes the box holds."""
        count = 1
        for low, high in self.box.values():
            count *= high - low + 1
        return count

    def holds(self, values: Mapping[str, int]) -> bool:
        """Say whether the box contains a combination of sizes."""
        inside = all(low <= values[name] <= high for name, (low, high) in self.box.items())
        return inside and (self.test is None or self.test(values))

    @property
    def is_point(self) -> bool:
        """Say whether the box has one point."""
        return all(low == high for low, high in self.box.values())


def plan_boxes(config: Config, symbols: Mapping[str, Symbol]) -> tuple[PlannedBox, ...]:
    """Return the boxes to compile, best first: a size beats a range, then the fewest points win.

    Boxes and sizes of different symbols combine as a product. The general box comes last, and only
    where `uncovered = "general"` and the others leave something out, or where nothing else is asked.

    Raises:
        ConfigError: config names a symbol that the graph does not have.
    """
    free = {name: s for name, s in symbols.items() if s.dispatch}
    _refuse_unknown(config, free)
    general = PlannedBox({name: full_range(s) for name, s in free.items()}, "general")
    asked = _explicit(config, free) if config.box else _product(config, free)
    asked = [b for b in asked if b.box]
    if not asked or asked == [general]:
        return (general,)
    ordered = sorted(asked, key=lambda b: (b.origin != "size", b.points))
    if config.uncovered == "general" and not _covers(ordered, general):
        ordered.append(general)
    return tuple(ordered)


def full_range(symbol: Symbol) -> tuple[int, int]:
    """Return all that the contract allows of a symbol, except 0, which no artifact is made for."""
    return max(symbol.low, 1), UNBOUNDED if symbol.high is None else symbol.high


def _refuse_unknown(config: Config, free: Mapping[str, Symbol]) -> None:
    named = {*config.boxes, *config.sizes, *config.dynamic_ranges, *itertools.chain(*config.box)}
    for name in sorted(named - set(free)):
        raise ConfigError(
            f'boxes, sizes or ranges name the symbol "{name}", which the graph does not have',
            why="no dynamic dimension goes by that name, or tracing fixed it",
            next_step=nearest(name, free),
            subject=name,
        )


def _product(config: Config, free: Mapping[str, Symbol]) -> list[PlannedBox]:
    choices: list[list[tuple[str, tuple[int, int], str]]] = []
    for name, symbol in free.items():
        full = full_range(symbol)
        found = [(name, bounds, "range") for bounds in _ranges(config.boxes.get(name, ()), full)]
        found += [(name, (size, size), "size") for size in config.sizes.get(name, ())
                  if full[0] <= size <= full[1]]  # fmt: skip
        choices.append(found or [(name, full, "range")])
    if not (config.boxes or config.sizes):
        return []
    made: dict[str, PlannedBox] = {}
    for combination in itertools.product(*choices):
        box = {name: bounds for name, bounds, _ in combination}
        is_size = any(kind == "size" for _, _, kind in combination)
        made.setdefault(repr(box), PlannedBox(box, "size" if is_size else "range"))
    return list(made.values())


def _ranges(endpoints: Sequence[int], full: tuple[int, int]) -> list[tuple[int, int]]:
    found = []
    low = full[0]
    for end in sorted(endpoints):
        if end >= low:
            found.append((low, min(end, full[1])))
            low = end + 1
    return [(a, b) for a, b in found if a <= b]


def _explicit(config: Config, free: Mapping[str, Symbol]) -> list[PlannedBox]:
    made = []
    for table in config.box:
        box = {n: table.get(n, full_range(s)) for n, s in free.items()}
        origin: Literal["size", "explicit"] = (
            "size" if all(low == high for low, high in box.values()) else "explicit"
        )
        made.append(PlannedBox(box, origin))
    return made


def _covers(boxes: Sequence[PlannedBox], whole: PlannedBox) -> bool:
    """Say whether boxes together contain every point of another."""
    names = list(whole.box)
    cuts = [_cells([b.box[n] for b in boxes], whole.box[n]) for n in names]
    for cell in itertools.product(*cuts):
        corner = dict(zip(names, cell, strict=True))
        if not any(b.holds(corner) for b in boxes):
            return False
    return True


def _cells(spans: Iterable[tuple[int, int]], whole: tuple[int, int]) -> list[int]:
    """Return one representative value of every interval that the spans cut a range into."""
    starts = {whole[0]}
    for low, high in spans:
        starts.update(v for v in (low, high + 1) if whole[0] <= v <= whole[1])
    return sorted(starts)
