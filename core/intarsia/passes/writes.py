"""Custom operators that write to their arguments, as values while patterns are looked for.

A matcher follows values, and such an operator has none: who reads the tensor later depends on it without
saying so. `as_values` makes each write a node whose result is the new value, and `as_writes` turns what is
left of them, and what replacements brought, into writes again. The idea is that of functionalisation; here
it is undone afterwards, and costs a copy only where somebody still reads the old value.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from intarsia import torch_compat
from intarsia.capture import nodes

__all__ = ["as_values", "as_writes", "is_custom_write", "pattern_values"]


_FACTS = ("val", "example_value", "tensor_meta")
"""What is known of a tensor's value; up to torch 2.11 the matcher wants the last one beside the first."""


def updated(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Stand for a call of an operator in a graph: its result, then the new value of what it writes to."""
    raise AssertionError("a write as a value is never run")


def is_custom_write(node: fx.Node) -> bool:
    """Say whether a node calls an operator of somebody's own that writes to whole arguments."""
    op: Any = node.target
    if node.op != "call_function" or not torch_compat.is_overload(op):
        return False
    schema = op._schema
    written = nodes.mutated_arguments(node)
    return (
        bool(written)
        and op.namespace not in ("aten", "prims")
        and len(set(written)) == len(written) == len(_written(op, node.args, node.kwargs))
        and all(r.alias_info is None for r in schema.returns)
    )


def _written(op: Any, args: Any, kwargs: Any) -> list[fx.Node]:
    """Return the tensors that a call writes to, in the order of the schema; lists are not among them."""
    found = []
    for position, argument in enumerate(op._schema.arguments):
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        if argument.is_write and isinstance(value, fx.Node):
            found.append(value)
    return found


def pattern_values(graph: fx.Graph) -> None:
    """Make the writes of a traced function values; what its parameters end as are results of it too."""
    ends = _convert(graph)
    (output,) = graph.find_nodes(op="output")
    results = output.args[0]
    shown = list(results) if isinstance(results, list | tuple) else [results]
    new = [end for end in ends.values() if end not in shown]
    if new:
        kept = [one for one in shown if one is not None]
        everything = (*kept, *new)
        output.args = (everything if len(everything) > 1 else everything[0],)


def as_values(graph: fx.Graph) -> list[fx.Node]:
    """Make the custom writes of a piece values, where nobody reads the memory under another name.

    Returns:
        The inputs that are written to; the graph returns their last values behind its results.
    """
    ends = _convert(graph)
    if ends:
        (output,) = graph.find_nodes(op="output")
        output.args = ((output.args[0], *ends.values()),)
    return list(ends)


def _convert(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Convert each write that can be; returns the last value of every input that is written to."""
    ends: dict[fx.Node, fx.Node] = {}
    origins: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        if is_custom_write(node) and not _read_otherwise(node, origins):
            for old, new in _convert_one(node):
                origin = origins[new] = origins.get(old, old)
                if origin.op == "placeholder":
                    ends[origin] = new
    return ends


def _read_otherwise(node: fx.Node, origins: Mapping[fx.Node, fx.Node]) -> bool:
    """Say whether what a write changes is read after it under a name that it was not given."""
    written = _written(node.target, node.args, node.kwargs)
    # A view that is made later is one of the new value, or of another name that is read later.
    aliases = {other for one in written for other in _aliases(one) if other < node}
    memory = {nodes.storage_of(one) for one in written} - {None}
    inputs = node.graph.find_nodes(op="placeholder")
    aliases |= {other for other in inputs if nodes.storage_of(other) in memory}
    aliases -= {*written, *(origins.get(one, one) for one in written)}
    return any(
        alias.op == "placeholder" or any(user > node for user in alias.users) for alias in aliases
    )


def _convert_one(node: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    graph = node.graph
    op: Any = node.target
    written = _written(op, node.args, node.kwargs)
    later = [[user for user in one.users if user > node] for one in written]
    with graph.inserting_before(node):
        value = graph.call_function(updated, (op, *node.args), dict(node.kwargs))
        value.meta = {
            **node.meta,
            "val": (node.meta.get("val"), *(nodes.value_of(w) for w in written)),
        }
        ends = []
        for position, (old, users) in enumerate(zip(written, later, strict=True), 1):
            if users or old.op == "placeholder" or _is_value(old):
                new = graph.call_function(operator.getitem, (value, position))
                new.meta = {key: old.meta[key] for key in _FACTS if key in old.meta}
                for user in users:
                    user.replace_input_with(old, new)
                ends.append((old, new))
        if node.users:
            result = graph.call_function(operator.getitem, (value, 0))
            result.meta = dict(node.meta)
            node.replace_all_uses_with(result)
    _take_place(value, node)
    return ends


def _take_place(new: fx.Node, node: fx.Node) -> None:
    """Remove a node and give its name to another: where nothing matched, a graph reads as before."""
    name = node.name
    node.graph.erase_node(node)
    new.name = name


def _is_value(node: fx.Node) -> bool:
    """Say whether a node is a result of a write."""
    source = node.args[0] if node.target is operator.getitem else None
    return isinstance(source, fx.Node) and source.target is updated


def _aliases(node: fx.Node) -> set[fx.Node]:
    """Return the nodes that share a node's memory, itself among them; new values share none."""
    found, todo = {node}, [node]
    while todo:
        one = todo.pop()
        near = [base for base in one.all_input_nodes if _views(one, base)]
        near += [user for user in one.users if _views(user, one)]
        todo += [other for other in near if other not in found]
        found.update(near)
    return found


def _views(node: fx.Node, base: fx.Node) -> bool:
    """Say whether a node's result may be memory of an argument."""
    if node.target is updated or base.target is updated or node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is None or any(r.alias_info is not None for r in schema.returns):
        return True
    mine = nodes.storage_of(node)
    return mine is not None and mine == nodes.storage_of(base)


def as_writes(graph: fx.Graph, inputs: list[fx.Node]) -> None:
    """Make values writes again; `inputs` is what `as_values` returned.

    A write goes into the memory that it had, unless somebody reads the old value later, or the memory is an
    input's that the piece does not write to: then into a copy.
    """
    (output,) = graph.find_nodes(op="output")
    ends: dict[fx.Node, fx.Node] = {}
    if inputs:
        results, *last = output.args[0]
        ends = dict(zip(inputs, last, strict=True))
    for node in list(graph.nodes):
        if node.target is updated:
            _restore_one(node, ends)
    if inputs:
        results, *last = output.args[0]  # as restoring left them
        output.args = (results,)
        with graph.inserting_before(output):
            for old, new in zip(inputs, last, strict=True):
                if new is not old:
                    copied = graph.call_function(torch.ops.aten.copy_.default, (old, new))
                    copied.meta = dict(old.meta)


def _restore_one(node: fx.Node, ends: dict[fx.Node, fx.Node]) -> None:
    graph = node.graph
    op: Any = node.args[0]
    args, kwargs = node.args[1:], dict(node.kwargs)
    written = _written(op, args, kwargs)
    values: dict[Any, fx.Node] = {user.args[1]: user for user in node.users}
    own: list[fx.Node] = []
    with graph.inserting_before(node):
        for position, old in enumerate(written, 1):
            mine = old
            if not _may_write(node, old, values.get(position), ends):
                mine = graph.call_function(torch.ops.aten.clone.default, (old,))
                mine.meta = {"val": nodes.value_of(old)}
            own.append(mine)
        renamed = dict(zip(written, own, strict=True))

        def rename(arg: fx.Node) -> fx.Node:
            return renamed.get(arg, arg)

        call = graph.call_function(op, fx.map_arg(args, rename), fx.map_arg(kwargs, rename))
        call.meta = {**node.meta, "val": node.meta["val"][0]}
    for position, user in values.items():
        user.replace_all_uses_with(call if position == 0 else own[position - 1])
        graph.erase_node(user)
    _take_place(call, node)


def _may_write(
    node: fx.Node, old: fx.Node, new: fx.Node | None, ends: dict[fx.Node, fx.Node]
) -> bool:
    """Say whether a write may go into the memory of what it is given."""
    aliases = _aliases(old)
    read_later = any(
        user > node and not (user.op == "output" and alias in ends and alias is not ends[alias])
        for alias in aliases for user in alias.users
    )  # fmt: skip
    borrowed = [alias for alias in aliases if alias.op in ("placeholder", "get_attr")]
    return not read_later and all(
        alias in ends and new is not None and _leads_to(new, ends[alias]) for alias in borrowed
    )


def _leads_to(value: fx.Node, end: fx.Node) -> bool:
    """Say whether a value becomes an input's last one by nothing but writes."""
    while value is not end:
        source = next((u for u in value.users if u.target is updated), None)
        if source is None:
            return False
        op, *args = source.args
        written = _written(op, args, source.kwargs)
        if value not in written:
            return False
        position = written.index(value) + 1
        following = next((u for u in source.users if u.args[1] == position), None)
        if following is None:
            return False
        value = following
    return True
