"""The report of a compiled model, as frozen records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import asdict, evolve, frozen

from intarsia.passes.totals import PassTotal
from intarsia.report.events import EventStream


@frozen
class Attempt:
    """One compiler that was asked for a piece and a box.

    Attributes:
        outcome: "compiled", "rejected" or "failed".
        reason: why it did not compile, or its note.
    """

    compiler: str
    outcome: str
    reason: str = ""
    seconds: float = 0.0


@frozen
class BoxReport:
    """What was compiled for a piece and a box.

    Attributes:
        box: symbol -> (low, high) under the user's names.
        compiler: who compiled it; "" for a piece that runs as it is.
        shared: whether an equal piece had been compiled already.
        attempts: every compiler asked, in order.
    """

    box: Mapping[str, tuple[int, int]]
    compiler: str
    shared: bool = False
    note: str = ""
    attempts: tuple[Attempt, ...] = ()


@frozen
class PieceReport:
    """One piece.

    Attributes:
        key: the digest of its canonical form: equal pieces share it; "" where it has none.
        requested: the compilers asked for, in order.
        compiler: what runs, "as it is" for a splitting piece without a compiler.
        reason: who chose the compilers.
        source: the user's source lines that the piece comes from.
    """

    index: int
    name: str
    kind: str
    ops: tuple[str, ...]
    key: str
    requested: tuple[str, ...]
    compiler: str
    reason: str
    boxes: tuple[BoxReport, ...]
    inputs: int
    outputs: int
    nodes: int
    modules: tuple[str, ...] = ()
    source: tuple[str, ...] = ()


@frozen
class Setting:
    """A setting as asked for and as in effect, and why they differ."""

    key: str
    requested: Any
    effective: Any
    origin: str
    reason: str = ""


@frozen
class Report:
    """What a compile did, and what has happened on calls since.

    Attributes:
        pieces: how many pieces; `piece_reports` has one record for each.
        compiled_pieces: how many went to a compiler.
        distinct: how many different ones there are among them.
        compiler_calls: how often a compiler was asked and compiled.
        captures: graphs traced (a branch that only size 1 takes needs a second).
        traces: frames that Dynamo traced, regions included.
        fallbacks: how many (piece, box) tasks did not get the first compiler of their route.
        seconds: phase -> seconds.
        counters: what happened on calls: "uncovered", "relayout", "rebind"...; and "miss"es of the cache.
        bundle_reads: how many bundles were read: 1 where the whole plan was loaded.
        misses: how often the cache did not have what was looked for.
        recordings: how many static graphs there are.
        hits: how many compiled pieces the cache had.
        passes: how often each graph pass matched over the whole graph, for each box.
        reasons: counters with their reason.
    """

    name: str
    torch: str
    platform: str
    device: str
    pieces: int
    compiled_pieces: int
    distinct: int
    compiler_calls: int
    captures: int
    traces: int
    fallbacks: int
    boxes: tuple[Mapping[str, tuple[int, int]], ...]
    seconds: Mapping[str, float]
    piece_reports: tuple[PieceReport, ...]
    settings: tuple[Setting, ...] = ()
    warnings: tuple[str, ...] = ()
    counters: Mapping[str, int] = {}
    reasons: Mapping[str, int] = {}
    bundle_reads: int = 0
    recordings: int = 0
    misses: int = 0
    hits: int = 0
    passes: tuple[PassTotal, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-able data."""
        return asdict(self, value_serializer=_plain)


def _plain(_instance: Any, _attribute: Any, value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    return value


def with_counters(report: Report, events: EventStream) -> Report:
    """Return a report with the counters and times as they are now."""
    return evolve(report, seconds=dict(events.seconds), counters=dict(events.counters),
                  reasons=dict(events.reasons), misses=events.counters.get("miss", 0),
                  recordings=events.counters.get("recordings", 0))  # fmt: skip


def report_from_dict(data: Mapping[str, Any]) -> Report:
    """Return the report of `Report.to_dict`'s data, also of data that went through JSON."""
    return Report(**{
        **data,
        "boxes": tuple(_box(box) for box in data["boxes"]),
        "piece_reports": tuple(_piece(piece) for piece in data["piece_reports"]),
        "settings": tuple(Setting(**setting) for setting in data["settings"]),
        "warnings": tuple(data["warnings"]),
        "passes": tuple(_pass(total) for total in data["passes"]),
    })  # fmt: skip


def _box(data: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    return {name: (low, high) for name, (low, high) in data.items()}


def _pass(data: Mapping[str, Any]) -> PassTotal:
    return PassTotal(**{**data, "failures": tuple(data["failures"])})


def _piece(data: Mapping[str, Any]) -> PieceReport:
    names = ("ops", "requested", "modules", "source")
    return PieceReport(**{
        **data, **{name: tuple(data[name]) for name in names},
        "boxes": tuple(_box_report(box) for box in data["boxes"]),
    })  # fmt: skip


def _box_report(data: Mapping[str, Any]) -> BoxReport:
    attempts = tuple(Attempt(**attempt) for attempt in data["attempts"])
    return BoxReport(**{**data, "box": _box(data["box"]), "attempts": attempts})
