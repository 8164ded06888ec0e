"""The reports of the graphs that came through the JIT door."""

from __future__ import annotations

import collections
import itertools
import threading
from collections.abc import Callable

from intarsia.report.records import Report

_SERIAL = itertools.count(1)
_KEPT = 256
_reports: collections.deque[Callable[[], Report]] = collections.deque(maxlen=_KEPT)
_lock = threading.Lock()


def numbered(name: str | None) -> str:
    """Return what reports and logs call the next graph."""
    return f"{name or 'graph'}-{next(_SERIAL)}"


def add_report(make: Callable[[], Report]) -> None:
    """Add the report of a graph; it is made anew whenever somebody asks, with the counters as they are."""
    with _lock:
        _reports.append(make)


def reports() -> list[Report]:
    """Return the reports of the graphs that came through `torch.compile`, oldest first (the last 256)."""
    with _lock:
        makers = list(_reports)
    return [make() for make in makers]
