"""Puts other callables in the place of a plan's pieces, between calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from intarsia.runtime.bound import BoundBox, Dispatcher, PieceFunction
from intarsia.runtime.uncovered import Uncovered


def put_in(
    functions: Mapping[int, PieceFunction], dispatcher: Dispatcher, uncovered: Uncovered,
    on_converted: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Put others in the place of pieces, given by the id of the callable.

    Whole new bound plans are made beside the old ones and put in at once: a call that runs goes on in the
    old ones.
    """

    def swapped(box: BoundBox) -> BoundBox:
        mine = {i: functions.get(id(f.callable), f) for i, f in box.functions.items()}
        made = BoundBox(box.planned, box.plan, mine, box.check, box.name,
                        on_checked=dispatcher.forget, on_converted=on_converted)  # fmt: skip
        made.bind(box.weights)
        return made

    boxes = tuple(swapped(box) for box in dispatcher.boxes)
    dispatcher.boxes = uncovered.boxes = boxes
    dispatcher.forget()
