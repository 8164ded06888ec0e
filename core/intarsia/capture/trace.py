"""Capture a model: trace one call, name its sizes, and write down the contract of a call."""

from __future__ import annotations

import copy
import re
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, MutableSet, Sequence
from typing import Any

import torch
from attrs import evolve, frozen
from torch import fx

from intarsia import torch_compat
from intarsia.capture import nodes
from intarsia.capture.call import Call, argument_values, bind_call, describe
from intarsia.capture.conditions import only_about_one
from intarsia.capture.dynamic import Dynamic, NamedDim, choose_hints, named_dims, resized
from intarsia.capture.environment import variables_read
from intarsia.capture.frozen import (
    FrozenValue,
    frame_scope,
    frozen_values,
    label_of,
    reader,
    tensor_source,
)
from intarsia.capture.graph import (
    ArgumentTree,
    Condition,
    Expected,
    Graph,
    GraphInput,
    Symbol,
)
from intarsia.capture.held import held_objects
from intarsia.capture.normalise import normalise
from intarsia.capture.regions import NotRegional
from intarsia.capture.structure import (
    Effect,
    Path,
    Step,
    Template,
    effects_on,
    is_opaque,
    is_scalar,
    structural_copy,
    template_of,
    walk,
)
from intarsia.capture.surroundings import surroundings
from intarsia.errors import CaptureError

_HAS = re.compile(r"hasattr\((?P<of>.+), '(?P<name>\w+)'\)")
_OWNS = re.compile(r"\('(?P<name>\w+)' in (?P<of>.+)\.__dict__\)")
"""What torch_compat makes of the guards on an attribute's presence."""


def capture(
    model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, dynamic: Dynamic,
    ranges: Mapping[str, tuple[int, int | None]], fixed: Mapping[str, int],
    trace: Callable[..., torch_compat.FrameCapture] | None = None,
) -> Graph:  # fmt: skip
    """Capture one call of a model as a single graph.

    Args:
        model: a module, a function or a bound method.
        args, kwargs: an example call. The tensors are not changed and no kernel runs on them.
        dynamic: argument name -> {dimension: symbol name}.
        ranges: symbol name -> (lowest, highest or None).
        fixed: symbols to trace at exactly one size, for a branch that only that size takes.
        trace: what traces the frame; None: one trace of the whole model.

    Raises:
        CaptureError: the model cannot be captured; the message has the reason and the source line.
    """
    started = time.perf_counter()
    call = bind_call(model, args, kwargs)
    dims = named_dims(dynamic, call.values)
    hints = choose_hints(dims, call.values, ranges, fixed)
    example = Call(call.parameters, resized(call.values, dims, hints))
    symbolic = [d for d in dims if d.name not in fixed]
    with torch_compat.tracing_lock():
        frame = _traced(model, example, symbolic, trace or torch_compat.capture_frame)
        if frame.module is None:
            raise CaptureError(
                f"{describe(model)} has no tensor operation that depends on its arguments",
                why="tracing found nothing to compile",
            )
        try:
            graph = _Reader(model, example, frame, symbolic, hints, ranges).graph()
        except NotRegional:  # a block does something to the model that its copies would not do
            frame = _traced(model, example, symbolic, torch_compat.capture_frame)
            graph = _Reader(model, example, frame, symbolic, hints, ranges).graph()
    return evolve(graph, seconds=time.perf_counter() - started)


def _traced(
    model: Any, call: Call, dims: Sequence[NamedDim], trace: Callable[..., Any]
) -> torch_compat.FrameCapture:
    args, kwargs = call.split()
    tensors = [v for _, v in argument_values(call) if isinstance(v, torch.Tensor)]
    by_path = {str(p): v for p, v in argument_values(call)}
    with torch.no_grad(), torch_compat.marks_restored(tensors):
        for entry in dims:
            torch_compat.mark_dynamic(by_path[str(entry.path)], entry.dim)
        try:
            with variables_read() as variables:
                frame: torch_compat.FrameCapture = trace(model, args, kwargs)
        except Exception as error:
            if not torch_compat.is_capture_failure(error):
                raise
            raise CaptureError(
                f"{describe(model)} cannot be captured as one graph",
                why=torch_compat.capture_failure(error),
                next_step="Change that line, or use torch.compile(model, backend="
                '"intarsia"), which allows graph breaks.',
                subject=describe(model),
            ) from error
    return evolve(frame, variables=tuple(variables))


class _Reader:
    """Reads a traced frame into a Graph."""

    def __init__(
        self, model: Any, call: Call, frame: torch_compat.FrameCapture, dims: Sequence[NamedDim],
        hints: Mapping[str, int], ranges: Mapping[str, tuple[int, int | None]],
    ) -> None:  # fmt: skip
        assert frame.module is not None
        self.model = model
        self.call = call
        self.frame = frame
        self.dims = dims
        self.hints = hints
        self.ranges = ranges
        self.env = frame.fake_mode.shape_env
        self.holes = [n for n in frame.module.graph.nodes if n.op == "placeholder"]
        self.weights = _named_tensors(frame.root)
        self.kinds = {p.name: p.kind for p in call.parameters}
        self.paths: dict[int, Path] = {}
        for path, value in argument_values(call):
            if isinstance(value, torch.Tensor):
                self.paths.setdefault(id(value), path)

    def graph(self) -> Graph:
        run = self._rebuild()
        values_in = (*run.inputs, *self.frame.extra_inputs)
        inputs = [self._input(hole, value, source) for hole, value, source in
                  zip(self.holes, values_in, self.frame.sources, strict=True)]  # fmt: skip
        names = self._names(inputs)
        inputs = [self._named_symbol(i, h, names) for i, h in zip(inputs, self.holes, strict=True)]
        values, opaque = frozen_values(self.frame)
        self._refuse_replicated(run.effects)
        self._refuse_state(run, values)
        given = [value for _, value in argument_values(self.call)]
        assert self.frame.module is not None
        return Graph(
            module=normalise(self.frame.module, names),
            inputs=tuple(inputs),
            symbols=self._symbols(names),
            names=names,
            conditions=self._conditions(names),
            fake_mode=self.frame.fake_mode,
            arguments=self._arguments(),
            result=run.result,
            effects=tuple(run.effects),
            frozen=tuple(values),
            surroundings=tuple(surroundings(self.frame, given)),
            opaque=tuple(opaque),
            codes=self.frame.codes,
            variables=self.frame.variables,
            scope=frame_scope(self.frame),
        )

    # -- inputs

    def _rebuild(self) -> _Rebuilt:
        return rebuild(self.frame, self.call, self.paths, self.weights)

    def _input(self, hole: fx.Node, value: Any, source: str) -> GraphInput:
        if not isinstance(value, torch.Tensor):
            return GraphInput("symbol", source)
        if id(value) in self.paths:
            return GraphInput("argument", source, path=self.paths[id(value)])
        names = self.weights.get(id(value), ())
        is_parameter = isinstance(value, torch.nn.Parameter)
        if names:
            return GraphInput("weight", names[0], names=names, source=source,
                              is_parameter=is_parameter, value=value)  # fmt: skip
        found = tensor_source(self.frame, source, value)
        read = None if found is None else reader(self.frame)
        return GraphInput("constant", label_of(source), source=found or source,
                          is_parameter=is_parameter, value=value, read=read)  # fmt: skip

    def _named_symbol(
        self, entry: GraphInput, hole: fx.Node, names: Mapping[Any, str]
    ) -> GraphInput:
        if entry.kind != "symbol":
            return entry
        expression = torch_compat.expression_of(nodes.value_of(hole))
        return evolve(entry, name=names.get(expression, str(expression)), source=entry.name)

    # -- symbols

    def _names(self, inputs: Sequence[GraphInput]) -> dict[Any, str]:
        sources = {
            str(i.path): s for i, s in zip(inputs, self.frame.sources, strict=True) if i.path
        }
        names: dict[Any, str] = {}
        for entry in self.dims:
            source = sources.get(str(entry.path))
            symbol = source and torch_compat.symbol_of_size(self.env, source, entry.dim)
            if symbol is not None and symbol != "":
                names[symbol] = entry.name
        for symbol in torch_compat.all_symbols(self.env):
            names.setdefault(symbol, str(symbol))
        return names

    def _symbols(self, names: Mapping[Any, str]) -> dict[str, Symbol]:
        replaced = torch_compat.replacements(self.env)
        readable = self._readable(names)
        found: dict[str, Symbol] = {}
        for symbol, name in names.items():
            value = replaced.get(symbol)
            if value is not None and not getattr(value, "is_Integer", False):
                continue  # it is another symbol's size, or computed from others
            hint = self.hints.get(name) or torch_compat.hint_of(self.env, symbol) or 2
            found[name] = Symbol(name, *self._range(symbol, name), hint, dispatch=name in readable)
        return found

    def _range(self, symbol: Any, name: str) -> tuple[int, int | None]:
        """Return what may be asked of a symbol; what tracing added to that are conditions."""
        if torch_compat.is_unbacked(symbol):
            return torch_compat.symbol_range(self.env, symbol)
        return self.ranges.get(name, (0, None))

    def _readable(self, names: Mapping[Any, str]) -> set[str]:
        """Return the symbols that are a size of some argument: those that a call can be told by."""
        found = {d.name for d in self.dims}
        for hole in self.holes:
            value = nodes.value_of(hole)
            for size in value.shape if isinstance(value, torch.Tensor) else ():
                found.add(names.get(torch_compat.expression_of(size), ""))
        return found

    def _conditions(self, names: Mapping[Any, str]) -> tuple[Condition, ...]:
        merged: dict[str, Any] = {}
        swap: dict[Any, Any] = {}
        replaced = torch_compat.replacements(self.env)
        for symbol, name in names.items():
            value = replaced.get(symbol)
            is_number = value is None or getattr(value, "is_Integer", False)
            swap[symbol] = merged.setdefault(name, symbol) if is_number else value
        found = []
        for guard in torch_compat.shape_guards(self.env):
            expression = guard.expression.xreplace(swap)
            if expression in (True, torch_compat.TRUE):
                continue
            if guard.in_python or not only_about_one(expression):
                found.append(Condition(expression, guard.where))
        found += self._rank_conditions(swap)
        for symbol, value in replaced.items():
            if getattr(value, "is_Integer", False):
                found.append(
                    Condition(torch_compat.equal(swap.get(symbol, symbol), value), "tracing")
                )
        for symbol in names:
            if symbol not in replaced and not torch_compat.is_unbacked(symbol):
                found.extend(Condition(e, "tracing") for e in torch_compat.bounds(self.env, symbol))
        return tuple(_unique(found))

    def _rank_conditions(self, swap: Mapping[Any, Any]) -> list[Condition]:
        """A squeeze drops a dimension of size 1 and no other: its rank was decided while tracing."""
        assert self.frame.module is not None
        found = []
        for node in self.frame.module.graph.nodes:
            for size in nodes.squeezed_sizes(node):
                if isinstance(size, torch.SymInt):
                    expression = torch_compat.expression_of(size).xreplace(dict(swap))
                    where = (node.meta.get("stack_trace") or "a squeeze").strip().splitlines()[-1]
                    found.append(Condition(torch_compat.unequal(expression, 1), where.strip()))
        return [c for c in found if c.expression not in (True, torch_compat.TRUE)]

    # -- contract

    def _arguments(self) -> ArgumentTree:
        values: list[tuple[Path, Expected]] = []
        tensors: list[Path] = []
        subclasses: list[tuple[Path, type]] = []
        same: dict[int, list[Path]] = {}
        for path, value in argument_values(self.call):
            if isinstance(value, torch.Tensor):
                tensors.append(path)
                if type(value) not in (torch.Tensor, torch.nn.Parameter):
                    subclasses.append((path, type(value)))
                same.setdefault(id(value), []).append(path)
            else:
                values.extend((path, e) for e in self._expected(path, value))
                values.extend((path, e) for e in self._asked_for(path, value))
        groups = tuple(tuple(paths) for paths in same.values() if len(paths) > 1)
        return ArgumentTree(self.call.parameters, tuple(values), tuple(tensors), groups,
                            tuple(subclasses), self._autocast())  # fmt: skip

    def _autocast(self) -> tuple[tuple[str, torch.dtype | None], ...]:
        kinds = {value.device.type for value in map(nodes.value_of, self.holes)
                 if isinstance(value, torch.Tensor)}  # fmt: skip
        return tuple(
            (kind, torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None)
            for kind in sorted(kinds) if torch.amp.is_autocast_available(kind)
        )  # fmt: skip

    def _expected(self, path: Path, value: Any) -> list[Expected]:
        if path.steps and path.steps[-1][0] == "." and not self._was_read(path):
            return []  # an attribute of an object that tracing never looked at may be anything
        if is_scalar(value) or is_opaque(value):
            changes = isinstance(value, MutableSet | bytearray | array)
            return [Expected("equal", copy.copy(value) if changes else value)]
        # Python itself makes the containers of *args and **kwargs.
        made = not path.steps and self.kinds.get(path.root) in ("args", "kwargs")
        kind = [] if made else [Expected("class", type(value))]
        if isinstance(value, Mapping):
            return [*kind, Expected("keys", tuple(value))]
        if isinstance(value, list | tuple):
            return [*kind, Expected("length", len(value))]
        return [Expected("class", type(value))]

    def _asked_for(self, path: Path, value: Any) -> Iterator[Expected]:
        """Yield whether an object has the attributes that tracing asked it for."""
        of = f"L[{path.root!r}]{_source_of(path)}"
        for source, _ in sorted(set(self.frame.guards)):
            if found := _HAS.fullmatch(source):
                if found["of"] == of:
                    yield Expected("attribute", (found["name"], hasattr(value, found["name"])))
            elif (found := _OWNS.fullmatch(source)) and found["of"] == of:
                yield Expected("own attribute", (found["name"], found["name"] in value.__dict__))

    def _was_read(self, path: Path) -> bool:
        text = _source_of(path)
        return any(source.endswith(text) and path.root in source for source, _ in self.frame.guards)

    # -- effects

    def _refuse_replicated(self, effects: Sequence[Effect]) -> None:
        """Refuse regions where a block writes to itself: only the traced one's write would be known."""
        for effect in effects:
            path = ".".join(str(step) for _, step in effect.target.steps)
            if any(path.startswith(f"{block}.") for block in self.frame.replicated):
                raise NotRegional(f"{effect.target} is written in a forward")

    def _refuse_state(self, run: _Rebuilt, values: Sequence[FrozenValue]) -> None:
        """Refuse a write that the graph cannot keep true: to what tracing read, or out of its reach."""
        read = {entry.label for entry in values}
        for effect in run.effects:
            label = str(effect.target)
            if effect.target.root == "self" and label in read:
                raise self._state_error(
                    f"reads and writes {label}", label,
                    "the value that tracing saw would be used on every call",
                )  # fmt: skip
        for label in run.lost:
            raise self._state_error(
                f"writes {label}",
                label,
                "a write to such an object would only happen while tracing",
            )

    def _state_error(self, what: str, label: str, why: str) -> CaptureError:
        return CaptureError(
            f"{describe(self.model)} {what} in its forward", why=why,
            next_step='Keep it in a buffer, or use torch.compile(model, backend="intarsia").',
            subject=label,
        )  # fmt: skip


@frozen
class _Rebuilt:
    """What a frame's Python does; `lost` names writes that nothing can do again on a call."""

    inputs: tuple[Any, ...]
    result: Template
    effects: tuple[Effect, ...]
    lost: tuple[str, ...] = ()


def rebuild(
    frame: torch_compat.FrameCapture, call: Call, paths: Mapping[int, Path],
    weights: Mapping[int, tuple[str, ...]],
) -> _Rebuilt:  # fmt: skip
    """Run the frame's Python once around markers instead of the graph, to see what it does with them.

    The markers stand for the graph's outputs. What the frame passes to the graph tells where each input
    comes from; what it returns and changes tells how to build the result. The caller's own objects are
    copied first, and the model's attributes put back.
    """
    assert frame.module is not None
    output = frame.module.graph.output_node().args[0]
    marks = _markers(output)
    memo: dict[int, Any] = {}
    arguments = {name: structural_copy(v, memo) for name, v in call.values.items()}
    twins: dict[int, Any] = {}
    for value in arguments.values():
        structural_copy(value, twins)
    objects = _objects(arguments)
    received: list[tuple[Any, ...]] = []

    def stand_in(*inputs: Any) -> list[Any]:
        received.append(inputs)
        return marks

    args, kwargs = Call(call.parameters, arguments).split()
    held = held_objects(frame)
    with torch.no_grad(), _module_restored(frame.traced_root or frame.root) as written:
        try:
            value = frame.rebuild(stand_in)(*args, **kwargs)
            changed, lost = written(), held.written()
        finally:
            held.restore()
        known = _known(marks, objects, paths, weights)
        effects = [
            effect for key, (path, after) in objects.items()
            for effect in effects_on(twins[key], after, path, known, twins)
        ]  # fmt: skip
        effects += [Effect(path, template_of(new, known), "attribute") for path, new in changed]
        made = {i: p for i, (p, _) in _objects(arguments).items() if i not in objects}
        result = template_of(value, _or_made(known, made))
    lost += [f"global {name}" for name in frame.written_globals]
    return _Rebuilt(received[0] if received else (), result, tuple(effects), tuple(lost))


def _markers(output: Any) -> list[Any]:
    values = output if isinstance(output, tuple | list) else (output,)
    marks: list[Any] = []
    for index, node in enumerate(values):
        value = nodes.value_of(node) if isinstance(node, fx.Node) else node
        marks.append(
            torch.empty(0) if isinstance(value, torch.Tensor) else (1 << 40) + 7919 * index
        )
    return marks


def _objects(arguments: Mapping[str, Any]) -> dict[int, tuple[Path, Any]]:
    """Return id -> (path, object) of the containers and objects in arguments, as they are now."""
    found: dict[int, tuple[Path, Any]] = {}
    for name, value in arguments.items():
        for path, part in walk(value, Path(name)):
            leaf = isinstance(part, torch.Tensor | tuple) or is_scalar(part) or is_opaque(part)
            if not leaf:
                found.setdefault(id(part), (path, part))
    return found


def _or_made(
    known: Callable[[Any], Template | None], made: Mapping[int, Path]
) -> Callable[[Any], Template | None]:
    """Also recognise the objects that the call itself put into its arguments, by where they are then."""

    def found(value: Any) -> Template | None:
        template = known(value)
        if template is None and id(value) in made:
            return Template("written", made[id(value)])
        return template

    return found


def _known(
    marks: Sequence[Any], objects: Mapping[int, tuple[Path, Any]], paths: Mapping[int, Path],
    weights: Mapping[int, tuple[str, ...]],
) -> Callable[[Any], Template | None]:  # fmt: skip
    outputs = {id(m): i for i, m in enumerate(marks) if isinstance(m, torch.Tensor)}
    numbers = {m: i for i, m in enumerate(marks) if not isinstance(m, torch.Tensor)}

    def known(value: Any) -> Template | None:
        if isinstance(value, torch.Tensor):
            if id(value) in outputs:
                return Template("value", outputs[id(value)])
            if id(value) in paths:
                return Template("argument", paths[id(value)])
            if id(value) in weights:
                return Template("weight", weights[id(value)][0])
            return None
        if type(value) is int and value in numbers:
            return Template("value", numbers[value])
        if id(value) in objects:
            return Template("argument", objects[id(value)][0])
        return None

    return known


class _module_restored:  # noqa: N801  (a context manager, used like a function)
    """Let a block write to a module's attributes, tell what it wrote, and put everything back."""

    def __init__(self, root: Any) -> None:
        self.modules = list(root.named_modules()) if isinstance(root, torch.nn.Module) else []
        self.saved = [self._state(module) for _, module in self.modules]

    @staticmethod
    def _state(module: torch.nn.Module) -> dict[str, Any]:
        state = dict(vars(module))
        for table in ("_buffers", "_parameters"):
            state[table] = dict(state[table])
        return state

    def __enter__(self) -> Callable[[], list[tuple[Path, Any]]]:
        return self._written

    def _written(self) -> list[tuple[Path, Any]]:
        found: list[tuple[Path, Any]] = []
        for (name, module), before in zip(self.modules, self.saved, strict=True):
            steps: tuple[Step, ...] = tuple((".", part) for part in name.split(".")) if name else ()
            for table in ("_buffers", "_parameters"):
                for key, value in getattr(module, table).items():
                    if before[table].get(key) is not value:
                        found.append((Path("self", (*steps, (".", key))), value))
            for key, value in vars(module).items():
                same = before.get(key) is value or (is_scalar(value) and before.get(key) == value)
                if key not in ("_buffers", "_parameters") and not same:
                    found.append((Path("self", (*steps, (".", key))), value))
        return found

    def __exit__(self, *_: object) -> None:
        for (_, module), before in zip(self.modules, self.saved, strict=True):
            for table in ("_buffers", "_parameters"):
                live = getattr(module, table)
                if [(k, id(v)) for k, v in live.items()] != [
                    (k, id(v)) for k, v in before[table].items()
                ]:
                    live.clear()
                    live.update(before[table])
            tables = {k: getattr(module, k) for k in ("_buffers", "_parameters")}
            vars(module).clear()
            vars(module).update({**before, **tables})


def _named_tensors(root: Any) -> dict[int, tuple[str, ...]]:
    """Return id -> every qualified name of a module's parameters and buffers."""
    if not isinstance(root, torch.nn.Module):
        return {}
    names: dict[int, list[str]] = {}
    tensors: list[tuple[str, torch.Tensor]] = [*root.named_parameters(remove_duplicate=False)]
    for name, value in [*tensors, *root.named_buffers(remove_duplicate=False)]:
        names.setdefault(id(value), []).append(name)
    return {key: tuple(found) for key, found in names.items()}


def _unique(conditions: Sequence[Condition]) -> list[Condition]:
    found: dict[str, Condition] = {}
    for condition in conditions:
        found.setdefault(str(condition.expression), condition)
    return list(found.values())


def _source_of(path: Path) -> str:
    """Return what Dynamo writes behind the name of an argument that a path begins with."""
    return "".join(f".{step}" if kind == "." else f"[{step!r}]" for kind, step in path.steps)
