"""Puts a compiled model together from its front and its bound plans: the same for made and loaded ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from intarsia.bundle.front import Front
from intarsia.capture.frozen import FrozenValue
from intarsia.compiled import Engine
from intarsia.report.events import EventStream
from intarsia.report.records import Report, with_counters
from intarsia.runtime.bound import BoundBox, Dispatcher
from intarsia.runtime.uncovered import Uncovered, eager_forward


def assemble(
    front: Front, boxes: Sequence[BoundBox], *, model: Any, name: str, events: EventStream,
    make_frozen: Callable[[], Sequence[FrozenValue]], make_report: Callable[[], Report],
    explain: Callable[[Report, Mapping[str, str]], str],
) -> Engine:  # fmt: skip
    """Return what is behind a compiled model.

    Args:
        front: the entry and the contract of a call.
        boxes: the bound plans, best first.
        model: what runs eagerly where no box fits.
        name: the model's name in messages.
        events: counts what happens on calls.
        make_frozen: returns the Python values that tracing read.
        make_report: returns the report of the compile.
        explain: turns a report, and sources to print, into text.
    """
    entry = front.entry
    parameters = front.tree.parameters
    uncovered = Uncovered(
        front.policy, name, parameters, front.tensors, entry.symbols, boxes, front.padded, events,
        eager_forward(model, parameters, len(front.tensors)),
    )  # fmt: skip
    dispatcher = Dispatcher(entry.symbols, boxes, uncovered)
    for box in boxes:
        box.on_checked = dispatcher.forget

    def report() -> Report:
        return with_counters(make_report(), events)

    return Engine(
        dispatcher, uncovered, events, name, model, entry, front.tree, front.tensors, make_frozen, report,
        lambda code: explain(report(), front.sources(dispatcher.boxes) if code else {}),
    )  # fmt: skip
