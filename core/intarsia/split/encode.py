"""Graphs as plain data: what equal pieces are told by, and how a piece travels between processes.

Every target becomes a name that resolves back to the same object, every argument a tagged list. Nothing
is pickled, so decoding runs no code beyond importing the modules that the names mention.
"""

from __future__ import annotations

import enum
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from intarsia import torch_compat
from intarsia.errors import IntarsiaError

Encoded = Any
"""JSON-able data: None, bool, int, float, str, or a list of these."""


class CannotEncode(IntarsiaError):
    """A graph holds an object that has no name and no plain form."""


# -------------------------------------------------------------------------------------------- targets

_SEARCHED = (
    "torch", "torch.nn.functional", "torch._C._nn", "torch._C", "torch._C._linalg", "torch._C._fft",
    "torch._C._special", "torch:Tensor", "operator", "math", "builtins",
)  # fmt: skip


def function_name(function: Any) -> str:
    """Return "module:qualified.name" of a function, class or object that resolves back to it.

    Raises:
        CannotEncode: no importable name leads to it (a lambda, a local function).
    """
    name = getattr(function, "__qualname__", None) or getattr(function, "__name__", None)
    if name is None:
        raise CannotEncode(f"{function!r} has no name", next_step="Give it a module-level name.")
    module = getattr(function, "__module__", None)
    candidates = [f"{module}:{name}"] if module else []
    # The second one for what a factory made and named, such as torch.nn.functional.max_pool2d.
    shorts = dict.fromkeys([name.rsplit(".", 1)[-1], getattr(function, "__name__", name)])
    for short in shorts:
        for prefix in _SEARCHED:
            candidates.append(f"{prefix}.{short}" if ":" in prefix else f"{prefix}:{short}")
    for candidate in candidates:
        if _resolves_to(candidate, function):
            return candidate
    raise CannotEncode(
        f"{function!r} cannot be found again by name",
        why=f"{candidates[0] if candidates else name} is not it",
        next_step="Define it at the top level of a module.",
        subject=str(name),
    )


def _resolves_to(name: str, function: Any) -> bool:
    try:
        return resolve_name(name) is function
    except (ImportError, AttributeError, ValueError):
        return False


def resolve_name(name: str) -> Any:
    """Return the object that "module:qualified.name" names."""
    module, _, path = name.partition(":")
    value: Any = importlib.import_module(module)
    for part in path.split("."):
        value = getattr(value, part)
    return value


def target_name(node: fx.Node) -> str:
    """Return a node's target as a name with its kind in front."""
    if node.op != "call_function":
        return f"{node.op}:{node.target}"
    operation = torch_compat.operation_name(node.target)
    if operation is not None:
        return f"op:{operation}"
    return f"fn:{function_name(node.target)}"


def resolve_operation(name: str) -> Any:
    """Return the operator or packet of "ns::op" or "ns::op.overload".

    Raises:
        AttributeError: nobody registered it in this process.
    """
    namespace, _, rest = name.partition("::")
    if namespace == "higher_order":
        found = torch_compat.higher_order_by_name(rest)
        if found is None:
            raise AttributeError(name)
        return found
    packet_name, _, overload = rest.partition(".")
    packet = getattr(getattr(torch.ops, namespace), packet_name)
    return getattr(packet, overload) if overload else packet


def _resolve_target(name: str) -> tuple[str, Any]:
    kind, _, rest = name.partition(":")
    if kind == "op":
        return "call_function", resolve_operation(rest)
    if kind == "fn":
        return "call_function", resolve_name(rest)
    return kind, rest


# ------------------------------------------------------------------------------------------ arguments

_TORCH_ENUMS: tuple[type, ...] = (torch.dtype, torch.memory_format, torch.layout)
_PLAIN = (bool, int, str, type(None))


def encode_argument(value: Any, reference: Callable[[fx.Node], Encoded]) -> Encoded:
    """Return an argument as tagged plain data; `reference` encodes the nodes in it.

    Raises:
        CannotEncode: the argument holds an object without a plain form.
    """
    if isinstance(value, fx.Node):
        return ["node", reference(value)]
    if type(value) in _PLAIN:
        return value
    if type(value) is float:
        return ["float", value.hex()]
    if isinstance(value, _TORCH_ENUMS):
        return ["torch", str(value).removeprefix("torch.")]
    return _encode_container(value, reference)


def _encode_container(value: Any, reference: Callable[[fx.Node], Encoded]) -> Encoded:
    def each(items: Sequence[Any]) -> list[Encoded]:
        return [encode_argument(item, reference) for item in items]

    if isinstance(value, torch.Size):
        return ["tuple", *each(tuple(value))]
    if isinstance(value, tuple) and type(value) is not tuple and hasattr(value, "_fields"):
        return ["namedtuple", function_name(type(value)), *each(tuple(value))]
    if isinstance(value, tuple):
        return ["tuple", *each(value)]
    if isinstance(value, list):
        return ["list", *each(value)]
    if isinstance(value, Mapping):
        return ["dict", *([encode_argument(k, reference), encode_argument(v, reference)]
                          for k, v in value.items())]  # fmt: skip
    if isinstance(value, slice):
        return ["slice", *each((value.start, value.stop, value.step))]
    if isinstance(value, torch.device):
        return ["device", value.type, value.index]
    if value is Ellipsis:
        return ["ellipsis"]
    return _encode_scalar(value, reference)


def _encode_scalar(value: Any, reference: Callable[[fx.Node], Encoded]) -> Encoded:
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    if type(value) in (set, frozenset):
        items = [encode_argument(item, reference) for item in value]
        return [type(value).__name__, *sorted(items, key=repr)]
    if isinstance(value, complex):
        return ["complex", value.real.hex(), value.imag.hex()]
    if isinstance(value, enum.Enum):
        return ["enum", function_name(type(value)), value.name]
    if isinstance(value, bool | int | float):  # subclasses: numpy scalars and the like
        base: Any = type(value).__base__
        return encode_argument(base(value), reference)
    operation = torch_compat.operation_name(value)
    if operation is not None:
        return ["op", operation]
    if callable(value):
        return ["fn", function_name(value)]
    raise CannotEncode(
        f"an argument of type {type(value).__module__}.{type(value).__qualname__} has no plain form",
        subject=repr(value)[:80],
    )


_DECODERS: dict[str, Callable[..., Any]] = {
    "float": lambda nodes, text: float.fromhex(text),
    "torch": lambda nodes, name: getattr(torch, name),
    "device": lambda nodes, kind, index: torch.device(kind, index) if index is not None
    else torch.device(kind),
    "ellipsis": lambda nodes: Ellipsis,
    "complex": lambda nodes, re, im: complex(float.fromhex(re), float.fromhex(im)),
    "bytes": lambda nodes, text: bytes.fromhex(text),
    "set": lambda nodes, *items: {decode_argument(i, nodes) for i in items},
    "frozenset": lambda nodes, *items: frozenset(decode_argument(i, nodes) for i in items),
    "enum": lambda nodes, cls, name: resolve_name(cls)[name],
    "op": lambda nodes, name: resolve_operation(name),
    "fn": lambda nodes, name: resolve_name(name),
    "node": lambda nodes, key: nodes[key],
    "tuple": lambda nodes, *items: tuple(decode_argument(i, nodes) for i in items),
    "list": lambda nodes, *items: [decode_argument(i, nodes) for i in items],
    "slice": lambda nodes, *items: slice(*(decode_argument(i, nodes) for i in items)),
    "namedtuple": lambda nodes, cls, *items: resolve_name(cls)(
        *(decode_argument(i, nodes) for i in items)
    ),
    "dict": lambda nodes, *items: {
        decode_argument(k, nodes): decode_argument(v, nodes) for k, v in items
    },
}  # fmt: skip


def decode_argument(data: Encoded, nodes: Mapping[Any, Any]) -> Any:
    """Return the argument that `encode_argument` made plain."""
    if isinstance(data, list):
        return _DECODERS[data[0]](nodes, *data[1:])
    return data


# --------------------------------------------------------------------------------------------- graphs


def encode_graph(graph: fx.Graph, root: torch.nn.Module) -> Encoded:
    """Return a graph as plain data: nodes are numbered, names are left out.

    `root` holds the attributes that the graph reads. Those that are graphs (the branches of a higher-order
    operator) are encoded with it.

    Raises:
        CannotEncode: it holds a tensor constant or another object without a plain form.
    """
    numbers = {node: number for number, node in enumerate(graph.nodes)}
    nodes: list[Encoded] = []
    for node in graph.nodes:
        if node.op == "placeholder":
            nodes.append(["placeholder:"])
        elif node.op == "get_attr":
            nodes.append(["get_attr:", _encode_attribute(root, str(node.target))])
        elif node.op == "call_module":
            raise CannotEncode(f"the graph calls the module {node.target}", subject=node.name)
        else:
            name = "output:" if node.op == "output" else target_name(node)
            arguments = encode_argument(node.args, numbers.__getitem__)
            keywords = encode_argument(dict(sorted(node.kwargs.items())), numbers.__getitem__)
            nodes.append([name, arguments, keywords])
    return nodes


def _encode_attribute(root: torch.nn.Module, path: str) -> Encoded:
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    if isinstance(value, fx.GraphModule):
        return encode_graph(value.graph, value)
    raise CannotEncode(
        f"the graph reads the attribute {path}, a {type(value).__name__}", subject=path
    )


def decode_graph(data: Encoded) -> fx.GraphModule:
    """Return the graph that `encode_graph` made plain.

    Raises:
        ImportError, AttributeError: a target is not to be found in this process.
    """
    root = torch.nn.Module()
    graph = fx.Graph()
    nodes: dict[int, fx.Node] = {}
    for number, (name, *rest) in enumerate(data):
        if name == "placeholder:":
            nodes[number] = graph.placeholder(f"in{number}")
        elif name == "get_attr:":
            attribute = f"graph{number}"
            root.add_module(attribute, decode_graph(rest[0]))
            nodes[number] = graph.get_attr(attribute)
        else:
            arguments = decode_argument(rest[0], nodes)
            keywords = decode_argument(rest[1], nodes)
            if name == "output:":
                nodes[number] = graph.output(arguments[0])
            else:
                op, target = _resolve_target(name)
                nodes[number] = graph.create_node(op, target, arguments, keywords)
    return fx.GraphModule(root, graph)
