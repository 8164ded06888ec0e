"""Bring a captured graph into the shape that the splitter expects.

- Regions (`invoke_subgraph`) are inlined.
- `x.size()` becomes numbers: literals for fixed dimensions, the symbol's own placeholder or one
  `sym_size` node for the others. A consumer that took the whole size gets a tuple in its place, so
  `reshape(y, x.shape)` and `zeros(size=x.shape)` keep their list argument.
- Numbers that nobody uses and calls that only count API use are dropped.
- The output is a flat tuple.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx

from intarsia import torch_compat
from intarsia.capture import nodes

_SHAPE_GETTERS = ("shape",)


def normalise(module: fx.GraphModule, names: Mapping[Any, str]) -> fx.GraphModule:
    """Return the graph in normal form, as a new GraphModule; nodes keep their metadata."""
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(module.graph, mapping)
    graph.output(_flat_tuple(result))
    made = fx.GraphModule(module, graph)
    for _ in range(8):  # a region may call regions
        if not _inline_regions(made):
            break
    _lower_sizes(made.graph, names)
    _drop_unused(made.graph)
    graph.lint()
    return made


def _flat_tuple(result: Any) -> tuple[Any, ...]:
    return tuple(result) if isinstance(result, tuple | list) else (result,)


# -------------------------------------------------------------------------------------------- regions


def _inline_regions(module: fx.GraphModule) -> bool:
    calls = [node for node in module.graph.nodes if torch_compat.is_invoke_subgraph(node)]
    for call in calls:
        _inline(module, call)
    return bool(calls)


def _inline(module: fx.GraphModule, call: fx.Node) -> None:
    getter: Any = call.args[0]
    body = module.get_submodule(str(getter.target))
    assert isinstance(body, fx.GraphModule)
    operands = call.args[2:]
    holes = [node for node in body.graph.nodes if node.op == "placeholder"]
    mapping: dict[fx.Node, Any] = dict(zip(holes, operands, strict=True))
    with module.graph.inserting_before(call):
        result = _flat_tuple(_copy_body(module, body, mapping))
    _tell_storages(call.name, mapping)
    for user in list(call.users):
        assert user.target is operator.getitem, user.format_node()
        index: Any = user.args[1]
        _tell_views(user, nodes.storage_of(result[index]))
        user.replace_all_uses_with(result[index])
        module.graph.erase_node(user)
    module.graph.erase_node(call)
    if not getter.users:
        module.graph.erase_node(getter)


def _copy_body(module: fx.GraphModule, body: fx.GraphModule, mapping: dict[fx.Node, Any]) -> Any:
    for node in body.graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "output":
            return fx.map_arg(node.args[0], mapping.__getitem__)
        if node.op == "get_attr":
            name = f"_inlined_{len(list(module.children()))}_{str(node.target).replace('.', '_')}"
            setattr(module, name, _attribute(body, str(node.target)))
            mapping[node] = module.graph.get_attr(name)
            mapping[node].meta = dict(node.meta)
            continue
        mapping[node] = module.graph.node_copy(node, mapping.__getitem__)
    raise AssertionError("a graph without an output")


def _tell_storages(call: str, mapping: Mapping[fx.Node, Any]) -> None:
    """Give what a region makes storages of their own: every call of it has the same fake values."""
    moved: dict[Any, Any] = {}
    for node, made in mapping.items():
        storage = nodes.storage_of(node)
        if storage is None or not isinstance(made, fx.Node):
            continue
        if node.op == "placeholder":
            moved.setdefault(storage, nodes.storage_of(made))
        else:
            made.meta[nodes.STORAGE] = moved.setdefault(storage, (call, storage))


def _tell_views(result: fx.Node, storage: Any) -> None:
    """Give the views of a region's result, and of such views, the storage that the result has now."""
    known = nodes.storage_of(result)
    if storage is None or known == storage:
        return
    views = {result}
    for node in _following(result):
        if nodes.storage_of(node) == known and views.intersection(node.all_input_nodes):
            node.meta[nodes.STORAGE] = storage
            views.add(node)


def _following(start: fx.Node) -> Iterator[fx.Node]:
    """Yield the nodes after one, in program order."""
    node = start.next
    while node.op != "root":
        yield node
        node = node.next


def _attribute(root: Any, path: str) -> Any:
    for part in path.split("."):
        root = getattr(root, part)
    return root


# ---------------------------------------------------------------------------------------------- sizes


class _Dims:
    """Gives the number or node for a dimension, and makes each node once."""

    def __init__(self, graph: fx.Graph, names: Mapping[Any, str]) -> None:
        self.graph = graph
        self.names = names
        self.placeholders: dict[str, fx.Node] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                name = self.plain_name(nodes.value_of(node))
                if name is not None:
                    self.placeholders.setdefault(name, node)

    def plain_name(self, value: Any) -> str | None:
        """Return the symbol's name where a value is exactly one symbol."""
        if not isinstance(value, torch.SymInt):
            return None
        expression = torch_compat.expression_of(value)
        return self.names.get(expression) if expression.is_Symbol else None

    def number(self, value: Any) -> Any:
        """Return a literal or a symbol's placeholder for a value, or None."""
        if isinstance(value, int):
            return value
        if isinstance(value, torch.SymInt):
            expression = torch_compat.expression_of(value)
            if expression.is_Integer:
                return int(expression)
        return self.placeholders.get(self.plain_name(value) or "")

    def of(self, tensor: fx.Node, dim: int, before: fx.Node) -> Any:
        """Return the size of a dimension: an int, a placeholder, or a new `sym_size` node."""
        value = nodes.value_of(tensor).shape[dim]
        found = self.number(value)
        if found is not None:
            return found
        with self.graph.inserting_before(before):
            made = self.graph.call_function(torch.ops.aten.sym_size.int, (tensor, dim))
        made.meta["example_value"] = value
        return made


def _lower_sizes(graph: fx.Graph, names: Mapping[Any, str]) -> None:
    dims = _Dims(graph, names)
    for node in list(graph.nodes):
        if _is_whole_size(node):
            _replace_size(graph, node, dims)
        elif _is_one_size(node):
            tensor: Any = node.args[0]
            dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs["dim"]
            _replace(node, dims.of(tensor, dim, node))
        elif nodes.is_scalar_node(node) and node.op not in ("placeholder", "output"):
            found = dims.number(nodes.value_of(node))
            if found is not None and not nodes.writes(node):
                _replace(node, found)
        elif node.op == "placeholder":
            first = dims.number(nodes.value_of(node))
            if isinstance(first, fx.Node) and first is not node:
                node.replace_all_uses_with(first)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, fx.Node) and isinstance(nodes.value_of(value), torch.Tensor)


def _is_whole_size(node: fx.Node) -> bool:
    if node.op == "call_method" and node.target == "size":
        return len(node.args) == 1 and not node.kwargs and _is_tensor(node.args[0])
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in _SHAPE_GETTERS and _is_tensor(node.args[0])
    return False


def _is_one_size(node: fx.Node) -> bool:
    if node.op == "call_method" and node.target == "size":
        return _is_tensor(node.args[0])
    return node.op == "call_function" and node.target is torch.ops.aten.sym_size.int


def _replace_size(graph: fx.Graph, node: fx.Node, dims: _Dims) -> None:
    tensor: Any = node.args[0]
    rank = nodes.value_of(tensor).dim()
    _replace(node, tuple(dims.of(tensor, d, node) for d in range(rank)))


def _replace(node: fx.Node, value: Any) -> None:
    """Put a literal, node or tuple in the place of a node, folding what can be folded from a tuple."""
    for user in list(node.users):
        if isinstance(value, tuple) and _fold(user, node, value):
            continue
        user.args = _substitute(user.args, node, value)
        user.kwargs = _substitute(user.kwargs, node, value)
    if not node.users and not (isinstance(value, fx.Node) and value is node):
        node.graph.erase_node(node)


def _fold(user: fx.Node, node: fx.Node, value: tuple[Any, ...]) -> bool:
    if user.op != "call_function":
        return False
    if user.target is operator.getitem and user.args[0] is node:
        index: Any = user.args[1]
        if isinstance(index, int) or (isinstance(index, slice) and not _nodes_of(index)):
            _replace(user, value[index])
            return True
    if user.target in (tuple, list, torch.Size):
        _replace(user, value)
        return True
    if user.target is len:
        _replace(user, len(value))
        return True
    if user.target is operator.add:
        parts: list[Any] = [value if a is node else a for a in user.args]
        if all(isinstance(p, tuple | list) for p in parts):
            _replace(user, tuple(parts[0]) + tuple(parts[1]))
            return True
    return False


def _nodes_of(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(value, found.append)
    return found


def _substitute(argument: Any, node: fx.Node, value: Any) -> Any:
    if argument is node:
        return value
    if isinstance(argument, slice):
        return slice(*(_substitute(p, node, value)
                       for p in (argument.start, argument.stop, argument.step)))  # fmt: skip
    if isinstance(argument, tuple | list):
        parts = [_substitute(part, node, value) for part in argument]
        if hasattr(argument, "_fields"):
            return type(argument)(*parts)
        return tuple(parts) if isinstance(argument, tuple) else parts
    if isinstance(argument, Mapping):
        return {key: _substitute(part, node, value) for key, part in argument.items()}
    return argument


# ------------------------------------------------------------------------------------------- clean up


def _drop_unused(graph: fx.Graph) -> None:
    for node in _backwards(graph):
        if node.users or node.op not in ("call_function", "call_method", "get_attr"):
            continue
        pure = node.op == "get_attr" or (nodes.is_scalar_node(node) and not nodes.writes(node))
        if pure or nodes.is_state_switch(node):
            graph.erase_node(node)


def _backwards(graph: fx.Graph) -> Iterator[fx.Node]:
    return iter(list(reversed(list(graph.nodes))))
