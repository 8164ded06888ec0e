"""Shows what a compile did: one line of totals, one row for each piece."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from intarsia.cli.table import render_table

if TYPE_CHECKING:
    from intarsia.report.records import BoxReport, PieceReport, Report

__all__ = ["box_text", "compilers_text", "report_text", "seconds_text", "totals_text"]

_MAX_BOXES = 3
_NO_END = 2**62
"""A range that ends beyond this has no end that anybody asked for."""


def report_text(report: Report) -> str:
    """Return the whole report as text."""
    lines = [totals_text(report), seconds_text(report), "", pieces_table(report.piece_reports)]
    lines += [f"warning: {warning}" for warning in dict.fromkeys(report.warnings)]
    return "\n".join(lines)


def totals_text(report: Report) -> str:
    """Return the counts in one line."""
    return (
        f"{report.name}: {_count(report.pieces, 'piece')}, {report.compiled_pieces} compiled, "
        f"{report.distinct} distinct; {_count(report.compiler_calls, 'compiler call')}, "
        f"{_count(report.fallbacks, 'fallback')}; platform {report.platform}, torch {report.torch}"
    )


def seconds_text(report: Report) -> str:
    """Return the seconds of each phase in one line."""
    phases = ", ".join(f"{phase} {spent:.2f}" for phase, spent in report.seconds.items())
    return f"seconds: {phases}; together {sum(report.seconds.values()):.2f}"


def compilers_text(report: Report) -> str:
    """Return which compiler got how many pieces."""
    counts: dict[str, int] = {}
    for piece in report.piece_reports:
        counts[piece.compiler] = counts.get(piece.compiler, 0) + 1
    return ", ".join(f"{name} ({count})" for name, count in counts.items())


def pieces_table(pieces: tuple[PieceReport, ...]) -> str:
    """Return the table of pieces."""
    columns = ("piece", "kind", "nodes", "compiler", "equal to", "boxes", "from", "note")
    return render_table(columns, _rows(pieces))


def _rows(pieces: tuple[PieceReport, ...]) -> Iterator[tuple[Any, ...]]:
    first: dict[str, int] = {}
    shared = _shared_path(pieces)
    for piece in pieces:
        same = first.setdefault(piece.key, piece.index) if piece.key else piece.index
        yield (
            piece.index,
            piece.kind,
            piece.nodes,
            piece.compiler,
            "" if same == piece.index else f"piece {same}",
            _boxes(piece.boxes),
            _origin(piece, shared),
            _note(piece),
        )


def _boxes(boxes: tuple[BoxReport, ...]) -> str:
    shown = [box_text(item.box) for item in boxes[:_MAX_BOXES]]
    more = len(boxes) - len(shown)
    return " ".join([*filter(None, shown), *([f"+{more} more"] if more > 0 else [])])


def box_text(box: Mapping[str, tuple[int, int]]) -> str:
    """Return a box the way people write it: `tokens=1..8`, or `tokens=1..` without an end."""
    return ",".join(
        f"{symbol}={low}" if low == high else f"{symbol}={low}..{high if high < _NO_END else ''}"
        for symbol, (low, high) in box.items()
    )


def _origin(piece: PieceReport, shared: int) -> str:
    """Return the operation of a splitting piece, else the first and last module of a piece."""
    if piece.kind == "splitting":
        return ", ".join(dict.fromkeys(map(_short_name, piece.ops)))
    inner = [".".join(path[shared:]) for path in _innermost(piece)]
    if inner:
        return inner[0] if inner[0] == inner[-1] else f"{inner[0]} .. {inner[-1]}"
    return _short_source(piece.source[0]) if piece.source else ""


def _short_name(op: str) -> str:
    return op.rpartition(".")[2] if op.startswith("torch.") else op


def _short_source(line: str) -> str:
    found = re.match(r'File "(.+)", line (\d+), in \w+: (.*)', line)
    return f"{PurePath(found[1]).name}:{found[2]}: {found[3]}" if found else line


def _innermost(piece: PieceReport) -> list[list[str]]:
    """Return the paths of modules that have no other module of the piece inside."""
    around = {outer for path in piece.modules for outer in _outside(path)}
    return [path.split(".") for path in piece.modules if path not in around]


def _outside(path: str) -> Iterator[str]:
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _shared_path(pieces: tuple[PieceReport, ...]) -> int:
    """Return how many outer modules all pieces share, so that their names need not be repeated."""
    paths = [path for piece in pieces for path in _innermost(piece)]
    levels = zip(*(path[:-2] for path in paths), strict=False)
    return sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))


def _note(piece: PieceReport) -> str:
    """Return why a piece did not get the first compiler of its route."""
    failed = (
        f"{attempt.compiler} {attempt.outcome}: {attempt.reason}"
        for box in piece.boxes
        for attempt in box.attempts
        if attempt.outcome != "compiled"
    )
    return next(failed, "")


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
