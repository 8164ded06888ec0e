"""What stands between Dynamo's call of a graph and its bound plans."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import define, field, frozen

from intarsia import torch_compat
from intarsia.capture import nodes
from intarsia.capture.graph import Graph, Parameter
from intarsia.report.events import EventStream
from intarsia.report.records import Report
from intarsia.runtime.bound import BoundBox, Dispatcher, Forward
from intarsia.runtime.source import compile_source
from intarsia.runtime.swapping import Swappable
from intarsia.runtime.uncovered import Uncovered


@frozen
class GraphFront:
    """The entry of a graph.

    Attributes:
        arguments: the names of its arguments.
        symbols: those that a call gives, in the order of the table's keys.
        entry: the source of the function that Dynamo calls.
        policy: what happens to sizes outside every box.
    """

    arguments: tuple[str, ...]
    symbols: tuple[str, ...]
    entry: str
    policy: str

    def to_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"arguments": list(self.arguments), "symbols": list(self.symbols),
                "entry": self.entry, "policy": self.policy}  # fmt: skip

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> GraphFront:
        """Return the front of plain data."""
        return GraphFront(
            tuple(data["arguments"]), tuple(data["symbols"]), data["entry"], data["policy"]
        )


@define(eq=False)
class GraphPlan(Swappable):
    """The bound plans of a graph, behind the callable that Dynamo has.

    Attributes:
        forward: what Dynamo calls.
        write: returns the plan as bytes, or raises CacheError where that is not possible.
        report: returns the report of the compile.
    """

    name: str
    forward: Forward
    write: Callable[[], bytes] = field(init=False, repr=False)
    report: Callable[[], Report] = field(init=False, repr=False)


def assemble_graph(
    front: GraphFront, boxes: Sequence[BoundBox], *, name: str, events: EventStream, eager: Forward
) -> GraphPlan:
    """Return the bound plans of a graph, ready to be called.

    Args:
        front: the entry.
        boxes: the bound plans, best first.
        name: the graph's name in messages.
        events: counts what happens on calls.
        eager: runs the graph as it is on its inputs, where no box fits.
    """
    count = len(front.arguments)
    uncovered = Uncovered(
        policy=front.policy, name=name,
        parameters=[Parameter(n, "positional") for n in front.arguments], tensors=(),
        symbols=front.symbols, boxes=boxes, padded=(), events=events,
        eager=lambda *arguments: eager(*arguments[:count]),
    )  # fmt: skip
    dispatcher = Dispatcher(front.symbols, boxes, uncovered)
    for box in boxes:
        box.on_checked = dispatcher.forget
    values = {
        "_table": dispatcher.table, "_miss": dispatcher.miss,
        "_is_grad_enabled": torch.is_grad_enabled,
        "_set_grad_enabled": torch_compat.set_grad_enabled,
    }  # fmt: skip
    forward = compile_source(front.entry, "call", values, f"{name} entry")
    return GraphPlan(dispatcher, uncovered, events, name, forward)


def front_of(graph: Graph, policy: str) -> GraphFront:
    """Return the front of a graph."""
    holes = [n for n in graph.module.graph.nodes if n.op == "placeholder"]
    names = tuple(f"a{i}" for i in range(len(holes)))
    symbols = tuple(n for n, s in graph.symbols.items() if s.dispatch)
    return GraphFront(names, symbols, _entry(names, symbols, graph, holes), policy)


def _entry(
    names: Sequence[str], symbols: Sequence[str], graph: Graph, holes: Sequence[torch.fx.Node]
) -> str:
    reads = [_reading(symbol, names, graph, holes) for symbol in symbols]
    key = "0" if not reads else reads[0] if len(reads) == 1 else f"({', '.join(reads)})"
    lines = [f"key = {key}", "run = _table.get(key) or _miss(key)"]
    sizes = ["key"] if len(reads) == 1 else [f"key[{i}]" for i in range(len(reads))]
    call = f"run({', '.join([*names, *sizes])})"
    lines += ["if _is_grad_enabled():", "    _set_grad_enabled(False)", "    try:",
              f"        return {call}", "    finally:", "        _set_grad_enabled(True)",
              f"return {call}"]  # fmt: skip
    text = "\n    ".join(lines)
    return f"def call({', '.join(names)}):\n    {text}\n"


def _reading(
    symbol: str, names: Sequence[str], graph: Graph, holes: Sequence[torch.fx.Node]
) -> str:
    for name, hole in zip(names, holes, strict=True):
        value = nodes.value_of(hole)
        if isinstance(value, torch.SymInt):
            if graph.names.get(torch_compat.expression_of(value)) == symbol:
                return name
        elif isinstance(value, torch.Tensor):
            for dim, size in enumerate(value.shape):
                if graph.names.get(torch_compat.expression_of(size)) == symbol:
                    return f"{name}.shape[{dim}]"
    raise AssertionError(f"no input has the symbol {symbol}")
