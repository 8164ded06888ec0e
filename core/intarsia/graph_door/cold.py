"""A cold compile of one of Dynamo's graphs. Imported only where no plan could be loaded."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from intarsia.capture.graph import Graph
from intarsia.capture.structure import Path
from intarsia.compiling.boxes import PlannedBox
from intarsia.compiling.scheduler import Scheduler
from intarsia.compiling.tasks import Journal, Outcome, PieceCache, Task
from intarsia.compiling.transport import needs_of
from intarsia.digests import module_file
from intarsia.graph_door.front import GraphFront, GraphPlan, assemble_graph, front_of
from intarsia.graph_door.job import GraphJob
from intarsia.graph_door.loading import GraphParts
from intarsia.pipeline import Pipeline, SplitGraph
from intarsia.report.dumped import dump_compile
from intarsia.report.explain import build_report
from intarsia.report.records import Report
from intarsia.runtime.source import compile_source, graph_source
from intarsia.split.encode import Encoded


@frozen
class MadeGraph:
    """What a cold compile made.

    Attributes:
        packages: what a package may be made of: (callable, task, compiler).
        crashed: what is left out because it took down a process of this machine.
    """

    plan: GraphPlan
    front: GraphFront
    report: Report
    packages: Sequence[tuple[Any, Task, str]]
    crashed: Sequence[str]


def compile_graph(
    job: GraphJob, graph: Graph, boxes: Sequence[PlannedBox], pieces: PieceCache | None,
    journal: Journal | None,
) -> MadeGraph:  # fmt: skip
    """Split a graph, compile its pieces, and bind them.

    Raises:
        SplitError, ConfigError, PluginError, CompileFailed.
    """
    place = job.place
    pipeline = Pipeline(job.resolved, job.host, place.platform, job.events, place.device, job.name)
    graph = pipeline.rewritten(graph, place.components.passes)
    split = pipeline.split(graph, {})
    scheduler = Scheduler(job.host, job.resolved, job.events, place.device_type, place.device,
                          pieces, journal, place.components.passes)  # fmt: skip
    parts = [(planned, split) for planned in boxes]
    outcomes = pipeline.compile(parts, scheduler)
    passes = pipeline.pass_totals(parts, outcomes, place.components.passes)
    front = front_of(graph, job.config.uncovered)
    with job.events.phase("bind"):
        plan, sources = _bound(job, pipeline, front, split, boxes, outcomes)
    report = build_report(
        job.name, place.platform, place.device_type, [graph],
        [(p, split.partition, split.canonicals, split.choices, o)
         for p, o in zip(boxes, outcomes, strict=True)],
        scheduler, job.events, job.resolved, place.changes, pipeline.warnings, place.components,
        passes,
    )  # fmt: skip
    dump_compile(job.config.dump, report, [graph], [split.partition], sources)
    job.events.send("done", message=f"{report.pieces} pieces, {report.distinct} distinct")
    packages = pipeline.packageable(parts, outcomes)
    return MadeGraph(plan, front, report, packages, scheduler.crashed)


def _bound(
    job: GraphJob, pipeline: Pipeline, front: GraphFront, split: SplitGraph,
    planned: Sequence[PlannedBox], outcomes: Sequence[Mapping[int, Outcome]],
) -> tuple[GraphPlan, dict[str, str]]:  # fmt: skip
    plan = pipeline.plan(
        split, arguments=[Path(n) for n in front.arguments], roots=(), symbols=front.symbols,
        model=None,
    )  # fmt: skip
    boxes = [
        pipeline.bound(box, plan, made, [None] * len(front.arguments), split)
        for box, made in zip(planned, outcomes, strict=True)
    ]
    source, space = graph_source(split.graph.module, "graph")
    eager = compile_source(source, "graph", space.values, f"{job.name} graph")
    sources = {"graph": source}
    for stitching, _ in plan.made():
        sources["stitching"] = stitching.source
    sources["entry"] = front.entry
    made = assemble_graph(front, boxes, name=job.name, events=job.events, eager=eager)
    return made, sources


def parts_of(job: GraphJob, graph: Graph, front: GraphFront, encoded: Encoded) -> GraphParts:
    """Return what the graph's bundle is made of, beside its bound plans."""
    return GraphParts(
        job.config.name or "graph", front, encoded, needs_of(graph.module), _modules(graph),
        job.config.check,
    )  # fmt: skip


_FILE = re.compile(r'File "([^"]+)"')
_NOT_THEIRS = ("torch", "intarsia", "__main__", "__mp_main__")


def _modules(graph: Graph) -> list[str]:
    """Return the modules whose code was traced, the innermost first.

    Torch does not tell who registered an operator, and the module that calls it has often done that or
    imported who did.
    """
    by_file = {module_file(name): name for name in list(sys.modules)}
    found: dict[str, None] = {}
    for node in graph.module.graph.nodes:
        for path in reversed(_FILE.findall(node.meta.get("stack_trace") or "")):
            name = by_file.get(path)
            if name is not None and name.split(".")[0] not in _NOT_THEIRS:
                found.setdefault(name)
    return list(found)
