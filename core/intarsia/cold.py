"""A cold compile: capture, split, compile, bind. Imported only where no plan could be loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import frozen

from intarsia import torch_compat
from intarsia.assemble import assemble
from intarsia.bundle.front import Front
from intarsia.capture import nodes
from intarsia.capture.conditions import fixing_condition
from intarsia.capture.graph import Graph
from intarsia.capture.regions import regional_trace
from intarsia.capture.trace import capture
from intarsia.compiled import Compiled
from intarsia.compiling.boxes import PlannedBox
from intarsia.compiling.scheduler import Scheduler
from intarsia.compiling.signature import size_of
from intarsia.compiling.tasks import Journal, Outcome, PieceCache, Task
from intarsia.errors import CaptureError, ShapeError
from intarsia.job import Job
from intarsia.passes.totals import PassTotal
from intarsia.pipeline import Pipeline, SplitGraph, written_arguments
from intarsia.report.dumped import dump_compile
from intarsia.report.explain import build_report, symbol_lines
from intarsia.report.records import Report
from intarsia.report.text import explain
from intarsia.runtime.bound import BoundBox
from intarsia.runtime.contract import NoSymbol, tensor_contracts, write_entry
from intarsia.runtime.uncovered import check_pad
from intarsia.split.canonical import written_storages

Parts = Sequence[tuple[PlannedBox, SplitGraph]]


@frozen
class Made:
    """What a cold compile made, for whoever wants to keep it.

    Attributes:
        compiled: the compiled model.
        symbols: the lines about symbols that `explain` prints.
        packages: what a package may be made of: (callable, task, compiler).
        crashed: what is left out because it took down a process of this machine.
    """

    compiled: Any
    front: Front
    boxes: Sequence[BoundBox]
    graphs: Sequence[Graph]
    report: Report
    symbols: Sequence[str]
    packages: Sequence[tuple[Any, Task, str]]
    crashed: Sequence[str]


class ColdCompile:
    """One compile from the start, step by step."""

    def __init__(
        self, job: Job, pieces: PieceCache | None = None, journal: Journal | None = None
    ) -> None:
        self.job = job
        self.config = job.config
        self.events = job.events
        self.pieces = pieces
        self.journal = journal
        self.pipeline = Pipeline(
            job.resolved, job.host, job.place.platform, job.events, job.place.device, job.name
        )

    # -- capture

    def run(self) -> Made:
        """Compile the model.

        Raises:
            CaptureError, ShapeError, SplitError, CompileFailed.
        """
        with self.events.phase("import"):
            torch_compat.import_tracer()
        main = self._capture({})
        self._refuse_fixed(main)
        splits: dict[tuple[tuple[str, int], ...], SplitGraph] = {}
        splits[()] = self.pipeline.split(main, {})
        parts: list[tuple[PlannedBox, SplitGraph]] = []
        for planned, fixed in self.pipeline.boxes(main, self._capture):
            key = tuple(sorted(fixed.items()))
            if key not in splits:
                graph = self._capture(fixed)
                splits[key] = self.pipeline.split(graph, fixed)
            fitted = self.pipeline.fitted(splits[key].graph, planned) if fixed else planned
            parts.append((fitted, splits[key]))
        place = self.job.place
        scheduler = Scheduler(
            self.job.host,
            self.job.resolved,
            self.events,
            place.device_type,
            place.device,
            self.pieces,
            self.journal,
            place.components.passes,
        )
        outcomes = self.pipeline.compile(parts, scheduler)
        passes = self.pipeline.pass_totals(parts, outcomes, place.components.passes)
        return self._bind(parts, outcomes, list(splits.values()), scheduler, passes)

    def _capture(self, fixed: Mapping[str, int]) -> Graph:
        ranges = {n: (low, high) for n, (low, high) in self.config.dynamic_ranges.items()}
        with self.events.phase("capture"):
            made = capture(
                self.job.model, self.job.args, self.job.kwargs, dynamic=self.job.dynamic,
                ranges=ranges, fixed=fixed,
                trace=regional_trace(self._note) if self.config.regional else None,
            )  # fmt: skip
        return self.pipeline.rewritten(made, self.job.place.components.passes)

    def _note(self, text: str) -> None:
        # In the report; the result is the same, only slower.
        if text not in self.pipeline.warnings:
            self.pipeline.warnings.append(text)

    def _refuse_fixed(self, graph: Graph) -> None:
        """Refuse a dimension that was named dynamic and that tracing nevertheless fixed."""
        for name in dict.fromkeys(self.job.named.values()):
            fixed = fixing_condition(graph, name)
            asked = self.config.dynamic_ranges.get(name)
            if fixed is None or (asked is not None and asked[0] == asked[1]):
                continue
            raise ShapeError(
                f'the symbol "{name}" cannot be dynamic',
                why=f"tracing fixed it to one size at {fixed.where}",
                next_step="Leave it out of dynamic, or take the loop or branch over it out of the model.",
                subject=name,
            )  # fmt: skip

    # -- bind

    def _bind(
        self, parts: Parts, outcomes: Sequence[Mapping[int, Outcome]], splits: Sequence[SplitGraph],
        scheduler: Scheduler, passes: Sequence[PassTotal],
    ) -> Made:  # fmt: skip
        with self.events.phase("bind"):
            graphs = [s.graph for s in splits]
            front = self._front(graphs)
            plans = {
                id(s): self.pipeline.plan(
                    s, arguments=front.entry.tensors, roots=front.entry.roots,
                    symbols=front.entry.symbols, model=self.job.model, padded=front.padded,
                )
                for s in splits
            }  # fmt: skip
            boxes = [
                self.pipeline.bound(
                    planned,
                    plans[id(split)],
                    made,
                    [i.value for i in plans[id(split)].inputs],
                    split,
                )
                for (planned, split), made in zip(parts, outcomes, strict=True)
            ]
        with self.events.phase("report"):
            made = self._made(front, boxes, parts, outcomes, graphs, scheduler, passes)
            sources = front.sources(boxes)
            partitions = [s.partition for s in splits]
            dump_compile(self.config.dump, made.report, graphs, partitions, sources)
        report = made.report
        self.events.send("done", message=f"{report.pieces} pieces, {report.distinct} distinct")
        return made

    def _front(self, graphs: Sequence[Graph]) -> Front:
        main = graphs[0]
        assert main.arguments is not None
        mutated = {p for g in graphs for p in written_arguments(g)}
        tensors = tensor_contracts(graphs, mutated, self.job.named)
        symbols = tuple(n for n, s in main.symbols.items() if s.dispatch and n in _used(tensors))
        try:
            entry = write_entry(main.arguments, tensors, symbols,
                                by_value=self.config.check == "values")  # fmt: skip
        except NoSymbol as error:
            raise CaptureError(f'the size "{error}" cannot be read from an argument') from error
        padded = self._padded(graphs)
        return Front(entry, main.arguments, tuple(tensors), self.config.uncovered, padded)

    def _padded(self, graphs: Sequence[Graph]) -> tuple[str, ...]:
        if self.config.uncovered != "pad":
            return ()
        padded = tuple(n for n in graphs[0].symbols if n in self.config.rows_independent)
        for graph in graphs:
            check_pad(graph, padded, self.config.rows_independent, _output_sizes,
                      bool(graph.effects) or bool(written_storages(graph.module.graph)))  # fmt: skip
        return padded

    def _made(
        self, front: Front, boxes: Sequence[BoundBox], parts: Parts,
        outcomes: Sequence[Mapping[int, Outcome]], graphs: Sequence[Graph], scheduler: Scheduler,
        passes: Sequence[PassTotal],
    ) -> Made:  # fmt: skip
        job = self.job
        report = build_report(
            job.name, job.place.platform, job.place.device_type, graphs,
            [(p, s.partition, s.canonicals, s.choices, o)
             for (p, s), o in zip(parts, outcomes, strict=True)],
            scheduler, self.events, job.resolved, job.place.changes, self.pipeline.warnings,
            job.place.components, passes,
        )  # fmt: skip
        symbols = symbol_lines(graphs)
        engine = assemble(
            front, boxes, model=job.model, name=job.name, events=self.events,
            make_frozen=lambda: graphs[0].frozen, make_report=lambda: report,
            explain=lambda now, sources: explain(now, symbols, sources),
        )  # fmt: skip
        wanted = self.pipeline.packageable(parts, outcomes)
        return Made(
            Compiled(engine), front, boxes, graphs, report, symbols, wanted, scheduler.crashed
        )


def _used(tensors: Any) -> set[str]:
    return {size for contract in tensors for size in contract.shape if isinstance(size, str)}


def _output_sizes(graph: Graph) -> list[list[int | str]]:
    result: Any = graph.module.graph.output_node().args[0]
    found = []
    for node in result:
        value = nodes.value_of(node) if isinstance(node, torch.fx.Node) else node
        if isinstance(value, torch.Tensor):
            found.append([size_of(s, graph.names) for s in value.shape])
        elif isinstance(value, torch.SymInt):
            found.append([size_of(value, graph.names)])
    return found
