"""The front door: `intarsia.compile`."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from intarsia import torch_compat
from intarsia.capture import nodes
from intarsia.capture.call import bind_call, describe
from intarsia.capture.conditions import fixing_condition
from intarsia.capture.dynamic import Dynamic, named_dims
from intarsia.capture.graph import Graph
from intarsia.capture.regions import regional_trace
from intarsia.capture.trace import capture
from intarsia.compiled import Compiled, Engine
from intarsia.compiling.boxes import PlannedBox
from intarsia.compiling.routes import check_names
from intarsia.compiling.signature import size_of
from intarsia.compiling.tasks import Outcome, Scheduler
from intarsia.config import Config, ResolvedConfig, load_config
from intarsia.errors import CaptureError, ShapeError
from intarsia.host import Host
from intarsia.interfaces import Event
from intarsia.jit import reports
from intarsia.pipeline import Pipeline, SplitGraph, effective_settings
from intarsia.report.dumped import dump_compile
from intarsia.report.events import EventStream
from intarsia.report.explain import build_report, explain, with_counters
from intarsia.runtime.bound import BoundBox, Dispatcher
from intarsia.runtime.contract import NoSymbol, tensor_contracts, write_entry
from intarsia.runtime.uncovered import Uncovered, check_pad, eager_forward
from intarsia.split.canonical import written_storages

__all__ = ["Compiled", "compile", "reports"]

_SERIAL = itertools.count(1)


def compile(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Dynamic | None = None,
    config: ResolvedConfig | Config | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    name: str | None = None,
    dump: str | os.PathLike[str] | None = None,
    on_event: Callable[[Event], None] | Iterable[Callable[[Event], None]] = (),
    host: Host | None = None,
    **overrides: Any,
) -> Compiled:
    """Capture a model as one graph, cut it into pieces, compile every piece, and return a callable.

    This is a phase: nothing compiles later. It is inference: the model is captured and called under
    `no_grad`, and an input that requires grad is refused while grad is enabled.

    Args:
        model: a module, a function or a bound method.
        args, kwargs: an example call. Nothing runs on it; only shapes, dtypes and Python values matter.
        dynamic: argument name (or path, "past.layers[0].keys") -> {dimension: symbol name}. The ranges
            and sizes of the symbols come from config (`boxes`, `sizes`, `dynamic_ranges`).
        config: a settings file, or settings; None reads no file unless INTARSIA_CONFIG names one.
        name: what logs, reports and dumps call the model; None: its class.
        dump: a folder to write graphs, pieces and generated code to.
        on_event: called with every event: a progress bar, a supervisor that extends its deadline.
        host: plugins that are already loaded; None loads them.
        overrides: settings in snake_case, which win over everything: `compilers=["eager"]`.

    Raises:
        ConfigError: a setting is wrong, or names something that does not exist.
        PluginError: a plugin that was asked for cannot be used.
        CaptureError: the model cannot be captured as one graph.
        ShapeError: a requested box is not contained in what the graph is valid for.
        SplitError: a split rule cannot be followed.
        CompileFailed: no compiler could compile a piece.
        UnsupportedTorchError: this torch is outside the supported range.
    """
    begun = time.monotonic()
    torch_compat.require_supported_torch()
    extra: dict[str, Any] = {"name": name, "dump": None if dump is None else os.fspath(dump)}
    resolved = load_config(config, **overrides, **extra)
    listeners = (on_event,) if callable(on_event) else tuple(on_event)
    title = resolved.config.name or f"{describe(model)}-{next(_SERIAL)}"
    job = _Job(
        model, tuple(args), dict(kwargs or {}), dynamic or {}, resolved, host, title, listeners
    )
    job.events.spent("setup", time.monotonic() - begun)
    return job.run()


class _Job:
    """One call of `compile`, step by step."""

    def __init__(
        self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Dynamic,
        resolved: ResolvedConfig, host: Host | None, name: str, listeners: tuple[Any, ...],
    ) -> None:  # fmt: skip
        self.model = model
        self.args = args
        self.kwargs = kwargs
        self.dynamic = dynamic
        self.name = name
        self.host = host if host is not None else Host(resolved)
        self.events = EventStream(name, (*listeners, self.host.emit))
        tensors = _tensors(args, kwargs)
        if isinstance(model, torch.nn.Module):
            tensors += [*model.parameters(), *model.buffers()]
        place = effective_settings(resolved, self.host, tensors)
        self.platform, self.device_type, self.device = (
            place.platform,
            place.device_type,
            place.device,
        )
        self.resolved, self.changes = place.resolved, place.changes
        self.components = place.components
        check_names(self.resolved.config, self.host)
        self.pipeline = Pipeline(
            self.resolved, self.host, self.platform, self.events, self.device, name
        )
        self.call = bind_call(model, args, kwargs)
        self.named = {
            (str(d.path), d.dim): d.name for d in named_dims(self.dynamic, self.call.values)
        }

    @property
    def config(self) -> Config:
        return self.resolved.config

    # -- capture

    def run(self) -> Compiled:
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
        scheduler = Scheduler(self.host, self.resolved, self.events, self.device_type, self.device)
        outcomes = self.pipeline.compile(parts, scheduler)
        return self._bind(parts, outcomes, list(splits.values()), scheduler)

    def _capture(self, fixed: Mapping[str, int]) -> Graph:
        ranges = {n: (low, high) for n, (low, high) in self.config.dynamic_ranges.items()}
        with self.events.phase("capture"):
            return capture(
                self.model, self.args, self.kwargs, dynamic=self.dynamic, ranges=ranges, fixed=fixed,
                trace=regional_trace(self._note) if self.config.regional else None,
            )  # fmt: skip

    def _note(self, text: str) -> None:
        # In the report; the result is the same, only slower.
        if text not in self.pipeline.warnings:
            self.pipeline.warnings.append(text)

    def _refuse_fixed(self, graph: Graph) -> None:
        """Refuse a dimension that was named dynamic and that tracing nevertheless fixed."""
        for name in dict.fromkeys(self.named.values()):
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
        self, parts: Sequence[tuple[PlannedBox, SplitGraph]],
        outcomes: Sequence[Mapping[int, Outcome]], splits: Sequence[SplitGraph],
        scheduler: Scheduler,
    ) -> Compiled:  # fmt: skip
        with self.events.phase("bind"):
            graphs = [s.graph for s in splits]
            main = graphs[0]
            assert main.arguments is not None
            mutated = {p for g in graphs for p in _mutated_arguments(g)}
            tensors = tensor_contracts(graphs, mutated, self.named)
            symbols = tuple(
                n for n, s in main.symbols.items() if s.dispatch and n in _used(tensors)
            )
            try:
                entry = write_entry(main.arguments, tensors, symbols,
                                    by_value=self.config.check == "values")  # fmt: skip
            except NoSymbol as error:
                raise CaptureError(f'the size "{error}" cannot be read from an argument') from error
            padded = self._padded(graphs)
            plans = {
                id(s): self.pipeline.plan(
                    s, arguments=entry.tensors, roots=entry.roots, symbols=symbols,
                    model=self.model, padded=padded,
                )
                for s in splits
            }  # fmt: skip
            boxes = [
                self.pipeline.bound(
                    planned, plans[id(split)], made, [i.value for i in plans[id(split)].inputs]
                )
                for (planned, split), made in zip(parts, outcomes, strict=True)
            ]
        with self.events.phase("report"):
            engine, message = self._engine(
                entry, tensors, symbols, padded, boxes, parts, outcomes, splits, scheduler
            )
        self.events.send("done", message=message)
        return Compiled(engine)

    def _padded(self, graphs: Sequence[Graph]) -> tuple[str, ...]:
        if self.config.uncovered != "pad":
            return ()
        padded = tuple(n for n in graphs[0].symbols if n in self.config.rows_independent)
        for graph in graphs:
            check_pad(graph, padded, self.config.rows_independent, _output_sizes,
                      bool(graph.effects) or bool(written_storages(graph.module.graph)))  # fmt: skip
        return padded

    def _engine(
        self, entry: Any, tensors: Any, symbols: tuple[str, ...], padded: tuple[str, ...],
        boxes: Sequence[BoundBox], parts: Any, outcomes: Any, splits: Sequence[SplitGraph],
        scheduler: Scheduler,
    ) -> tuple[Engine, str]:  # fmt: skip
        graphs = [s.graph for s in splits]
        main = graphs[0]
        assert main.arguments is not None
        uncovered = Uncovered(
            self.config.uncovered, self.name, main.arguments.parameters, tensors, symbols, boxes,
            padded, self.events,
            eager_forward(self.model, main.arguments.parameters, len(tensors)),
        )  # fmt: skip
        dispatcher = Dispatcher(symbols, boxes, uncovered)
        for box in boxes:
            box.on_checked = dispatcher.forget
        report = build_report(
            self.name, self.platform, f"{self.device_type}", graphs,
            [(p, s.partition, s.canonicals, s.choices, o)
             for (p, s), o in zip(parts, outcomes, strict=True)],
            scheduler, self.events, self.resolved, self.changes, self.pipeline.warnings,
            self.components,
        )  # fmt: skip
        engine = Engine(
            self.name, self.model, entry, main.arguments, tensors, dispatcher, main.frozen,
            self.events, lambda: with_counters(report, self.events),
            lambda code: explain(with_counters(report, self.events), graphs,
                                 _sources(entry, boxes) if code else {}),
        )  # fmt: skip
        dumped = [s.partition for s in splits]
        dump_compile(self.config.dump, report, graphs, dumped, _sources(entry, boxes))
        return engine, f"{report.pieces} pieces, {report.distinct} distinct"


def _tensors(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    from intarsia.capture.structure import Path, walk

    values = [v for _, v in walk(list(args), Path("args"))]
    values += [v for _, v in walk(dict(kwargs), Path("kwargs"))]
    return [v for v in values if isinstance(v, torch.Tensor)]


def _mutated_arguments(graph: Graph) -> list[str]:
    written = written_storages(graph.module.graph)
    found = []
    holes = [n for n in graph.module.graph.nodes if n.op == "placeholder"]
    for hole, entry in zip(holes, graph.inputs, strict=True):
        if entry.kind == "argument" and nodes.storage_of(hole) in written:
            found.append(str(entry.path))
    return found


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


def _sources(entry: Any, boxes: Sequence[BoundBox]) -> dict[str, str]:
    found = {"entry": entry.source}
    for box in boxes:
        for number, (stitching, _) in enumerate(box.plan.made()):
            fixed = "".join(f" {n}={v}" for n, v in box.plan.fixed.items())
            found[f"stitching{fixed} {number}"] = stitching.source
    return found
