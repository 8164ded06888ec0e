"""Partition: cut a graph at the nodes that the rules matched, into pieces that keep program order.

Pieces are runs of nodes in program order, so they can never depend on each other in a circle and no
write moves. Only tensors, SymInts and ints cross a cut.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from attrs import define, field, frozen
from torch import fx

from intarsia import torch_compat
from intarsia.capture import nodes
from intarsia.errors import SplitError
from intarsia.interfaces import Cut

_ENTER = ("_enter_autocast", "_enter_inference_mode")
_EXIT = ("_exit_autocast", "_exit_inference_mode")


@frozen(slots=False)
class Piece:
    """One part of a graph after the cut.

    Attributes:
        index: its place in program order.
        kind: "splitting" holds splitting ops, "compiled" goes to a compiler.
        nodes: its nodes in the whole graph.
        inputs: the whole graph's nodes that it reads, in order of first use; its placeholders.
        outputs: the nodes that later pieces or the result read.
        graph: the piece as a graph of its own, returning a tuple.
        root: what holds the attributes that the graph reads.
        cut: what the rule said of its splitting ops or its region, or None.
    """

    index: int
    kind: Literal["compiled", "splitting"]
    nodes: tuple[fx.Node, ...] = field(repr=False)
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    graph: fx.Graph = field(repr=False)
    root: torch.nn.Module = field(repr=False)
    cut: Cut | None = None

    @cached_property
    def module(self) -> fx.GraphModule:
        """The piece as a GraphModule; made when asked for, since only distinct pieces need one (8 ms)."""
        return fx.GraphModule(self.root, self.graph)

    @property
    def name(self) -> str:
        """The piece's name: "piece_3"."""
        return f"piece_{self.index}"


@frozen
class Partition:
    """A graph cut into pieces.

    Attributes:
        pieces: in program order.
        placeholders: the whole graph's inputs.
        result: what the whole graph returns: nodes, or plain values.
    """

    pieces: tuple[Piece, ...]
    placeholders: tuple[fx.Node, ...]
    result: tuple[Any, ...]


@define
class _Run:
    """Neighbouring nodes of one kind, while the pieces are being put together."""

    kind: str
    cut: Cut | None
    nodes: list[fx.Node]

    def is_light(self) -> bool:
        return self.kind == "compiled" and all(nodes.is_light(n) for n in self.nodes)

    def joins(self, other: _Run) -> bool:
        """Say whether two runs can be one piece."""
        if self.kind != other.kind:
            return False
        mine, theirs = self.cut, other.cut
        if mine is None or theirs is None:
            return mine is theirs
        return (mine.kind, mine.group, mine.compilers) == (
            theirs.kind,
            theirs.group,
            theirs.compilers,
        )


def partition(module: fx.GraphModule, cuts: Mapping[fx.Node, Cut]) -> Partition:
    """Cut a normalised graph.

    Raises:
        SplitError: a cut falls inside an autocast block, or a value that is no tensor or int would
            have to cross one.
    """
    _unpack_tuples(module.graph)
    runs = _merged(_runs(module.graph, cuts))
    home = _homes(runs)
    return _build(module, runs, home)


def _unpack_tuples(graph: fx.Graph) -> None:
    """Give every consumer of a whole tuple the tuple's items, so that no tuple crosses a cut."""
    for node in list(graph.nodes):
        value = nodes.value_of(node)
        if node.op not in ("call_function", "call_method") or not _is_plain_sequence(value):
            continue
        whole = [u for u in node.users if u.target is not operator.getitem or u.args[0] is not node]
        if not whole:
            continue
        items: list[fx.Node] = []
        with graph.inserting_after(node):
            for index in reversed(range(len(value))):
                item = graph.call_function(operator.getitem, (node, index))
                item.meta["example_value"] = value[index]
                items.insert(0, item)
        packed = tuple(items) if isinstance(value, tuple) else list(items)
        for user in whole:
            user.args = _swap(user.args, node, packed)
            user.kwargs = _swap(user.kwargs, node, packed)


def _is_plain_sequence(value: Any) -> bool:
    return isinstance(value, tuple | list) and not isinstance(value, torch.Size)


def _swap(argument: Any, node: fx.Node, value: Any) -> Any:
    if argument is node:
        return value
    if isinstance(argument, tuple):
        return tuple(_swap(a, node, value) for a in argument)
    if isinstance(argument, list):
        return [_swap(a, node, value) for a in argument]
    if isinstance(argument, Mapping):
        return {k: _swap(a, node, value) for k, a in argument.items()}
    return argument


# ----------------------------------------------------------------------------------------------- runs


def _runs(graph: fx.Graph, cuts: Mapping[fx.Node, Cut]) -> list[_Run]:
    runs: list[_Run] = []
    home: dict[Any, _Run] = {}
    block: list[fx.Node] = []
    for node in graph.nodes:
        if node.op in ("placeholder", "output", "get_attr") or _is_derived_number(node):
            continue
        producer: Any = node.args[0] if node.target is operator.getitem and node.args else None
        if producer in home and _is_plain_sequence(nodes.value_of(producer)):
            home[producer].nodes.append(node)  # a getitem stays with its producer
            home[node] = home[producer]
            continue
        cut = cuts.get(node)
        _track_block(block, node, cut)
        run = _Run("splitting" if cut is not None and cut.kind == "op" else "compiled", cut, [node])
        if runs and runs[-1].joins(run):
            runs[-1].nodes.append(node)
        else:
            runs.append(run)
        home[node] = runs[-1]
    return runs


def _track_block(block: list[fx.Node], node: fx.Node, cut: Cut | None) -> None:
    name = getattr(node.target, "__name__", "")
    if name in _ENTER:
        block.append(node)
    elif name in _EXIT and block:
        block.pop()
    elif cut is not None and block:
        raise SplitError(
            f"cannot cut at {nodes.operation(node)} ({node.name})",
            why=f"it is inside the block that {block[-1].name} opens, which no piece may leave open",
            next_step="Move the autocast block, or take the operation out of split_at.",
            subject=node.name,
        )


def _merged(runs: list[_Run]) -> list[_Run]:
    """Let runs without device work join a neighbour, and then equal neighbours each other."""
    found = [run for run in runs if run.nodes]
    changed = True
    while changed and len(found) > 1:
        changed = False
        for position, run in enumerate(found):
            if not run.is_light() or (run.cut is not None and run.cut.kind == "region"):
                continue
            other = found[position - 1] if position else found[1]
            first, second = (other, run) if position else (run, other)
            other.nodes = first.nodes + second.nodes
            del found[position]
            found = _joined(found)
            changed = True
            break
    return _joined(found)


def _joined(runs: list[_Run]) -> list[_Run]:
    found: list[_Run] = []
    for run in runs:
        if found and found[-1].joins(run):
            found[-1].nodes += run.nodes
        else:
            found.append(run)
    return found


def _homes(runs: Sequence[_Run]) -> dict[fx.Node, int]:
    return {node: index for index, run in enumerate(runs) for node in run.nodes}


# --------------------------------------------------------------------------------------------- pieces


def _is_derived_number(node: fx.Node) -> bool:
    """Say whether a node computes a number from numbers alone; such a node is copied where it is used."""
    if node.op != "call_function" or not nodes.is_scalar_node(node) or nodes.writes(node):
        return False
    return all((n.op == "placeholder" and nodes.is_scalar_node(n)) or _is_derived_number(n)
               for n in node.all_input_nodes)  # fmt: skip


def _build(module: fx.GraphModule, runs: Sequence[_Run], home: Mapping[fx.Node, int]) -> Partition:
    output = module.graph.output_node()
    result: Any = output.args[0]
    order = {node: place for place, node in enumerate(module.graph.nodes)}
    needed = _needed_later(module, runs, home)
    sizes = _size_inputs(module.graph)
    pieces = []
    for index, run in enumerate(runs):
        members = sorted(run.nodes, key=order.__getitem__)
        outputs = tuple(n for n in members if n in needed)
        for node in outputs:
            _check_crossing(node)
        graph, inputs = _piece_graph(members, outputs, sizes)
        pieces.append(
            Piece(index, run.kind, tuple(members), inputs, outputs, graph, module, run.cut)  # type: ignore[arg-type]
        )
    placeholders = tuple(n for n in module.graph.nodes if n.op == "placeholder")
    return Partition(tuple(pieces), placeholders, tuple(result))


def _needed_later(
    module: fx.GraphModule, runs: Sequence[_Run], home: Mapping[fx.Node, int]
) -> set[fx.Node]:
    needed: set[fx.Node] = set()
    for index, run in enumerate(runs):
        for node in run.nodes:
            for source in _sources(node):
                if home.get(source, index) != index:
                    needed.add(source)
    for node in module.graph.output_node().all_input_nodes:
        needed.update(_sources_of(node))
    return needed & set(home)


def _sources(node: fx.Node) -> Iterable[fx.Node]:
    for source in node.all_input_nodes:
        yield from _sources_of(source)


def _sources_of(node: fx.Node) -> Iterable[fx.Node]:
    """Yield the nodes that must be at hand to have a node's value: itself, or what a number is made of."""
    if _is_derived_number(node):
        yield from _sources(node)
    else:
        yield node


def _check_crossing(node: fx.Node) -> None:
    value = nodes.value_of(node)
    if not isinstance(value, torch.Tensor | torch.SymInt | int):
        raise SplitError(
            f"the value of {node.name} would have to cross a cut",
            why=f"it is a {type(value).__name__}; only tensors, SymInts and ints may",
            next_step=f"Cut elsewhere, or keep {nodes.operation(node)} and its users in one piece.",
            subject=node.name,
        )


def _size_inputs(graph: fx.Graph) -> dict[Any, fx.Node]:
    """Return symbol -> the whole graph's placeholder that has its value."""
    found: dict[Any, fx.Node] = {}
    for node in graph.nodes:
        value = nodes.value_of(node)
        if node.op == "placeholder" and isinstance(value, torch.SymInt):
            found.setdefault(torch_compat.expression_of(value), node)
    return found


def _hidden_sizes(inputs: Sequence[fx.Node], sizes: Mapping[Any, fx.Node]) -> list[fx.Node]:
    """Return the placeholders of symbols that the inputs only show inside expressions.

    A piece that is given a tensor of 4n rows and nothing of n rows cannot tell n; compilers that generate
    code need it as an input.
    """
    shown: set[Any] = set()
    used: set[Any] = set()
    for node in inputs:
        value = nodes.value_of(node)
        for size in (
            (*value.shape, *value.stride()) if isinstance(value, torch.Tensor) else (value,)
        ):
            if isinstance(size, torch.SymInt):
                expression = torch_compat.expression_of(size)
                (shown if expression.is_Symbol else used).update(expression.free_symbols)
    return [sizes[s] for s in sorted(used - shown, key=str) if s in sizes]


def _piece_graph(
    members: Sequence[fx.Node], outputs: Sequence[fx.Node], sizes: Mapping[Any, fx.Node]
) -> tuple[fx.Graph, tuple[fx.Node, ...]]:
    graph = fx.Graph()
    inputs: list[fx.Node] = []
    mapping: dict[fx.Node, fx.Node] = {}
    own = set(members)
    for node in members:  # placeholders first, in order of first use
        for source in _sources(node):
            if source.op != "get_attr" and source not in own and source not in mapping:
                mapping[source] = graph.placeholder(source.name)
                mapping[source].meta = dict(source.meta)
                inputs.append(source)
    for source in _hidden_sizes(inputs, sizes):
        mapping[source] = graph.placeholder(source.name)
        mapping[source].meta = dict(source.meta)
        inputs.append(source)
    for node in members:
        mapping[node] = graph.node_copy(node, _finder(graph, mapping))
    graph.output(tuple(mapping[n] for n in outputs))
    return graph, tuple(inputs)


def _finder(graph: fx.Graph, mapping: dict[fx.Node, fx.Node]) -> Callable[[fx.Node], fx.Node]:
    def find(node: fx.Node) -> fx.Node:
        if node not in mapping:  # an attribute, or a number derived from numbers
            assert node.op == "get_attr" or _is_derived_number(node), node.format_node()
            mapping[node] = graph.node_copy(node, find)
        return mapping[node]

    return find


def check_partition(module: fx.GraphModule, made: Partition) -> None:
    """Check what a partition promises: every node in exactly one piece, in order, and nothing else.

    Raises:
        SplitError: a promise is broken; that is a defect of intarsia or of a rule.
    """
    seen: dict[fx.Node, int] = {}
    available: set[fx.Node] = set(made.placeholders)
    for piece in made.pieces:
        for node in piece.nodes:
            if node in seen:
                raise SplitError(f"{node.name} is in pieces {seen[node]} and {piece.index}")
            seen[node] = piece.index
        for node in piece.inputs:
            if node not in available:
                raise SplitError(f"{piece.name} reads {node.name} before it exists")
        available.update(piece.outputs)
        piece.graph.lint()
    for node in module.graph.nodes:
        outside = node.op in ("placeholder", "output", "get_attr") or _is_derived_number(node)
        if not outside and node not in seen:
            raise SplitError(f"{node.name} is in no piece")
