"""Puts other callables in the place of a plan's pieces, between calls."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import define, evolve, field

from intarsia.report.events import EventStream
from intarsia.runtime.bound import BoundBox, Dispatcher, PieceFunction
from intarsia.runtime.uncovered import Uncovered

if TYPE_CHECKING:
    from intarsia.compiling.packages import Packages
    from intarsia.static_graph.stage import StaticGraphs

__all__ = ["Swappable"]


@define(eq=False)
class Swappable:
    """Bound plans whose pieces may be put in the place of others; both front doors have one.

    Attributes:
        is_final: whether the plans stay as they are from now on.
        is_frozen: whether nothing is recorded any more.
        packages: those that are on their way, or None.
        static_graphs: the stage of static graphs, or None where the settings ask for none.
    """

    dispatcher: Dispatcher
    uncovered: Uncovered
    events: EventStream
    is_final: bool = field(default=False, init=False)
    is_frozen: bool = field(default=False, init=False)
    packages: Packages | None = field(default=None, init=False)
    static_graphs: StaticGraphs | None = field(default=None, init=False)
    _lock: threading.RLock = field(factory=threading.RLock, init=False, repr=False)

    @property
    def lock(self) -> threading.RLock:
        """What is held while plans are bound, swapped or recorded; taken before a pool's lock."""
        return self._lock

    def swap(self, functions: Mapping[int, PieceFunction]) -> bool:
        """Put others in the place of pieces, given by the id of the callable; says whether that was done.

        Whole new bound plans are made beside the old ones and put in at once: a call that runs goes on in
        the old ones.
        """
        with self._lock:
            if self.is_final:
                return False
            boxes = tuple(_swapped(box, functions) for box in self.dispatcher.boxes)
            self.dispatcher.boxes = self.uncovered.boxes = boxes
            self.dispatcher.forget()
        self.events.count("swap")
        return True

    def freeze(self, packages: bool) -> None:
        """Record nothing from now on, and swap nothing but what `packages` lets be finished."""
        self.is_frozen = True
        if not packages:
            self.end()

    def end(self) -> None:
        """Stop what is on its way, and keep the plans as they are from now on."""
        with self._lock:
            self.is_final = self.is_frozen = True
        if self.packages is not None:
            self.packages.cancel()


def _swapped(box: BoundBox, functions: Mapping[int, PieceFunction]) -> BoundBox:
    watches = {id(f.callable): f.watch and f.watch.anew() for f in box.functions.values()}
    mine = {
        i: evolve(functions[old], watch=watches[old]) if (old := id(f.callable)) in functions else f
        for i, f in box.functions.items()
    }
    made = BoundBox(box.planned, box.plan, mine, box.check, box.name,
                    on_checked=box.on_checked, on_converted=box.on_converted)  # fmt: skip
    made.verification = box.verification
    made.bind(box.weights)
    return made
