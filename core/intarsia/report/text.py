"""A report as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from intarsia.boxes_text import describe_box
from intarsia.passes.totals import PassTotal
from intarsia.report.records import PieceReport, Report, Setting


def explain(report: Report, symbols: Sequence[str], sources: Mapping[str, str]) -> str:
    """Return a report as text.

    Args:
        report: the report.
        symbols: the lines about symbols and conditions, of `symbol_lines`.
        sources: generated code to print, title -> source.
    """
    lines = [
        f"{report.name}: {report.pieces} pieces, {report.compiled_pieces} compiled, "
        f"{report.distinct} distinct, {report.compiler_calls} compiler calls",
        f"platform {report.platform} on {report.device}, torch {report.torch}, "
        f"{report.captures} capture{'s' * (report.captures != 1)}",
    ]
    lines += symbols
    lines += ["", "settings (requested -> effective, where from):"]
    lines += [f"  {_setting_line(s)}" for s in report.settings] or ["  all defaults"]
    lines += ["", "boxes: " + ", ".join(describe_box(b) for b in report.boxes)]
    lines += ["", "pieces:"]
    for piece in report.piece_reports:
        lines += _piece_lines(piece)
    if report.passes:
        lines += ["", "passes:", *(f"  {_pass_line(total)}" for total in report.passes)]
    if report.warnings:
        lines += ["", "warnings:", *(f"  {w}" for w in report.warnings)]
    lines += ["", "seconds: " + ", ".join(f"{p} {s:.2f}" for p, s in report.seconds.items())]
    if report.reasons or report.counters:
        lines += ["", "on calls:", *(f"  {n}: {c}" for n, c in report.counters.items())]
        lines += [f"    {reason}: {count}" for reason, count in report.reasons.items()]
    for title, source in sources.items():
        lines += ["", f"# {title}", source.rstrip()]
    return "\n".join(lines)


def _setting_line(setting: Setting) -> str:
    change = f"{setting.requested!r}"
    if setting.effective != setting.requested:
        change += f" -> {setting.effective!r}"
    reason = f": {setting.reason}" if setting.reason else ""
    return f"{setting.key} = {change} ({setting.origin}{reason})"


def _pass_line(total: PassTotal) -> str:
    count = "no count" if total.matches is None else f"{total.matches} matches"
    failed = f", undone: {'; '.join(total.failures)}" if total.failures else ""
    return (
        f"{total.name} ({total.stage}) for {total.box or 'the graph'}: {count} in {total.runs} graphs, "
        f"{total.seconds * 1e3:.1f} ms{failed}"
    )


def _piece_lines(piece: PieceReport) -> list[str]:
    key = piece.key[:12] or "no plain form"
    asked = f" (asked: {', '.join(piece.requested)})" if piece.requested else ""
    ops = ", ".join(piece.ops[:6]) + (
        f", ... {len(piece.ops) - 6} more" if len(piece.ops) > 6 else ""
    )
    lines = [
        f"  {piece.index:>3} {piece.kind:<9} {piece.compiler}{asked}, {piece.nodes} nodes, "
        f"key {key}, {piece.reason}",
        f"      {ops}",
    ]
    for box in piece.boxes:
        shared = ", shared with an equal piece" if box.shared else ""
        note = f", {box.note}" if box.note else ""
        missed = [a for a in box.attempts if a.outcome != "compiled"]
        if missed or not box.shared:
            lines.append(f"      {describe_box(box.box)}: {box.compiler}{note}{shared}")
        lines += [f"        {a.compiler} {a.outcome}: {a.reason}" for a in missed]
    return lines
