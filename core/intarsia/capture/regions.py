"""Regional capture: trace one of many equal blocks, and write its part of the graph once for each.

A decoder is a list of blocks of one class. Dynamo would trace the same Python once per block. Here it
traces a shadow of the model, in which the first block of a group runs between two markers and every
other one is a single call; afterwards each such call is replaced by a copy of what the markers enclose,
with the weights of its own block. The result is the graph that a plain trace gives.

Nothing is assumed about the blocks: every Python value that tracing read in the first block is compared
with the same value in each other block, and a block that differs is traced on its own. Whatever does not
fit falls back to a plain trace, with a note that says why.
"""

from __future__ import annotations

import contextvars
import copy
import types
from collections.abc import Callable, Mapping, Sequence
from operator import getitem
from typing import Any

import torch
from attrs import define, evolve, field
from torch import fx

from intarsia import torch_compat
from intarsia.capture import nodes
from intarsia.capture.frozen import is_value_guard, read_source
from intarsia.torch_compat import FrameCapture

_ROUNDS = 3
"""How often groups may be made smaller before the model is traced plainly."""


_OBJECT = "its blocks take or return an object that is no tensor (a cache, say)"


class NotRegional(Exception):
    """The model cannot be captured by regions; the text says why."""


# -------------------------------------------------------------------------- what the shadow's blocks do


@define
class _Group:
    """Blocks that are traced as one: the first by itself, the others as calls.

    Attributes:
        paths: the blocks' qualified names.
        given, made: the fake tensors that enter and leave the first block.
        structure: how the first block's arguments were nested, with all that is no tensor.
    """

    paths: list[str]
    given: list[Any] = field(factory=list)
    made: list[Any] = field(factory=list)
    structure: Any = None
    stubs: list[torch.nn.Module] = field(factory=list)


_active: contextvars.ContextVar[list[_Group]] = contextvars.ContextVar("intarsia_regions")


def region_input(group: int, structure: Any, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Mark where the first block of a group begins; while tracing, runs on fake tensors."""
    entry = _active.get()[group]
    entry.structure, entry.given = structure, list(tensors)
    return tuple(t.view_as(t) for t in tensors)


def region_output(group: int, structure: Any, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Mark where the first block of a group ends."""
    entry = _active.get()[group]
    entry.made = list(tensors)
    for stub in entry.stubs:
        stub.__dict__["_intarsia_result"] = structure
    return tuple(t.view_as(t) for t in tensors)


def region_call(
    group: int, number: int, structure: Any, *tensors: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Stand for one of the other blocks: what it returns looks as the first block's result did."""
    entry = _active.get()[group]
    if not entry.made or structure != entry.structure:
        raise NotRegional(f"{entry.paths[number]} is called in another way than {entry.paths[0]}")
    # Compared now and not when the first block began: tracing it may have found two symbols equal.
    if [_shape(t) for t in tensors] != [_shape(t) for t in entry.given]:
        raise NotRegional(f"{entry.paths[number]} is given other shapes than {entry.paths[0]}")
    return tuple(
        torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device) for t in entry.made
    )


def _shape(tensor: torch.Tensor) -> tuple[Any, ...]:
    sizes = tuple(torch_compat.expression_of(s) for s in tensor.shape)
    strides = tuple(torch_compat.expression_of(s) for s in tensor.stride())
    return sizes, strides, tensor.dtype, tensor.device


_MARKS = (region_input, region_output, region_call)


def _flatten(value: Any, tensors: list[torch.Tensor]) -> Any:
    # Traced by Dynamo: plain Python on purpose.
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return "tensor"
    if value is None or isinstance(value, bool | int | float | str):
        return ("value", value)
    if isinstance(value, tuple):
        return ("tuple", tuple([_flatten(v, tensors) for v in value]))
    if isinstance(value, list):
        return ("list", tuple([_flatten(v, tensors) for v in value]))
    if isinstance(value, dict):
        return ("dict", tuple([(k, _flatten(v, tensors)) for k, v in value.items()]))
    raise NotRegional(_OBJECT)


def _unflatten(structure: Any, tensors: list[torch.Tensor]) -> Any:
    if structure == "tensor":
        return tensors.pop(0)
    kind, content = structure
    if kind == "value":
        return content
    if kind == "tuple":
        return tuple([_unflatten(s, tensors) for s in content])
    if kind == "list":
        return [_unflatten(s, tensors) for s in content]
    return {k: _unflatten(s, tensors) for k, s in content}


def _first_forward(group: int) -> Callable[..., Any]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        tensors: list[torch.Tensor] = []
        structure = _flatten((args, kwargs), tensors)
        inside = list(region_input(group, structure, *tensors))
        args, kwargs = _unflatten(structure, inside)
        result = type(self).forward(self, *args, **kwargs)
        outputs: list[torch.Tensor] = []
        shape = _flatten(result, outputs)
        return _unflatten(shape, list(region_output(group, shape, *outputs)))

    return forward


def _other_forward(group: int, number: int) -> Callable[..., Any]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        tensors: list[torch.Tensor] = []
        structure = _flatten((args, kwargs), tensors)
        made = list(region_call(group, number, structure, *tensors))
        return _unflatten(self._intarsia_result, made)

    return forward


# -------------------------------------------------------------------------------------------- grouping


def find_groups(model: Any) -> list[_Group]:
    """Return the groups of equally built blocks in the model's ModuleLists."""
    if not isinstance(model, torch.nn.Module):
        return []
    groups: list[_Group] = []
    inside: list[str] = []
    owners = _owners(model)
    for path, module in model.named_modules():
        if type(module) is not torch.nn.ModuleList or any(path.startswith(p) for p in inside):
            continue
        by_build: dict[Any, _Group] = {}
        for name, block in module.named_children():
            if "forward" not in vars(block):
                where = _join(path, name)
                build = (_build(block), _ties(block, where, owners))
                by_build.setdefault(build, _Group([])).paths.append(where)
        found = [g for g in by_build.values() if len(g.paths) > 1]
        groups += found
        inside += [p + "." for g in found for p in g.paths]
    return groups


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _owners(model: torch.nn.Module) -> dict[int, list[str]]:
    """Return id -> every qualified name of the model's parameters and buffers."""
    found: dict[int, list[str]] = {}
    parameters = model.named_parameters(remove_duplicate=False)
    tensors: list[tuple[str, torch.Tensor]] = [*parameters]
    tensors += model.named_buffers(remove_duplicate=False)
    for name, value in tensors:
        found.setdefault(id(value), []).append(name)
    return found


def _ties(block: torch.nn.Module, path: str, owners: Mapping[int, list[str]]) -> Any:
    """Return which of a block's tensors are one, in it and with the rest of the model."""
    found: list[Any] = []
    inside: dict[int, int] = {}
    for module in block.modules():
        tensors: list[Any] = [*module._parameters.values(), *module._buffers.values()]
        for value in tensors:
            if value is None:
                continue
            number = inside.setdefault(id(value), len(inside))
            shared = any(not name.startswith(f"{path}.") for name in owners.get(id(value), ()))
            found.append((number, id(value) if shared else None))
    return tuple(found)


def _build(block: torch.nn.Module) -> Any:
    """Return what two blocks must share before their values are even looked at."""
    parts: list[Any] = []
    for name, module in block.named_modules():
        hooks = any(v for k, v in vars(module).items() if k.endswith("_hooks"))
        tensors = tuple(
            (key, None if value is None else (type(value), tuple(value.shape), value.stride(),
                                              value.dtype, value.device))
            for table in (module._parameters, module._buffers) for key, value in table.items()
        )  # fmt: skip
        identity = id(module) if hooks else None  # what hooks do is nobody's to compare
        parts.append((name, type(module), tuple(vars(module)), tensors, identity))
    return tuple(parts)


def _shadow(model: torch.nn.Module, groups: Sequence[_Group]) -> torch.nn.Module:
    """Return a copy of the module tree down to the blocks; everything below is shared."""
    root = _shallow(model)
    made: dict[str, torch.nn.Module] = {"": root}
    for number, group in enumerate(groups):
        for position, path in enumerate(group.paths):
            parent, _, name = path.rpartition(".")
            holder = _copied(parent, made)
            block = _shallow(holder._modules[name])
            forward = _other_forward(number, position) if position else _first_forward(number)
            block.__dict__["forward"] = types.MethodType(forward, block)
            holder._modules[name] = block
            if position:
                group.stubs.append(block)
    return root


def _copied(path: str, made: dict[str, torch.nn.Module]) -> torch.nn.Module:
    if path not in made:
        parent, _, name = path.rpartition(".")
        holder = _copied(parent, made)
        made[path] = _shallow(holder._modules[name])
        holder._modules[name] = made[path]
    return made[path]


def _shallow(module: Any) -> torch.nn.Module:
    made: torch.nn.Module = copy.copy(module)
    made.__dict__ = {**vars(module), "_modules": dict(module._modules)}
    return made


# --------------------------------------------------------------------------------------------- tracing


def capture_by_regions(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[FrameCapture, str]:
    """Trace a model, each group of equal blocks once; returns the frame and a note.

    The note is "" where regions were used or there are none, and otherwise says why they were not.
    """
    groups = find_groups(model)
    if not groups:
        return torch_compat.capture_frame(model, args, kwargs), ""
    reason = "its blocks differ"
    for _ in range(_ROUNDS):
        try:
            frame, groups = _round(model, args, kwargs, groups)
        except Exception as error:  # whatever it is, the plain trace says it better if it is real
            reason = _reason(error)
            break
        if frame is not None:
            return frame, ""
        if not groups:
            break
    return torch_compat.capture_frame(model, args, kwargs), reason


def _reason(error: BaseException) -> str:
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, NotRegional):
        inner = inner.__cause__ or inner.__context__
    if inner is not None:
        return str(inner)
    text = f"{type(error).__name__}: {error}"
    if (
        NotRegional.__name__ in text
    ):  # raised inside the trace, where Dynamo makes it a text of its own
        return _OBJECT
    return text.splitlines()[0]


def _round(
    model: torch.nn.Module, args: Any, kwargs: Any, groups: list[_Group]
) -> tuple[FrameCapture | None, list[_Group]]:
    """Trace once; returns the frame, or None and smaller groups where blocks turned out to differ."""
    groups = [_Group(g.paths) for g in groups]
    shadow = _shadow(model, groups)
    token = _active.set(groups)
    try:
        with torch_compat.allowed_in_graph(_MARKS):
            frame = torch_compat.capture_frame(shadow, args, kwargs)
    finally:
        _active.reset(token)
    if frame.module is None:
        raise NotRegional("tracing found no tensor operation")
    frame = evolve(frame, root=model, traced_root=frame.root)
    smaller = _regrouped(frame, groups)
    if smaller is not None:
        return None, smaller
    return _Expansion(model, frame, groups).frame(), groups


def _regrouped(frame: FrameCapture, groups: Sequence[_Group]) -> list[_Group] | None:
    """Return smaller groups where a block's values differ from the first block's, else None."""
    found: list[_Group] = []
    differs = False
    for group in groups:
        sources = _sources_below(frame, group.paths[0])
        same = [group.paths[0]]
        others: list[str] = []
        for path in group.paths[1:]:
            (same if _agrees(frame, sources, group.paths[0], path) else others).append(path)
        differs = differs or bool(others)
        found += [_Group(paths) for paths in (same, others) if len(paths) > 1]
    if not differs:
        return None
    kept = sum(len(g.paths) for g in found)
    return found if kept * 2 > sum(len(g.paths) for g in groups) else []


def _sources_below(frame: FrameCapture, path: str) -> list[tuple[str, str]]:
    prefix = _source_of(frame, path)
    wanted = {(s, kind) for s, kind in frame.guards
              if prefix in s and (is_value_guard(kind) or kind in _IDENTITY_GUARDS)}  # fmt: skip
    return sorted(wanted)


def _source_of(frame: FrameCapture, path: str) -> str:
    root = frame.function.__code__.co_varnames[0]
    return f"L[{root!r}]" + "".join(f"._modules[{part!r}]" for part in path.split("."))


def _agrees(
    frame: FrameCapture, sources: Sequence[tuple[str, str]], first: str, other: str
) -> bool:
    before, after = _source_of(frame, first), _source_of(frame, other)
    for source, kind in sources:
        here = read_source(frame, source, kind)
        there = read_source(frame, source.replace(before, after), kind)
        if here != there:
            return False
    return True


_IDENTITY_GUARDS = {"ID_MATCH", "CLOSURE_MATCH", "FUNCTION_MATCH", "BUILTIN_MATCH", "CLASS_MATCH",
                    "NONE_MATCH", "BOOL_MATCH", "WEAKREF_ALIVE"}  # fmt: skip
"""Guards on which object something is: a function in an attribute, a class."""


# ------------------------------------------------------------------------------------------- expansion


class _Expansion:
    """Replaces markers and region calls in a traced graph."""

    def __init__(self, model: Any, frame: FrameCapture, groups: Sequence[_Group]) -> None:
        assert frame.module is not None
        self.model = model
        self.old = frame
        self.groups = groups
        self.graph: fx.Graph = frame.module.graph
        self.holes = [n for n in self.graph.nodes if n.op == "placeholder"]
        self.sources = list(frame.sources)
        self.extra: list[Any] = []
        self.guards = list(frame.guards)
        self.by_tensor: dict[int, fx.Node] = {}
        self.aliases: dict[int, Any] = {}

    def frame(self) -> FrameCapture:
        assert self.old.module is not None
        for hole, source in zip(self.holes, self.sources, strict=True):
            value = self._live(source)
            if isinstance(value, torch.Tensor):
                self.by_tensor.setdefault(id(value), hole)
        bodies = [self._body(number) for number in range(len(self.groups))]
        for call in [n for n in self.graph.nodes if n.target is region_call]:
            self._expand(call, bodies[call.args[0]])
        for mark in [n for n in self.graph.nodes if n.target in (region_input, region_output)]:
            self._unmark(mark, [*mark.args[2:]])
        self._tell_aliases()
        self.graph.lint()
        for group in self.groups:
            self._add_guards(group)
        return evolve(
            self.old, sources=tuple(self.sources), extra_inputs=tuple(self.extra),
            guards=tuple(self.guards), replicated=tuple(p for g in self.groups for p in g.paths),
        )  # fmt: skip

    def _live(self, source: str) -> Any:
        return read_source(self.old, source, "TENSOR") if "._modules[" in source else None

    def _body(self, number: int) -> _Body:
        order = list(self.graph.nodes)
        begin = next((n for n in order if n.target is region_input and n.args[0] == number), None)
        end = next((n for n in order if n.target is region_output and n.args[0] == number), None)
        if begin is None or end is None:
            raise NotRegional(f"{self.groups[number].paths[0]} was not called")
        inside = order[order.index(begin) + 1 : order.index(end)]
        for node in inside:
            if torch_compat.makes_unbacked(node):
                raise NotRegional(f"{self.groups[number].paths[0]} has sizes that depend on data")
        return _Body(self.groups[number], begin, end, inside)

    # -- one call

    def _expand(self, call: fx.Node, body: _Body) -> None:
        position: Any = call.args[1]
        path = body.group.paths[position]
        mapping = _Mapping(self, body, path, list(call.args[3:]))
        with self.graph.inserting_before(call):
            for node in body.nodes:
                if not (node.target is getitem and node.args[0] is body.begin):
                    mapping.copy(node)
        ends: Any = body.end.args[2:]
        results = [mapping.find(n) for n in ends]
        values = nodes.value_of(call)
        for value, result in zip(values, results, strict=True):
            self.aliases[torch_compat.storage_id(value)] = nodes.storage_of(result)
        self._unmark(call, results)

    def _unmark(self, mark: fx.Node, values: Sequence[Any]) -> None:
        for user in list(mark.users):
            assert user.target is getitem, user.format_node()
            index: Any = user.args[1]
            user.replace_all_uses_with(values[index])
            self.graph.erase_node(user)
        self.graph.erase_node(mark)

    def weight(self, hole: fx.Node, first: str, path: str) -> fx.Node:
        """Return the placeholder of a block's own weight for that of the first block."""
        source = self.sources[self.holes.index(hole)]
        own = source.replace(_source_of(self.old, first), _source_of(self.old, path))
        if own == source:
            return hole
        value = read_source(self.old, own, "TENSOR")
        if not isinstance(value, torch.Tensor):
            raise NotRegional(f"{own} is no tensor")
        if id(value) not in self.by_tensor:
            self.by_tensor[id(value)] = self._placeholder(hole, own, value)
        return self.by_tensor[id(value)]

    def _placeholder(self, like: fx.Node, source: str, value: torch.Tensor) -> fx.Node:
        with self.graph.inserting_after(self.holes[-1]):
            made = self.graph.placeholder(f"{like.name}_{len(self.holes)}")
        made.meta = {k: v for k, v in like.meta.items() if k != "grapharg"}
        made.meta[nodes.STORAGE] = ("weight", id(value))
        self.holes.append(made)
        self.sources.append(source)
        self.extra.append(value)
        return made

    def _tell_aliases(self) -> None:
        """Give nodes that view a region's result the storage that it has now."""
        for node in self.graph.nodes:
            value = nodes.value_of(node)
            if isinstance(value, torch.Tensor) and nodes.STORAGE not in node.meta:
                known = torch_compat.storage_id(value)
                while known in self.aliases:
                    known = self.aliases[known]
                    node.meta[nodes.STORAGE] = known

    def _add_guards(self, group: _Group) -> None:
        before = _source_of(self.old, group.paths[0])
        for source, kind in _sources_below(self.old, group.paths[0]):
            for path in group.paths[1:]:
                self.guards.append((source.replace(before, _source_of(self.old, path)), kind))


@define
class _Body:
    group: _Group
    begin: fx.Node
    end: fx.Node
    nodes: list[fx.Node]


class _Mapping:
    """Copies the first block's nodes for another block."""

    def __init__(self, owner: _Expansion, body: _Body, path: str, given: list[Any]) -> None:
        self.owner = owner
        self.body = body
        self.path = path
        self.inside = set(body.nodes)
        self.made: dict[fx.Node, Any] = {}
        self.storages: dict[Any, Any] = {}
        for node in body.begin.users:
            index: Any = node.args[1]
            self.made[node] = given[index]
            self.storages[nodes.storage_of(node)] = nodes.storage_of(given[index])

    def find(self, node: fx.Node) -> Any:
        """Return what stands for a node of the first block."""
        if node not in self.made:
            if node.op == "placeholder":
                made = self.owner.weight(node, self.body.group.paths[0], self.path)
                self.storages[nodes.storage_of(node)] = nodes.storage_of(made)
                self.made[node] = made
            elif node in self.inside:
                raise AssertionError(f"{node.name} is used before it is made")
            else:
                self.made[node] = node  # computed before the block, the same for every block
                self.storages[nodes.storage_of(node)] = nodes.storage_of(node)
        return self.made[node]

    def copy(self, node: fx.Node) -> None:
        """Copy one node; storages that the block makes get an identity of their own."""
        made = self.owner.graph.node_copy(node, self.find)
        made.meta = dict(node.meta)
        if isinstance(nodes.value_of(node), torch.Tensor):
            storage = nodes.storage_of(node)
            made.meta[nodes.STORAGE] = self.storages.setdefault(storage, (self.path, storage))
        stack = node.meta.get("nn_module_stack")
        if stack:
            made.meta["nn_module_stack"] = self._stack(stack)
        self.made[node] = made

    def _stack(self, stack: Mapping[str, Any]) -> dict[str, Any]:
        first = self.body.group.paths[0]
        return {
            f"{self.path}:{key}" if _is_below(path, first) else key:
            (_moved(path, first, self.path), cls)
            for key, (path, cls) in stack.items()
        }  # fmt: skip


def _is_below(path: str, first: str) -> bool:
    return f".{first}." in f"{path}." or path == first


def _moved(path: str, first: str, other: str) -> str:
    return (
        f"{path}.".replace(f".{first}.", f".{other}.", 1)[:-1] if _is_below(path, first) else path
    )


def regional_trace(note: Callable[[str], None]) -> Callable[..., FrameCapture]:
    """Return a function for `capture(trace=...)`; `note` is told why regions were not used."""

    def trace(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> FrameCapture:
        frame, reason = capture_by_regions(model, args, kwargs)
        if reason:
            note(f"captured without regions: {reason}")
        return frame

    return trace
