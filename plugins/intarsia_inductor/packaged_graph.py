"""Brings a piece's graph into the shape that AOTInductor packages: tensors in, distinct new tensors out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen
from torch import fx

from intarsia import torch_compat
from intarsia.interfaces import CompileRequest, IntInfo, PieceSignature, TensorInfo
from intarsia_inductor.calls import PackageCall, refuse


@frozen
class PackagedGraph:
    """What AOTInductor is given, and how what it makes is called."""

    module: fx.GraphModule
    inputs: tuple[Any, ...]
    call: PackageCall


def packaged_graph(request: CompileRequest) -> PackagedGraph:
    """Rewrite a request's own copy of its graph.

    Raises:
        CompileRejected: the piece has something that a package cannot have, which the reason names.
    """
    module: fx.GraphModule = request.lower("torch")
    sizes = Sizes(request.signature)
    sizes.refuse_unknown()
    placeholders = module.graph.find_nodes(op="placeholder")
    outputs = _reduce_outputs(module, request, sizes, placeholders)
    taken, numbers = _replace_sizes(module, request, sizes, placeholders)
    _constants_as_buffers(module)
    for node in module.graph.nodes:
        node.meta = {}  # an earlier trace's symbols are not this one's
    module = fx.GraphModule(module, module.graph)
    call = PackageCall(len(placeholders), tuple(taken), tuple(numbers), tuple(outputs))
    return PackagedGraph(module, tuple(request.fake_inputs[i] for i in taken), call)


class Sizes:
    """Where each symbol of the box can be read off the piece's inputs."""

    def __init__(self, signature: PieceSignature) -> None:
        self.signature = signature
        self.dims: dict[str, tuple[int, int]] = {}
        self.strides: set[str] = set()
        self.ints: dict[str, int] = {}
        for index, info in enumerate(self.signature.inputs):
            if isinstance(info, IntInfo):
                if isinstance(info.expression, str) and info.expression.isidentifier():
                    self.ints.setdefault(info.expression, index)
                continue
            for dim, size in enumerate(info.shape):
                if isinstance(size, str) and size.isidentifier():
                    self.dims.setdefault(size, (index, dim))
            self.strides |= {s for s in info.stride if isinstance(s, str) and s.isidentifier()}

    def refuse_unknown(self) -> None:
        """Refuse a piece of which a size cannot be read off its inputs."""
        known = {*self.dims, *self.ints, *self.strides, *self._fixed()}
        for info in self.signature.inputs:
            sizes = [info.expression] if isinstance(info, IntInfo) else [*info.shape, *info.stride]
            for size in sizes:
                unknown = set(_names(size)) - known
                if unknown:
                    raise refuse(f"{min(unknown)} appears only inside the size {size} of an input")

    def _fixed(self) -> set[str]:
        return {n for n, (low, high) in self.signature.box.items() if low == high}

    def in_graph(self, expression: str, placeholders: Sequence[fx.Node], graph: fx.Graph) -> Any:
        """Return the value of an expression as nodes over shapes, or None where shapes do not show it.

        The caller has set where in the graph the nodes go.
        """
        values: dict[str, Any] = {}
        for name in _names(expression):
            low, high = self.signature.box.get(name, (0, 1))
            if low == high:
                values[name] = low
            elif name in self.dims:
                index, dim = self.dims[name]
                node = graph.call_function(torch.ops.aten.sym_size.int, (placeholders[index], dim))
                node.meta = {}
                values[name] = fx.Proxy(node)
            else:
                return None
        try:
            made = eval(self._source(expression, {n: n for n in values}), {}, values)
        except Exception:  # min, max and the like do not take proxies
            return None
        return made.node if isinstance(made, fx.Proxy) else made

    def in_call(self, expression: int | str) -> str:
        """Return an expression as Python source over the piece's inputs."""
        if isinstance(expression, int):
            return str(expression)
        variables: dict[str, str] = {}
        for name in _names(expression):
            low, high = self.signature.box.get(name, (0, 1))
            if low == high:
                variables[name] = str(low)
            elif name in self.ints:
                variables[name] = f"i{self.ints[name]}"
            elif name in self.dims:
                index, dim = self.dims[name]
                variables[name] = f"i{index}.size({dim})"
            else:
                raise refuse(f"it returns the size {expression}, which depends on data")
        return f"({self._source(expression, variables)})"

    @staticmethod
    def _source(expression: str, variables: dict[str, str]) -> str:
        if expression in variables:
            return variables[expression]
        # Each variable is an atom to the printer, which knows no attribute access.
        held = {name: f"size_{number}" for number, name in enumerate(variables)}
        source = torch_compat.size_source(expression, held)
        for name, stand_in in held.items():
            source = source.replace(stand_in, variables[name])
        return source


def _names(size: int | str) -> list[str]:
    return torch_compat.free_names(size) if isinstance(size, str) else []


def _replace_sizes(
    module: fx.GraphModule, request: CompileRequest, sizes: Sizes, placeholders: list[fx.Node]
) -> tuple[list[int], list[int]]:
    """Take sizes out of the inputs; return the inputs that remain, and those of them that are sizes."""
    taken: list[int] = []
    numbers: list[int] = []
    first = next(node for node in module.graph.nodes if node.op != "placeholder")
    for index, (info, node) in enumerate(zip(request.signature.inputs, placeholders, strict=True)):
        if isinstance(info, TensorInfo):
            taken.append(index)
            continue
        value: Any = request.fake_inputs[index]
        if isinstance(value, torch.SymInt) and node.users:
            with module.graph.inserting_before(first):
                value = sizes.in_graph(str(info.expression), placeholders, module.graph)
        if value is None:
            taken.append(index)
            numbers.append(index)
        else:
            node.replace_all_uses_with(value)
            module.graph.erase_node(node)
    return taken, numbers


def _reduce_outputs(
    module: fx.GraphModule, request: CompileRequest, sizes: Sizes, placeholders: list[fx.Node]
) -> list[str]:
    """Leave the graph only distinct new tensors to return; say where each output comes from."""
    output = module.graph.output_node()
    values: Any = output.args[0]
    made: dict[fx.Node, int] = {}
    sources: list[str] = []
    for value, info in zip(values, request.signature.outputs, strict=True):
        if isinstance(info, IntInfo):
            sources.append(sizes.in_call(info.expression))
        elif not isinstance(value, fx.Node):
            raise refuse(f"it returns {value!r}")
        elif value.op == "placeholder":
            sources.append(f"i{placeholders.index(value)}")
        else:
            sources.append(f"made[{made.setdefault(value, len(made))}]")
    output.args = (tuple(made),)
    return sources


def _constants_as_buffers(module: fx.GraphModule) -> None:
    """Register constants as buffers, which is where AOTInductor looks for what it embeds."""
    known = dict(module.named_buffers())
    for node in module.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        value = getattr(module, name, None)
        if isinstance(value, torch.Tensor) and name not in known:
            delattr(module, name)
            module.register_buffer(name, value.detach())
            known[name] = value
