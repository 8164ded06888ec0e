"""What a node of a torch-form graph does: names it, says whether it writes, views or only allocates."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from intarsia import torch_compat

_VIEW_METHODS = {
    "view", "reshape", "expand", "expand_as", "transpose", "t", "permute", "squeeze", "unsqueeze",
    "view_as", "flatten", "unflatten", "narrow", "select", "split", "chunk", "unbind", "detach",
    "movedim", "swapaxes", "swapdims", "diagonal", "as_strided", "real", "imag", "adjoint",
    "tensor_split", "split_with_sizes", "size", "stride", "dim", "numel", "storage_offset",
    "is_contiguous", "broadcast_to", "unfold", "ravel",
}  # fmt: skip
_ALLOCATION_METHODS = {"new_empty", "new_empty_strided"}
_VIEW_FUNCTIONS: set[Any] = {
    torch.reshape, torch.transpose, torch.permute, torch.squeeze, torch.unsqueeze, torch.flatten,
    torch.unflatten, torch.narrow, torch.select, torch.split, torch.chunk, torch.unbind, torch.t,
    torch.broadcast_to, torch.movedim, torch.swapaxes, torch.swapdims, torch.diagonal,
    torch.as_strided, torch.detach, torch.tensor_split, torch.real, torch.imag, torch.ravel,
    operator.getitem,
}  # fmt: skip
_ALLOCATIONS: set[Any] = {torch.empty, torch.empty_like, torch.empty_strided}
_ALLOCATION_OPS = {
    "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty",
    "aten::new_empty_strided",
}  # fmt: skip
_PUBLIC: tuple[tuple[Any, str], ...] = (
    (torch, "torch"), (torch.nn.functional, "torch.nn.functional"), (operator, "operator"),
)  # fmt: skip
_STATE_SWITCHES = ("_set_grad_enabled", "_log_api_usage_once")


def value_of(node: fx.Node) -> Any:
    """Return the fake value that tracing left on a node, or None."""
    meta = node.meta
    value = meta.get("example_value")
    return meta.get("val") if value is None else value


STORAGE = "intarsia_storage"
"""Metadata key: the identity of a node's storage, where it is not that of its fake value."""


def storage_of(node: Any) -> Any:
    """Return what nodes share whose tensors share memory; None for what is no strided tensor."""
    if not isinstance(node, fx.Node):
        return None
    if STORAGE in node.meta:
        return node.meta[STORAGE]
    value = value_of(node)
    if isinstance(value, torch.Tensor) and value.layout == torch.strided:
        return torch_compat.storage_id(value)
    return None


def operation(node: fx.Node) -> str:
    """Return a node's operation as users write it: "aten::mm", "torch.relu", ".view", "operator.add"."""
    if node.op == "call_method":
        return f".{node.target}"
    if node.op != "call_function":
        return str(node.op)
    name = torch_compat.operation_name(node.target)
    if name is not None:
        return name
    return _function_path(node.target)


def _function_path(target: Any) -> str:
    # C functions of torch carry internal names: torch.sigmoid is _VariableFunctionsClass.sigmoid.
    short = getattr(target, "__name__", None) or repr(target)
    for module, path in _PUBLIC:
        if getattr(module, short, None) is target:
            return f"{path}.{short}"
    module = getattr(target, "__module__", None) or "torch"
    return f"{module}.{getattr(target, '__qualname__', short)}"


def is_scalar_node(node: fx.Node) -> bool:
    """Say whether a node computes a number (a size, a condition) and no tensor."""
    value = value_of(node)
    return isinstance(value, int | float | bool | torch.SymInt | torch.SymBool | torch.SymFloat)


def mutated_arguments(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that a node writes to."""
    if node.op == "call_method":
        name = str(node.target)
        writes = (name.endswith("_") and not name.endswith("__")) or name == "__setitem__"
        return [node.args[0]] if writes and isinstance(node.args[0], fx.Node) else []
    if node.op != "call_function":
        return []
    if torch_compat.operation_name(node.target) is not None:
        return _mutated_by_schema(node)
    return _mutated_by_function(node)


def _mutated_by_function(node: fx.Node) -> list[fx.Node]:
    target: Any = node.target
    written = node.kwargs.get("out")
    found = _nodes_in(written)
    name = getattr(target, "__name__", "")
    in_place = target is operator.setitem or (
        getattr(target, "__module__", "") == "_operator" and name.startswith("i")
        and name not in ("index", "indexOf", "inv", "invert", "is_", "is_not", "itemgetter")
    )  # fmt: skip
    in_place = in_place or (name.endswith("_") and not name.startswith("__") and name != "is_")
    flagged = (
        name in ("relu", "silu", "dropout", "hardtanh", "elu", "leaky_relu") and True in node.args
    )
    if node.kwargs.get("inplace") is True or in_place or flagged:
        found += [n for n in node.args[:1] if isinstance(n, fx.Node)]
    return found


def _mutated_by_schema(node: fx.Node) -> list[fx.Node]:
    target: Any = node.target
    if torch_compat.is_higher_order(target):
        return []
    found: list[fx.Node] = []
    for schema in torch_compat.schemas_of(target):
        for index, argument in enumerate(schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            in_args = index < len(node.args) and not argument.kwarg_only
            value = node.args[index] if in_args else node.kwargs.get(argument.name)
            found += [n for n in _nodes_in(value) if n not in found]
    return found


def _nodes_in(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(value, found.append)
    return found


def writes(node: fx.Node) -> bool:
    """Say whether a node has an effect beside its result."""
    return bool(mutated_arguments(node))


def is_light(node: fx.Node) -> bool:
    """Say whether a node does no work on a device: views, sizes, allocations, numbers."""
    if node.op in ("placeholder", "get_attr", "output") or is_scalar_node(node):
        return True
    if is_allocation(node):
        return True
    if node.op == "call_method":
        return node.target in _VIEW_METHODS
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return _is_view_index(node)
    if torch_compat.operation_name(node.target) is not None:
        return _is_view_operator(node.target)
    return node.target in _VIEW_FUNCTIONS


def is_allocation(node: fx.Node) -> bool:
    """Say whether a node returns memory that nothing was written to."""
    if node.op == "call_method":
        return node.target in _ALLOCATION_METHODS
    if node.op != "call_function":
        return False
    name = torch_compat.operation_name(node.target)
    if name is not None:
        return name.split(".")[0] in _ALLOCATION_OPS
    return node.target in _ALLOCATIONS


def unfilled_results(graph: fx.Graph) -> frozenset[int]:
    """Return which results of a graph are memory that nothing was written to: their numbers mean nothing."""
    (output,) = graph.find_nodes(op="output")
    filled = {_viewed(one) for node in graph.nodes for one in mutated_arguments(node)}
    sources = [_viewed(one) if isinstance(one, fx.Node) else None for one in output.args[0]]
    return frozenset(
        number for number, source in enumerate(sources)
        if source is not None and is_allocation(source) and source not in filled
    )  # fmt: skip


def _viewed(node: fx.Node) -> fx.Node:
    """Return what a node is a view of, or the node."""
    while node.all_input_nodes and is_light(node) and not is_allocation(node):
        node = node.all_input_nodes[0]
    return node


def _is_view_index(node: fx.Node) -> bool:
    # Indexing with a tensor gathers; with ints, slices, None and Ellipsis it only views.
    index = node.args[1]
    parts = index if isinstance(index, tuple | list) else (index,)
    return not any(
        (isinstance(p, fx.Node) and isinstance(value_of(p), torch.Tensor))
        or isinstance(p, list | torch.Tensor) for p in parts
    )  # fmt: skip


def _is_view_operator(target: Any) -> bool:
    if not torch_compat.is_overload(target):
        return False
    if torch_compat.operation_name(target) in ("aten::sym_size.int", "aten::sym_stride.int"):
        return True
    (schema,) = torch_compat.schemas_of(target)
    returns = schema.returns
    return bool(returns) and all(
        r.alias_info is not None and not r.alias_info.is_write for r in returns
    )


def squeezed_sizes(node: fx.Node) -> list[Any]:
    """Return the sizes on which the rank of a squeeze's result depends; empty for other nodes."""
    name = operation(node)
    if name.split("::")[-1].split(".")[0] != "squeeze" and name.split(".")[-1] not in (
        "squeeze", "squeeze_",
    ):  # fmt: skip
        return []
    source: Any = node.args[0]
    value = value_of(source) if isinstance(source, fx.Node) else None
    if not isinstance(value, torch.Tensor):
        return []
    dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    chosen = (
        range(value.dim()) if dims is None else (dims if isinstance(dims, tuple | list) else [dims])
    )
    return [value.shape[d] for d in chosen if isinstance(d, int) and value.dim()]


def is_state_switch(node: fx.Node) -> bool:
    """Say whether a node only switches a mode or counts API use, and may be dropped under no_grad."""
    return getattr(node.target, "__name__", "") in _STATE_SWITCHES
