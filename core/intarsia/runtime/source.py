"""Python source for graphs: what runs splitting pieces, eager pieces and the stitching between pieces.

Operators, classes and constants are bound to names once; the code itself only has local variables and
these names. It is meant to be read: `explain(code=True)` prints it.
"""

from __future__ import annotations

import keyword
import linecache
import math
import operator
import re
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from types import CodeType
from typing import Any

import torch
from attrs import define, field
from torch import fx

from intarsia import torch_compat
from intarsia.capture import nodes

_INFIX = {
    operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/",
    operator.floordiv: "//", operator.mod: "%", operator.pow: "**", operator.matmul: "@",
    operator.eq: "==", operator.ne: "!=", operator.lt: "<", operator.le: "<=", operator.gt: ">",
    operator.ge: ">=", operator.and_: "&", operator.or_: "|", operator.xor: "^",
    operator.lshift: "<<", operator.rshift: ">>",
}  # fmt: skip
_SERIAL = count()


@define
class Namespace:
    """The names that generated code uses, and what they stand for.

    Attributes:
        taken: names of variables and parameters; in a function they would hide a value of that name.
        origins: name -> where the model has the value, as plain data, for values without a form of their own:
            ["attribute", parts...] or ["weight", qualified name].
    """

    values: dict[str, Any] = field(factory=dict)
    taken: set[str] = field(factory=set)
    origins: dict[str, Any] = field(factory=dict)
    _by_id: dict[int, str] = field(factory=dict, alias="_by_id")

    def bind(self, value: Any, hint: str, origin: Any = None) -> str:
        """Return the name of a value, a new one made from `hint` at its first use.

        `origin` tells where the model has it; None: the value speaks for itself.
        """
        known = self._by_id.get(id(value))
        if known is not None:
            return known
        name = base = identifier(hint)
        number = 1
        while name in self.values or name in self.taken:
            number += 1
            name = f"{base}_{number}"
        self.values[name] = value
        self._by_id[id(value)] = name
        if origin is not None:
            self.origins[name] = origin
        return name


def identifier(text: str) -> str:
    """Return text as a Python identifier."""
    name = re.sub(r"\W+", "_", text).strip("_") or "value"
    if name[0].isdigit() or keyword.iskeyword(name):
        name = f"_{name}"
    return name


def literal(value: Any, names: Mapping[fx.Node, str], space: Namespace) -> str:
    """Return an argument of a node as Python source."""
    if isinstance(value, fx.Node):
        return names[value]
    if value is None or type(value) in (bool, int, str):
        return repr(value)
    if type(value) is float:
        return repr(value) if math.isfinite(value) else f'float("{value}")'
    if value is Ellipsis:
        return "..."
    if isinstance(value, torch.Size):
        return literal(tuple(value), names, space)
    if type(value) is tuple:
        items = [literal(v, names, space) for v in value]
        return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
    if isinstance(value, list):
        return f"[{', '.join(literal(v, names, space) for v in value)}]"
    if isinstance(value, slice):
        parts = (literal(v, names, space) for v in (value.start, value.stop, value.step))
        return f"slice({', '.join(parts)})"
    if isinstance(value, Mapping):
        items = [f"{k!r}: {literal(v, names, space)}" for k, v in value.items()]
        return f"{{{', '.join(items)}}}"
    if isinstance(value, tuple):  # a named tuple
        made = ", ".join(literal(v, names, space) for v in value)
        return f"{space.bind(type(value), type(value).__name__)}({made})"
    return space.bind(value, str(value).removeprefix("torch.") if not callable(value) else
                      getattr(value, "__name__", "function"))  # fmt: skip


def expression(node: fx.Node, names: Mapping[fx.Node, str], space: Namespace) -> str:
    """Return the call of one node as Python source."""
    args = [literal(a, names, space) for a in node.args]
    keywords = [f"{k}={literal(v, names, space)}" for k, v in node.kwargs.items()]
    if node.op == "call_method":
        return f"{args[0]}.{node.target}({', '.join(args[1:] + keywords)})"
    if node.target is operator.getitem:
        return f"{args[0]}[{_index(node.args[1], names, space)}]"
    if node.target in _INFIX and not keywords:
        return f"({args[0]} {_INFIX[node.target]} {args[1]})"
    name = space.bind(resolved(node.target), function_hint(node))
    return f"{name}({', '.join(args + keywords)})"


def _index(index: Any, names: Mapping[fx.Node, str], space: Namespace) -> str:
    def part(value: Any) -> str:
        if not isinstance(value, slice):
            return literal(value, names, space)
        ends = ["" if v is None else literal(v, names, space) for v in (value.start, value.stop)]
        step = "" if value.step is None else f":{literal(value.step, names, space)}"
        return f"{ends[0]}:{ends[1]}{step}"

    if isinstance(index, tuple) and index:
        return ", ".join(part(v) for v in index) + ("," if len(index) == 1 else "")
    return part(index)


def resolved(target: Any) -> Any:
    """Return the overload that a packet with a single one always takes: one look-up less per call."""
    if torch_compat.is_operator(target) and not hasattr(target, "_schema"):
        overloads = torch_compat.packet_overloads(target)
        return overloads[0] if len(overloads) == 1 else target
    return target


def function_hint(node: fx.Node) -> str:
    """Return a readable name for a node's function."""
    name = torch_compat.operation_name(node.target)
    if name is not None:
        return name.removesuffix(".default")
    return str(getattr(node.target, "__name__", node.target))


@define
class Body:
    """The lines of a function that runs nodes one after the other, dropping values after their last use."""

    space: Namespace
    lines: list[str] = field(factory=list)
    names: dict[fx.Node, str] = field(factory=dict)

    def name_for(self, node: fx.Node) -> str:
        """Return a node's variable, a new one at its first use."""
        if node not in self.names:
            self.names[node] = self.fresh(node.name)
        return self.names[node]

    def fresh(self, hint: str) -> str:
        """Return an unused variable name."""
        base = name = identifier(hint)
        number = 1
        while name in self.space.taken or name in self.space.values or name in _BUILTIN:
            number += 1
            name = f"{base}_{number}"
        self.space.taken.add(name)
        return name

    def run(self, node: fx.Node) -> None:
        """Add the line that computes a node."""
        if node.op == "get_attr":
            value: Any = node.graph.owning_module
            for part in str(node.target).split("."):
                value = getattr(value, part)
            self.names[node] = self.space.bind(value, str(node.target))
            return
        text = expression(node, self.names, self.space)
        self.lines.append(f"{self.name_for(node)} = {text}" if node.users else text)

    def drop(self, dead: Iterable[str]) -> None:
        """Add the line that lets go of variables."""
        names = list(dead)
        if names:
            self.lines.append(f"del {', '.join(names)}")


_BUILTIN = {"slice", "float", "int", "weights", "self"}


def last_uses(order: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Return node -> the nodes whose value nobody needs after it."""
    last: dict[fx.Node, fx.Node] = {}
    for node in order:
        for source in node.all_input_nodes:
            last[source] = node
    found: dict[fx.Node, list[fx.Node]] = {}
    for source, node in last.items():
        found.setdefault(node, []).append(source)
    return found


def graph_source(module: fx.GraphModule, name: str) -> tuple[str, Namespace]:
    """Return the source of a function `name` that runs a graph on positional inputs, and its names."""
    body = Body(Namespace())
    holes = [n for n in module.graph.nodes if n.op == "placeholder"]
    inputs = [body.name_for(n) for n in holes]
    dead = last_uses([n for n in module.graph.nodes if n.op != "get_attr"])
    for node in module.graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "output":
            body.lines.append(f"return {literal(tuple(node.args[0]), body.names, body.space)}")
            continue
        body.run(node)
        if node.op != "get_attr":
            body.drop(body.names[n] for n in dead.get(node, ()) if _is_variable(n, body))
    text = "\n    ".join(body.lines)
    return f"def {name}({', '.join(inputs)}):\n    {text}\n", body.space


def _is_variable(node: fx.Node, body: Body) -> bool:
    return node.op != "get_attr" and body.names.get(node) not in body.space.values


def compile_source(
    source: str, name: str, values: Mapping[str, Any], title: str
) -> Callable[..., Any]:
    """Return the function that source defines, with names bound; tracebacks show its lines."""
    return bind_code(code_of(source, title), name, values)


def code_of(source: str, title: str) -> Any:
    """Compile source, and let tracebacks show its lines."""
    filename = f"<intarsia {title} {next(_SERIAL)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    code = compile(source, filename, "exec")
    for inner in code.co_consts:
        if isinstance(
            inner, CodeType
        ):  # the function's, which lives as long as anything that runs it
            weakref.finalize(inner, linecache.cache.pop, filename, None).atexit = False
    return code


def bind_code(code: Any, name: str, values: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the function `name` of compiled source, with names bound."""
    scope: dict[str, Any] = dict(values)
    exec(code, scope)
    function: Callable[..., Any] = scope.pop(
        name
    )  # else it would be in a cycle with its own globals
    return function


def number_source(node: fx.Node, names: Mapping[fx.Node, str], space: Namespace) -> str:
    """Return the expression of a number that is derived from other numbers, in place."""
    made: dict[fx.Node, str] = dict(names)

    def visit(current: fx.Node) -> None:
        for source in current.all_input_nodes:
            if source not in made:
                visit(source)
        if current not in made:
            made[current] = expression(current, made, space)

    visit(node)
    return made[node]


def is_number(node: fx.Node) -> bool:
    """Say whether a node is a number that its users compute in place."""
    return nodes.is_scalar_node(node)
