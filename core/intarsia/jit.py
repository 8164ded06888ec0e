"""The other front door: `torch.compile(model, backend="intarsia", options={...})`.

Dynamo traces, guards and breaks graphs as always; each of its graphs gets a plan of its own. Its guards
keep a graph's conditions true, so nothing is captured again and no box is refused: a box is cut to what
the graph can be called with.
"""

from __future__ import annotations

import collections
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import evolve
from torch import fx

from intarsia import torch_compat
from intarsia.capture import nodes
from intarsia.capture.conditions import violations
from intarsia.capture.graph import Condition, Graph, GraphInput, Parameter, Symbol
from intarsia.capture.normalise import normalise
from intarsia.capture.structure import Path
from intarsia.compiling.boxes import PlannedBox, plan_boxes
from intarsia.compiling.scheduler import Scheduler
from intarsia.config import ResolvedConfig, load_config
from intarsia.errors import ConfigError, ContractError
from intarsia.host import Host
from intarsia.interfaces import Event
from intarsia.pipeline import Pipeline
from intarsia.place import check_names, effective_settings
from intarsia.report.dumped import dump_compile
from intarsia.report.events import EventStream
from intarsia.report.explain import build_report
from intarsia.report.records import Report, with_counters
from intarsia.runtime.bound import Dispatcher
from intarsia.runtime.source import compile_source, graph_source
from intarsia.runtime.uncovered import Uncovered

_SERIAL = itertools.count(1)
_KEPT = 256
_reports: collections.deque[Callable[[], Report]] = collections.deque(maxlen=_KEPT)
_lock = threading.Lock()


def reports() -> list[Report]:
    """Return the reports of the graphs that came through `torch.compile`, oldest first (the last 256)."""
    with _lock:
        makers = list(_reports)
    return [make() for make in makers]


def intarsia_backend(
    module: fx.GraphModule, example_inputs: Sequence[Any], *, mode: str | None = None,
    options: Mapping[str, Any] | None = None, **_: Any,
) -> Callable[..., Any]:  # fmt: skip
    """Compile one of Dynamo's graphs; the entry point `intarsia` of `torch_dynamo_backends`.

    Args:
        module: the graph.
        example_inputs: what it was traced with.
        options: settings in snake_case, and `dynamic`: argument name -> {dimension: symbol name}, matched
            with the names that the model's forward gives its arguments; `config`: a settings file;
            `on_event`: a listener; `host`: plugins that are already loaded.

    Raises:
        ConfigError, PluginError, SplitError, CompileFailed: as `intarsia.compile`. With `strict`, also
            ContractError where gradients are needed.
    """
    torch_compat.require_supported_torch()
    if mode is not None:
        raise ConfigError(
            f'torch.compile(..., mode="{mode}") means nothing to intarsia',
            next_step="Give settings as options={...}.", subject="mode",
        )  # fmt: skip
    given = dict(options or {})
    dynamic = given.pop("dynamic", None) or {}
    listener = given.pop("on_event", None)
    host = given.pop("host", None)
    resolved = load_config(given.pop("config", None), **given)
    name = resolved.config.name or "graph"
    name = f"{name}-{next(_SERIAL)}"
    if torch.is_grad_enabled() and _needs_grad(example_inputs):
        return _eager_for_grad(module, name, resolved)
    job = _GraphJob(module, list(example_inputs), dynamic, resolved, host, name, listener)
    return job.run()


def _needs_grad(values: Sequence[Any]) -> bool:
    return any(isinstance(v, torch.Tensor) and v.requires_grad for v in values)


def _eager_for_grad(
    module: fx.GraphModule, name: str, resolved: ResolvedConfig
) -> Callable[..., Any]:
    if resolved.config.strict:
        raise ContractError(
            f"{name} needs gradients, and intarsia is inference",
            why="grad is enabled and an input or weight requires it",
            next_step="Call the model under torch.no_grad().",
            subject=name,
        )
    EventStream(name).warn(
        "grad is enabled and something requires it, so this graph runs eagerly; "
        "call the model under torch.no_grad() to have it compiled"
    )
    return module.forward


class _GraphJob:
    """One graph of Dynamo's, step by step."""

    def __init__(
        self, module: fx.GraphModule, inputs: list[Any], dynamic: Mapping[str, Mapping[int, str]],
        resolved: ResolvedConfig, host: Host | None, name: str, listener: Any,
    ) -> None:  # fmt: skip
        self.module = module
        self.inputs = inputs
        self.dynamic = dynamic
        self.name = name
        self.host = host if host is not None else Host(resolved)
        listeners: tuple[Callable[[Event], None], ...] = (listener,) if listener else ()
        self.events = EventStream(name, (*listeners, self.host.emit))
        tensors = [v for v in inputs if isinstance(v, torch.Tensor)]
        place = effective_settings(resolved, self.host, tensors)
        self.place = place
        check_names(place.resolved.config, self.host)
        self.pipeline = Pipeline(
            place.resolved, self.host, place.platform, self.events, place.device, name
        )
        self.holes = [n for n in module.graph.nodes if n.op == "placeholder"]

    def run(self) -> Callable[..., Any]:
        """Return the callable that Dynamo calls with the graph's inputs."""
        with self.events.phase("capture"):
            graph = self._graph()
        split = self.pipeline.split(graph, {})
        boxes = self._boxes(graph)
        scheduler = Scheduler(
            self.host, self.place.resolved, self.events, self.place.device_type, self.place.device
        )
        parts = [(planned, split) for planned in boxes]
        outcomes = self.pipeline.compile(parts, scheduler)
        with self.events.phase("bind"):
            call = self._bound(graph, parts, outcomes)
        report = build_report(
            self.name, self.place.platform, self.place.device_type, [graph],
            [(p, split.partition, split.canonicals, split.choices, o)
             for p, o in zip(boxes, outcomes, strict=True)],
            scheduler, self.events, self.place.resolved, self.place.changes, self.pipeline.warnings,
            self.place.components,
        )  # fmt: skip
        with _lock:
            _reports.append(lambda: with_counters(report, self.events))
        dump_compile(
            self.place.resolved.config.dump, report, [graph], [split.partition], self.sources
        )
        self.events.send("done", message=f"{report.pieces} pieces, {report.distinct} distinct")
        return call

    # -- the graph

    def _graph(self) -> Graph:
        env = self._shape_env()
        names = self._names(env)
        symbols = self._symbols(env, names)
        inputs = tuple(self._input(index, hole) for index, hole in enumerate(self.holes))
        conditions = tuple(
            Condition(g.expression, g.where) for g in torch_compat.shape_guards(env)
        ) if env is not None else ()  # fmt: skip
        return Graph(
            module=normalise(self.module, names), inputs=inputs, symbols=symbols, names=names,
            conditions=conditions, fake_mode=None,
        )  # fmt: skip

    def _shape_env(self) -> Any:
        for hole in self.holes:
            value = nodes.value_of(hole)
            if isinstance(value, torch.SymInt):
                return value.node.shape_env
            mode = getattr(value, "fake_mode", None)
            if mode is not None and mode.shape_env is not None:
                return mode.shape_env
        return None

    def _names(self, env: Any) -> dict[Any, str]:
        names: dict[Any, str] = {}
        if env is None:
            return names
        matched: set[str] = set()
        for hole in self.holes:
            source = torch_compat.placeholder_source(hole)
            for argument, dims in self.dynamic.items():
                if not _is_argument(source, argument):
                    continue
                matched.add(argument)
                for dim, name in dims.items():
                    symbol = torch_compat.symbol_of_size(env, source, int(dim))
                    if symbol is not None:
                        found = torch_compat.replacements(env).get(symbol, symbol)
                        names[found if getattr(found, "is_Symbol", False) else symbol] = str(name)
        for symbol in torch_compat.all_symbols(env):
            names.setdefault(symbol, str(symbol))
        return names

    def _symbols(self, env: Any, names: Mapping[Any, str]) -> dict[str, Symbol]:
        present = self._present()
        found: dict[str, Symbol] = {}
        for symbol, name in names.items():
            low, high = torch_compat.symbol_range(env, symbol)
            hint = torch_compat.hint_of(env, symbol) or 2
            wanted = self.place.resolved.config.dynamic_ranges.get(name)
            if wanted is not None:
                low, high = max(low, wanted[0]), wanted[1] if high is None else min(high, wanted[1])
            read = symbol in present and not torch_compat.is_unbacked(symbol)
            found[name] = Symbol(name, low, high, hint, dispatch=read)
        return found

    def _present(self) -> set[Any]:
        """Return the symbols whose value some input gives."""
        found: set[Any] = set()
        for hole in self.holes:
            value = nodes.value_of(hole)
            sizes = value.shape if isinstance(value, torch.Tensor) else [value]
            for size in sizes:
                if isinstance(size, torch.SymInt) and torch_compat.expression_of(size).is_Symbol:
                    found.add(torch_compat.expression_of(size))
        return found

    def _input(self, index: int, hole: fx.Node) -> GraphInput:
        if isinstance(nodes.value_of(hole), torch.Tensor):
            is_parameter = torch_compat.is_static_placeholder(hole)
            return GraphInput(
                "argument", hole.name, path=Path(f"a{index}"), is_parameter=is_parameter
            )
        return GraphInput("argument", hole.name, path=Path(f"a{index}"))

    # -- boxes

    def _boxes(self, graph: Graph) -> list[PlannedBox]:
        """Return the boxes, cut to what the graph can be called with; Dynamo's guards see to the rest."""
        config = self._for_this_graph(graph)
        found: dict[str, PlannedBox] = {}
        for planned in plan_boxes(config, graph.symbols):
            box = {}
            for name, (low, high) in planned.box.items():
                symbol = graph.symbols[name]
                top = torch_compat.UNBOUNDED if symbol.high is None else symbol.high
                box[name] = (max(low, symbol.low), min(high, top))
            hints = _sizes_that_occur(graph, box)
            if hints is not None:
                found.setdefault(repr(box), evolve(planned, box=box, hints=hints))
        return list(found.values())

    def _for_this_graph(self, graph: Graph) -> Any:
        """Leave out symbols that other graphs of the model have and this one does not."""
        config = self.place.resolved.config
        free = {n for n, s in graph.symbols.items() if s.dispatch}

        def mine(table: Mapping[str, Any]) -> dict[str, Any]:
            return {n: v for n, v in table.items() if n in free}

        return evolve(
            config, boxes=mine(config.boxes), sizes=mine(config.sizes),
            dynamic_ranges=mine(config.dynamic_ranges),
            box=tuple(found for b in config.box if (found := mine(b))),
        )  # fmt: skip

    # -- bind

    def _bound(self, graph: Graph, parts: Any, outcomes: Any) -> Callable[..., Any]:
        symbols = tuple(n for n, s in graph.symbols.items() if s.dispatch)
        names = [f"a{i}" for i in range(len(self.holes))]
        plan = self.pipeline.plan(
            parts[0][1], arguments=[Path(n) for n in names], roots=(), symbols=symbols, model=None,
        )  # fmt: skip
        boxes = [
            self.pipeline.bound(planned, plan, made, [None] * len(self.holes))
            for (planned, _), made in zip(parts, outcomes, strict=True)
        ]
        source, space = graph_source(graph.module, "graph")
        eager = compile_source(source, "graph", space.values, f"{self.name} graph")
        count = len(names)
        uncovered = Uncovered(
            policy=self.place.resolved.config.uncovered, name=self.name,
            parameters=[Parameter(n, "positional") for n in names], tensors=(), symbols=symbols,
            boxes=boxes, padded=(), events=self.events,
            eager=lambda *arguments: eager(*arguments[:count]),
        )  # fmt: skip
        dispatcher = Dispatcher(symbols, boxes, uncovered)
        for box in boxes:
            box.on_checked = dispatcher.forget
        self.sources = {"graph": source}
        for stitching, _ in plan.made():
            self.sources["stitching"] = stitching.source
        entry = self._entry(names, symbols, graph)
        self.sources["entry"] = entry
        values = {
            "_table": dispatcher.table, "_miss": dispatcher.miss,
            "_is_grad_enabled": torch.is_grad_enabled,
            "_set_grad_enabled": torch_compat.set_grad_enabled,
        }  # fmt: skip
        return compile_source(entry, "call", values, f"{self.name} entry")

    def _entry(self, names: Sequence[str], symbols: Sequence[str], graph: Graph) -> str:
        reads = [self._reading(symbol, names, graph) for symbol in symbols]
        key = "0" if not reads else reads[0] if len(reads) == 1 else f"({', '.join(reads)})"
        lines = [f"key = {key}", "run = _table.get(key) or _miss(key)"]
        sizes = ["key"] if len(reads) == 1 else [f"key[{i}]" for i in range(len(reads))]
        call = f"run({', '.join([*names, *sizes])})"
        lines += ["if _is_grad_enabled():", "    _set_grad_enabled(False)", "    try:",
                  f"        return {call}", "    finally:", "        _set_grad_enabled(True)",
                  f"return {call}"]  # fmt: skip
        text = "\n    ".join(lines)
        return f"def call({', '.join(names)}):\n    {text}\n"

    def _reading(self, symbol: str, names: Sequence[str], graph: Graph) -> str:
        for name, hole in zip(names, self.holes, strict=True):
            value = nodes.value_of(hole)
            if isinstance(value, torch.SymInt):
                if graph.names.get(torch_compat.expression_of(value)) == symbol:
                    return name
            elif isinstance(value, torch.Tensor):
                for dim, size in enumerate(value.shape):
                    if graph.names.get(torch_compat.expression_of(size)) == symbol:
                        return f"{name}.shape[{dim}]"
        raise AssertionError(f"no input has the symbol {symbol}")


_TRIED = 1 << 12


def _sizes_that_occur(graph: Graph, box: Mapping[str, tuple[int, int]]) -> dict[str, int] | None:
    """Return sizes in a box that keep a graph's conditions; {} if all do, None if no size does.

    Dynamo only calls the graph with sizes that keep them, so a compiler's example must keep them too.
    """
    if any(low > high for low, high in box.values()):
        return None
    known = {symbol for symbol, name in graph.names.items() if name in box}
    about_box = tuple(c for c in graph.conditions if c.expression.free_symbols <= known)
    graph = evolve(graph, conditions=about_box)
    if not violations(graph, box):
        return {}
    traced = {n: graph.symbols[n].hint for n, (low, high) in box.items()}
    spans = [
        itertools.chain([traced[n]] if low <= traced[n] <= high else [],
                        range(low, min(high, low + _TRIED) + 1))
        for n, (low, high) in box.items()
    ]  # fmt: skip
    for values in itertools.islice(itertools.product(*spans), _TRIED):
        sizes = dict(zip(box, values, strict=True))
        if not violations(graph, {n: (v, v) for n, v in sizes.items()}):
            return sizes
    return None


def _is_argument(source: str, argument: str) -> bool:
    """Say whether Dynamo's source is the argument of a name: L['x'], or L['kwargs']['x']."""
    return (source.endswith(f"[{argument!r}]") and source.startswith("L[")) or source == argument
