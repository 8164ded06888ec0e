"""Build the report of a compile, and print it for a reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx

from intarsia.capture.conditions import text_of
from intarsia.capture.graph import Graph
from intarsia.compiling.boxes import PlannedBox
from intarsia.compiling.routes import RouteChoice, piece_view
from intarsia.compiling.scheduler import Scheduler
from intarsia.compiling.tasks import Outcome
from intarsia.components import Components
from intarsia.config import ResolvedConfig
from intarsia.interfaces import ConfigChange, PlatformSpec
from intarsia.passes.totals import PassTotal
from intarsia.report.events import EventStream
from intarsia.report.records import BoxReport, PieceReport, Report, Setting
from intarsia.split.canonical import CanonicalPiece
from intarsia.split.partition import Partition, Piece

Part = tuple[PlannedBox, Partition, Sequence[CanonicalPiece], Sequence[RouteChoice],
             Mapping[int, Outcome]]  # fmt: skip


def build_report(
    name: str, platform: PlatformSpec, device: str, graphs: Sequence[Graph], parts: Sequence[Part],
    scheduler: Scheduler, events: EventStream, resolved: ResolvedConfig,
    changes: Sequence[tuple[str, ConfigChange]], warnings: Sequence[str], built: Components,
    passes: Sequence[PassTotal] = (),
) -> Report:  # fmt: skip
    """Return the report of a compile. The pieces are those of the first graph."""
    _, partition, canonicals, choices, _ = parts[0]
    called = [p for p in partition.pieces if choices[p.index].compilers]
    keys = [canonicals[p.index].digest or p.name for p in called]
    first_seen: dict[tuple[str, str], int] = {}
    pieces = tuple(
        _piece_report(p, canonicals[p.index], choices[p.index], parts, first_seen)
        for p in partition.pieces
    )
    return Report(
        name=name, torch=torch.__version__, platform=platform.name, device=device,
        pieces=len(partition.pieces), compiled_pieces=len(called), distinct=len(set(keys)),
        compiler_calls=scheduler.calls, captures=len(graphs), traces=sum(g.traces for g in graphs),
        fallbacks=scheduler.fallbacks, boxes=tuple(dict(p.box) for p, *_ in parts),
        seconds=dict(events.seconds), piece_reports=pieces,
        settings=(*_settings(resolved, platform, changes), *_component_settings(resolved, built)),
        warnings=tuple(warnings),
        counters=dict(events.counters), reasons=dict(events.reasons), hits=scheduler.hits,
        passes=tuple(passes),
    )  # fmt: skip


def _piece_report(
    piece: Piece, form: CanonicalPiece, choice: RouteChoice, parts: Sequence[Part],
    seen: dict[tuple[str, str], int],
) -> PieceReport:  # fmt: skip
    view = piece_view(piece, form)
    boxes = []
    for planned, partition, forms, _, outcomes in parts:
        if piece.index >= len(partition.pieces) or piece.index not in outcomes:
            continue
        outcome = outcomes[piece.index]
        mark = (forms[piece.index].digest or piece.name, repr(forms[piece.index].box(planned.box)))
        owner = seen.setdefault(mark, piece.index)
        made = BoxReport(
            dict(planned.box), outcome.compiler, owner != piece.index, outcome.result.note,
            outcome.attempts,
        )  # fmt: skip
        boxes.append(made)
    compilers = dict.fromkeys(b.compiler for b in boxes)
    return PieceReport(
        index=piece.index, name=piece.name, kind=piece.kind, ops=view.ops, key=form.digest,
        requested=choice.compilers, compiler=", ".join(compilers) or "as it is",
        reason=choice.reason, boxes=tuple(boxes), inputs=len(piece.inputs),
        outputs=len(piece.outputs), nodes=len(piece.nodes), modules=view.modules,
        source=_source_lines(piece.nodes),
    )  # fmt: skip


def _source_lines(nodes: Sequence[fx.Node]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for node in nodes:
        lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
        places = [i for i, line in enumerate(lines) if line.startswith("File ")]
        if places:
            code = lines[places[-1] + 1] if places[-1] + 1 < len(lines) else ""
            found.setdefault(f"{lines[places[-1]]}: {code}")
    return tuple(found)


def _settings(
    resolved: ResolvedConfig, platform: PlatformSpec, changes: Sequence[tuple[str, ConfigChange]]
) -> tuple[Setting, ...]:
    reasons = {change.key: f"{plugin}: {change.reason}" for plugin, change in changes}
    found = []
    for key, value, origin in resolved.rows():
        if origin != "default" or key in reasons:
            found.append(Setting(key, value, value, origin, reasons.get(key, "")))
    if resolved.config.compilers is None:
        found.append(Setting("compilers", None, list(platform.compilers), f"platform {platform.name}",
                             "not set"))  # fmt: skip
    if resolved.config.platform == "auto":
        found.append(
            Setting("platform", "auto", platform.name, "default", "from the model's tensors")
        )
    return tuple(found)


def _component_settings(resolved: ResolvedConfig, built: Components) -> list[Setting]:
    config = resolved.config
    found = []
    plan = built.passes
    if plan.manager_reference is not None:
        factors = ", ".join(f"{k}={v}" for k, v in plan.manager.factors().items())
        found.append(Setting("pass-manager in effect", config.pass_manager, plan.manager_name,
                             resolved.origin("pass_manager"), factors))  # fmt: skip
    if built.static_graph is not None:
        budget = ", ".join(f"{k} {v}" for k, v in built.static_graph.budget(None).items())
        found.append(
            Setting("static-graph-backend in effect", config.static_graph_backend,
                    built.static_graph_name, resolved.origin("static_graph_backend"),
                    f"budget {budget}")
        )  # fmt: skip
    return found


def symbol_lines(graphs: Sequence[Graph]) -> list[str]:
    """Return a line for each symbol and condition of a capture."""
    lines = []
    graph = graphs[0]
    for symbol in graph.symbols.values():
        end = "" if symbol.high is None else str(symbol.high)
        lines.append(f"symbol {symbol.name}: {symbol.low}..{end}, traced at {symbol.hint}")
    for condition in graph.conditions:
        lines.append(f"condition {text_of(condition, graph)}, from {condition.where}")
    return lines
