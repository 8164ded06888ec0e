"""A graph's bundle: made of its bound plans, and restored without splitting or compiling anything."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence

from attrs import evolve, frozen

from intarsia.bundle.bundle import Bundle
from intarsia.bundle.codec import Known, NotHere
from intarsia.bundle.needs import ensure
from intarsia.bundle.plans import PlanReader, PlanWriter
from intarsia.cache.journal import Journal
from intarsia.graph_door.front import GraphFront, GraphPlan, assemble_graph
from intarsia.host import Host
from intarsia.report.events import EventStream
from intarsia.report.records import Report, report_from_dict
from intarsia.runtime.bound import BoundBox, Forward, PieceFunction
from intarsia.split.encode import Encoded

KIND = "graph"


@frozen
class GraphParts:
    """What a graph's bundle is made of, beside its bound plans.

    Attributes:
        name: what the settings call the model, or "graph".
        encoded: the graph itself, which runs where no box fits.
        needs: the modules and operators that it calls.
        imported: modules that may register these operators.
        check: the setting `check`.
    """

    name: str
    front: GraphFront
    encoded: Encoded
    needs: Sequence[str]
    imported: Sequence[str]
    check: str


def bundle_of_graph(
    parts: GraphParts, boxes: Sequence[BoundBox], report: Report, writer: PlanWriter | None = None
) -> Bundle:
    """Return the bundle of a graph's bound plans; `writer` None: nobody needs its numbers.

    Raises:
        NoArtifact: a piece leaves no artifact.
        CannotEncode: generated code uses a value without a plain form.
    """
    writer = PlanWriter(Known()) if writer is None else writer
    plans = writer.data(boxes)
    needs = dict.fromkeys(n for b in boxes for f in b.functions.values() for n in f.needs)
    plan = {
        "plans": plans, "front": parts.front.to_data(), "graph": parts.encoded,
        "needs": list({**needs, **dict.fromkeys(parts.needs)}), "imported": list(parts.imported),
        "packages": [], "check": parts.check,
    }  # fmt: skip
    made = json.dumps(report.to_dict(), default=str).encode()
    return Bundle(plan, made, writer.blobs, (), {"name": parts.name, "symbols": []})


def load_graph(
    bundle: Bundle, *, name: str, host: Host, device: int | None, events: EventStream,
    journal: Journal | None,
) -> tuple[GraphPlan, Mapping[int, PieceFunction]]:  # fmt: skip
    """Return the bound plans of a graph's bundle, and its pieces by number.

    Raises:
        NotHere: a module or operator that it needs is not to be found, or a piece took down a process.
        Whatever else a compiler's `load` raises.
    """
    data = bundle.plan
    missing = ensure(data["needs"], data["imported"])
    if missing:
        raise NotHere(f"it needs {missing}, which is not to be found in this process")
    front = GraphFront.from_data(data["front"])
    reader = PlanReader(
        data["plans"], bundle.artifacts.__getitem__, host, device, None, journal=journal
    )
    boxes = reader.boxes({"values": "always"}.get(data["check"], data["check"]), name)
    for box in boxes:
        box.bind([None] * len(front.arguments))  # weights are arguments like all others here
    plan = assemble_graph(front, boxes, name=name, events=events, eager=_eager(data["graph"], name))
    functions = {i: reader.function(i) for i in range(len(data["plans"]["functions"]))}
    return plan, functions


def report_of(data: bytes, name: str, *, captures: int) -> Report:
    """Return the report of the compile that made a bundle, as this process' own: it compiled nothing."""
    made = report_from_dict(json.loads(data))
    return evolve(made, name=name, captures=captures, traces=captures, compiler_calls=0, hits=0,
                  bundle_reads=1, warnings=())  # fmt: skip


def _eager(encoded: Encoded, name: str) -> Forward:
    """Return a function that runs a graph as it is; it is put together at the first call."""

    @functools.cache
    def made() -> Forward:
        from intarsia.runtime.source import compile_source, graph_source
        from intarsia.split.encode import decode_graph

        source, space = graph_source(decode_graph(encoded), "graph")
        return compile_source(source, "graph", space.values, f"{name} graph")

    return lambda *arguments: made()(*arguments)
