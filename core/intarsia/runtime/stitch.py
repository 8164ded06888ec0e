"""Stitching: one generated function that runs a graph's pieces in order.

Splitting pieces without a compiler are written out as the calls that they are; compiled pieces are called
by name. A value is dropped after its last use. Weights are names of the function, not arguments.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import define, field
from torch import fx

from intarsia.capture import nodes
from intarsia.capture.graph import Graph, GraphInput
from intarsia.capture.structure import Effect, Path, Template, template_source
from intarsia.compiling.signature import size_of
from intarsia.errors import CaptureError
from intarsia.runtime.memory import overlap
from intarsia.runtime.source import Body, Namespace, identifier, literal, number_source
from intarsia.runtime.stitching import Stitching, piece_call
from intarsia.split.partition import Partition, Piece


@define
class _Writer:
    graph: Graph
    partition: Partition
    compiled: frozenset[int]
    arguments: Mapping[str, str]
    model: Any = None
    padded: tuple[str, ...] = ()
    body: Body = field(factory=lambda: Body(Namespace()))
    pieces: dict[int, str] = field(factory=dict)
    weights: dict[int, str] = field(factory=dict)
    parameters: list[str] = field(factory=list)
    real: dict[str, str] = field(factory=dict)
    sizes: dict[str, str] = field(factory=dict)
    roots: dict[str, str] = field(factory=dict)
    kept: dict[str, str] = field(factory=dict)

    def stitching(self, roots: Sequence[str], symbols: Sequence[str]) -> Stitching:
        self.body.space.taken.update(roots)
        self._inputs(roots, symbols)
        self.real = {s: self.body.fresh(f"real_{s}") for s in symbols} if self.padded else {}
        self.parameters += [f"{name}=None" for name in self.real.values()]
        self._pieces()
        results = self._results()
        work = len(self.body.lines)
        self._result()
        text = "\n    ".join(self.body.lines)
        source = f"def forward({', '.join(self.parameters)}):\n    {text}\n"
        return Stitching(source, "forward", self.body.space, self.pieces, self.weights,
                         tuple(self.parameters), work, results)  # fmt: skip

    # -- inputs

    def _inputs(self, roots: Sequence[str], symbols: Sequence[str]) -> None:
        self.parameters += [self.body.fresh(identifier(a)) for a in self.arguments.values()]
        by_path = dict(zip(self.arguments, self.parameters, strict=True))
        self.roots = {r: self.body.fresh(r) if hasattr(builtins, r) else r for r in roots}
        self.parameters += list(self.roots.values())
        sizes = self.sizes = {name: self.body.fresh(name) for name in symbols}
        self.parameters += list(sizes.values())
        for index, (node, entry) in enumerate(
            zip(self.partition.placeholders, self.graph.inputs, strict=True)
        ):
            self.body.names[node] = self._input(index, node, entry, by_path, sizes)

    def _input(
        self, index: int, node: fx.Node, entry: GraphInput, by_path: Mapping[str, str],
        sizes: Mapping[str, str],
    ) -> str:  # fmt: skip
        if entry.kind == "argument":
            return by_path[str(entry.path)]
        if entry.kind == "symbol":
            value = nodes.value_of(node)
            if isinstance(value, int):
                return repr(value)
            return sizes.get(entry.name, "None")  # a symbol that nothing reads
        name = self.body.fresh(f"w_{entry.name}")
        self.body.space.taken.add(name)
        self.weights[index] = name
        return name

    # -- pieces

    def _pieces(self) -> None:
        last = self._last_uses()
        for piece in self.partition.pieces:
            if piece.index in self.compiled:
                self._call(piece)
            else:
                self._inline(piece, last)
            dead = [
                n for n, where in last.items()
                if where == piece.index and n in self.body.names and self._droppable(n)
                and (piece.index in self.compiled or n not in piece.nodes)
            ]  # fmt: skip
            self.body.drop(self.body.names[n] for n in dead)

    def _droppable(self, node: fx.Node) -> bool:
        return node.op != "placeholder" and node.op != "get_attr"

    def _last_uses(self) -> dict[fx.Node, int]:
        last: dict[fx.Node, int] = {}
        for piece in self.partition.pieces:
            for node in piece.inputs:
                last[node] = piece.index
            for node in piece.outputs:
                last.setdefault(node, piece.index)
        for value in self.partition.result:
            for node in _nodes_in(value):
                last.pop(node, None)
        return last

    def _call(self, piece: Piece) -> None:
        name = self.body.fresh(piece.name)
        self.pieces[piece.index] = name
        inputs = [self.body.names[n] for n in piece.inputs]
        call = piece_call(name, inputs)
        outputs = [self.body.name_for(n) for n in piece.outputs]
        if outputs:
            call = f"{', '.join(outputs)}{',' if len(outputs) == 1 else ''} = {call}"
        self.body.lines.append(call)

    def _inline(self, piece: Piece, last: Mapping[fx.Node, int]) -> None:
        inside: dict[fx.Node, fx.Node] = {}
        kept = set(piece.outputs)
        for node in piece.nodes:
            for source in node.all_input_nodes:
                inside[source] = node
                self._ready(source)
        for node in piece.nodes:
            self.body.run(node)
            dead = [
                s for s, at in inside.items() if at is node and s in piece.nodes and s not in kept
            ]
            if not node.users:
                self.body.names.pop(node, None)
            self.body.drop(self.body.names[s] for s in dead)
        for node in piece.nodes:  # values that nothing reads, here or later
            if node.users and node not in inside and node not in kept:
                self.body.drop([self.body.names[node]])

    def _ready(self, node: fx.Node) -> None:
        """Give a number that is derived from numbers, or an attribute, its expression."""
        if node in self.body.names or node.op == "placeholder":
            return
        if node.op == "get_attr":
            self.body.run(node)
        elif nodes.is_scalar_node(node) and not any(node in p.nodes for p in self.partition.pieces):
            self.body.names[node] = number_source(node, self.body.names, self.body.space)

    # -- result

    def _results(self) -> tuple[str, ...]:
        """Make the values that the result is built of; returns the variables among them."""
        found: dict[str, None] = {}
        for value in self.partition.result:
            for node in _nodes_in(value):
                self._ready(node)
                name = self.body.names[node]
                if node.op not in ("placeholder", "get_attr") and name.isidentifier():
                    found.setdefault(name)
        return tuple(n for n in found if n not in self.parameters)

    def _result(self) -> None:
        values = [literal(v, self.body.names, self.body.space) for v in self.partition.result]
        if self.real:
            self._cut_back(values)
        if self.graph.result is None:
            self.body.lines.append(f"return ({', '.join(values)}{',' if len(values) == 1 else ''})")
            return
        if not self.graph.effects:
            self.body.lines.append(f"return {self._template(self.graph.result, values)}")
            return
        # Everything that a write could change under another write, or under the result, is read first.
        buffers = [b for b in map(self._buffer, self.graph.effects) if b is not None]
        new = [self._kept(e.template, values, buffers) for e in self.graph.effects]
        result = self._kept(self.graph.result, values, buffers)
        targets = [self._target(e) for e in self.graph.effects]
        for target, effect, template in zip(targets, self.graph.effects, new, strict=True):
            self.body.lines.append(self._effect(target, effect, self._template(template, values)))
        self.body.lines.append(f"return {self._template(result, values)}")

    def _kept(self, template: Template, values: Sequence[str], buffers: Sequence[str]) -> Template:
        """Put variables, set before all writes, in the place of what the writes may change."""
        if template.kind == "argument":
            path = self._path(template.ref)
            return Template("argument", self._variable(path) if template.ref.steps else path)
        tensor = template.kind in ("value", "weight") or isinstance(template.ref, torch.Tensor)
        if template.kind == "value":
            tensor = isinstance(nodes.value_of(self.partition.result[template.ref]), torch.Tensor)
        if tensor and buffers:
            apart = self.body.space.bind(_apart, "apart")
            own = self._template(template, values)
            return Template("argument", self._variable(f"{apart}({', '.join((own, *buffers))})"))
        parts = tuple((k, self._kept(p, values, buffers)) for k, p in template.parts)
        return Template(template.kind, template.ref, template.cls, parts)

    def _variable(self, text: str) -> str:
        if text not in self.kept:
            self.kept[text] = self.body.fresh("before")
            self.body.lines.append(f"{self.kept[text]} = {text}")
        return self.kept[text]

    def _path(self, path: Path) -> str:
        return str(Path(self.roots.get(path.root, path.root), path.steps))

    def _cut_back(self, values: list[str]) -> None:
        """Cut what padding added off the results."""
        cuts: list[str] = []
        for index, node in enumerate(self.partition.result):
            value = nodes.value_of(node) if isinstance(node, fx.Node) else None
            if isinstance(value, torch.SymInt):
                name = str(size_of(value, self.graph.names))
                if name in self.padded:
                    cuts.append(f"{values[index]} = {self.real[name]}")
            if not isinstance(value, torch.Tensor):
                continue
            for dim, size in enumerate(value.shape):
                name = str(size_of(size, self.graph.names))
                if name in self.padded:
                    made = self.body.fresh("cut")
                    cuts.append(f"{made} = {values[index]}.narrow({dim}, 0, {self.real[name]})")
                    values[index] = made
        if cuts:
            first = next(iter(self.real.values()))
            # Without padding the narrows keep the whole, so that one function serves both.
            sizes = [
                f"{r} = {s}" for s, r in zip(self.sizes.values(), self.real.values(), strict=True)
            ]
            self.body.lines += [f"if {first} is None:", *(f"    {line}" for line in sizes), *cuts]

    def _template(self, template: Template, values: Sequence[str]) -> str:
        named = {i: e for i, e in enumerate(self.graph.inputs) if e.kind == "weight"}
        by_name = {n: self.weights[i] for i, e in named.items() for n in e.names}
        unused: dict[int, list[str]] = {}
        plain = _weights_as_values(template, by_name, self.model, self._path, unused)
        made = template_source(plain, values.__getitem__)
        renames = {
            n: self.body.space.bind(v, _hint(v), unused.get(id(v))) for n, v in made.names.items()
        }
        return _rename(made.text, renames)

    def _target(self, effect: Effect) -> str:
        """Return what to write to: the object that is there now, wherever other writes move it."""
        if self._on_model(effect):
            return ""
        steps = effect.target.steps if effect.kind == "contents" else effect.target.steps[:-1]
        owner = self._path(Path(effect.target.root, steps))
        owner = self._variable(owner) if steps else owner
        return str(Path(owner, effect.target.steps[len(steps) :]))

    def _effect(self, target: str, effect: Effect, value: str) -> str:
        if self._on_model(effect):
            return self._model_effect(effect, value)
        if effect.kind == "contents":
            if effect.template.kind == "list":
                return f"{target}[:] = {value}"
            return f"{target}.clear(); {target}.update({value})"
        return f"{target} = {value}"

    def _on_model(self, effect: Effect) -> bool:
        return effect.target.root == "self" and "self" not in self.roots

    def _owner(self, effect: Effect) -> tuple[Any, str]:
        owner: Any = self.model
        for _, step in effect.target.steps[:-1]:
            owner = getattr(owner, step)
        return owner, effect.target.steps[-1][1]

    def _buffer(self, effect: Effect) -> str | None:
        """Return the buffer or parameter that an effect writes into, as source; None for all else."""
        if not self._on_model(effect):
            return None
        owner, name = self._owner(effect)
        if not isinstance(owner, torch.nn.Module) or name not in {
            **owner._buffers,
            **owner._parameters,
        }:
            return None
        return f"{self._bound_owner(effect, owner, name)}.{name}"

    def _model_effect(self, effect: Effect, value: str) -> str:
        owner, name = self._owner(effect)
        buffer = self._buffer(effect)
        if buffer is not None:
            self._check_buffer(effect, getattr(owner, name))
            return f"{buffer}.copy_({value})"
        return f"{self._bound_owner(effect, owner, name)}.{name} = {value}"

    def _bound_owner(self, effect: Effect, owner: Any, name: str) -> str:
        parts = [step for _, step in effect.target.steps[:-1]]
        return self.body.space.bind(owner, f"module_{name}", ["attribute", *parts])

    def _check_buffer(self, effect: Effect, buffer: Any) -> None:
        # A buffer that the model replaces: the same object is kept, and written into.
        made: Any = None
        if effect.template.kind == "value":
            made = nodes.value_of(self.partition.result[effect.template.ref])
        elif effect.template.kind == "weight":
            made = _weight(self.model, effect.template.ref)
        same = isinstance(made, torch.Tensor) and tuple(made.shape) == tuple(buffer.shape)
        if not same or made is None or made.dtype != buffer.dtype:
            raise CaptureError(
                f"the model replaces its buffer {effect.target} by another shape or dtype",
                why="the pieces are bound to the buffer that there was",
                next_step="Update it in place, or pass it as an argument.",
                subject=str(effect.target),
            )


def _apart(value: torch.Tensor, *buffers: torch.Tensor) -> torch.Tensor:
    """Return a tensor that keeps its values when the buffers are written to."""
    return value.clone() if any(overlap(value, buffer) for buffer in buffers) else value


def _weight(model: Any, name: str) -> Any:
    path, _, last = name.rpartition(".")
    return getattr(model.get_submodule(path), last)


def _nodes_in(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(value, found.append)
    return found


def _hint(value: Any) -> str:
    if isinstance(value, torch.dtype | torch.device):
        return str(value).removeprefix("torch.")
    return str(getattr(value, "__name__", type(value).__name__))


def _weights_as_values(
    template: Template, names: Mapping[str, str], model: Any, path: Callable[[Path], str],
    unused: dict[int, list[str]],
) -> Template:  # fmt: skip
    """Put a weight's variable, or the weight itself where the graph does not use it, in its place.

    `unused` gets the origin of each such weight, by the id of what stands for it.
    """
    if template.kind == "weight":
        if template.ref in names:  # results never require grad, not even the weights themselves
            return Template("argument", f"{names[template.ref]}.detach()")
        value = _weight(model, str(template.ref)).detach()
        unused[id(value)] = ["weight", str(template.ref)]
        return Template("constant", value)
    if isinstance(template.ref, Path):
        return Template(template.kind, path(template.ref))
    parts = tuple((k, _weights_as_values(p, names, model, path, unused)) for k, p in template.parts)
    return Template(template.kind, template.ref, template.cls, parts)


def _rename(text: str, renames: Mapping[str, str]) -> str:
    for before, after in sorted(renames.items(), key=lambda item: -len(item[0])):
        text = text.replace(f"\0{before}\0", after)
    return text


def stitch(
    graph: Graph, partition: Partition, compiled: frozenset[int], *, arguments: Sequence[Path],
    roots: Sequence[str], symbols: Sequence[str], model: Any = None,
    padded: tuple[str, ...] = (),
) -> Stitching:  # fmt: skip
    """Return the function that runs a partition.

    Its parameters are the tensors at `arguments`, then the call's own arguments `roots` (from which the
    result may take objects), then the values of `symbols`; with `padded`, then the sizes before padding
    or None. `compiled` has the index of every piece that is called.
    """
    named = {str(p): f"t_{p}" if p.steps else f"t_{p.root}" for p in arguments}
    writer = _Writer(graph, partition, compiled, named, model, padded)
    return writer.stitching(roots, symbols)
