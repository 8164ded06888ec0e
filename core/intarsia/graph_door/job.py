"""One of Dynamo's graphs on its way through the stages: its record, and the boxes that it is compiled for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from attrs import evolve
from torch import fx

from intarsia import torch_compat
from intarsia.capture import nodes
from intarsia.capture.conditions import violations
from intarsia.capture.graph import Condition, Graph, GraphInput, Symbol
from intarsia.capture.normalise import normalise
from intarsia.capture.structure import Path
from intarsia.compiling.boxes import PlannedBox, plan_boxes
from intarsia.compiling.indexing import indexable
from intarsia.config import ResolvedConfig
from intarsia.host import Host
from intarsia.interfaces import Event
from intarsia.job import CompileJob
from intarsia.place import check_names, effective_settings
from intarsia.report.events import EventStream


class GraphJob(CompileJob):
    """One graph of Dynamo's, and what it is to be compiled with.

    Attributes:
        module: the graph as Dynamo made it.
        dynamic: argument name -> {dimension: symbol name}.
        holes: its placeholders.
    """

    def __init__(
        self, module: fx.GraphModule, inputs: list[Any], dynamic: Mapping[str, Mapping[int, str]],
        resolved: ResolvedConfig, host: Host | None, name: str, listener: Any,
    ) -> None:  # fmt: skip
        self.module = module
        self.dynamic = dynamic
        self.name = name
        self.host = host if host is not None else Host(resolved)
        listeners: tuple[Callable[[Event], None], ...] = (listener,) if listener else ()
        self.events = EventStream(name, (*listeners, self.host.emit))
        tensors = [v for v in inputs if isinstance(v, torch.Tensor)]
        self.place = effective_settings(resolved, self.host, tensors)
        check_names(self.config, self.host)
        self.holes = [n for n in module.graph.nodes if n.op == "placeholder"]

    def without_graph(self) -> CompileJob:
        """Return what is known beside the graph, which outlives it."""
        made = CompileJob()
        made.name, made.host, made.events, made.place = (
            self.name,
            self.host,
            self.events,
            self.place,
        )
        return made

    # -- the graph

    def graph(self) -> Graph:
        """Return the record of the graph."""
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
        for source in self._sources(env):
            for argument, dims in self.dynamic.items():
                if not _is_argument(source, argument):
                    continue
                for dim, name in dims.items():
                    symbol = torch_compat.symbol_of_size(env, source, int(dim))
                    if symbol is not None:
                        found = torch_compat.replacements(env).get(symbol, symbol)
                        names[found if getattr(found, "is_Symbol", False) else symbol] = str(name)
        for symbol in torch_compat.all_symbols(env):
            names.setdefault(symbol, str(symbol))
        return names

    def _sources(self, env: Any) -> list[str]:
        """Return Dynamo's sources of the inputs."""
        found = [torch_compat.placeholder_source(hole) for hole in self.holes]
        if any(found):
            return found
        # `aot_compile` has taken them off the placeholders by now; the symbols still tell theirs.
        present = self._present()
        by_source = torch_compat.sized_sources(env)
        return [source for source, symbols in by_source.items() if present.intersection(symbols)]

    def _symbols(self, env: Any, names: Mapping[Any, str]) -> dict[str, Symbol]:
        present = self._present()
        found: dict[str, Symbol] = {}
        for symbol, name in names.items():
            low, high = torch_compat.symbol_range(env, symbol)
            hint = torch_compat.hint_of(env, symbol) or 2
            wanted = self.config.dynamic_ranges.get(name)
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

    def boxes(self, graph: Graph) -> list[PlannedBox]:
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
                cut = indexable(
                    graph, evolve(planned, box=box, hints=hints), self.place.device_type
                )
                found.setdefault(repr(cut.box), cut)
        return list(found.values())

    def _for_this_graph(self, graph: Graph) -> Any:
        """Leave out symbols that other graphs of the model have and this one does not."""
        config = self.config
        free = {n for n, s in graph.symbols.items() if s.dispatch}

        def mine(table: Mapping[str, Any]) -> dict[str, Any]:
            return {n: v for n, v in table.items() if n in free}

        return evolve(
            config, boxes=mine(config.boxes), sizes=mine(config.sizes),
            dynamic_ranges=mine(config.dynamic_ranges),
            box=tuple(found for b in config.box if (found := mine(b))),
        )  # fmt: skip


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
