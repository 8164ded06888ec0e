"""Bring a piece into the form that a compiler declares: ATen with or without mutation, or exported."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from intarsia import torch_compat
from intarsia.capture import nodes
from intarsia.capture.fake_values import fill_in
from intarsia.compiling.transport import fake_mode_of
from intarsia.errors import CompileRejected
from intarsia.interfaces import CompileRequest, Form, IntInfo, PassRun, TensorInfo


def lower(request: CompileRequest, form: Form) -> Any:
    """Return a request's piece in a form, made once for all compilers that are asked for the piece.

    Raises:
        CompileRejected: the piece cannot be brought into that form.
    """
    if form == "torch":
        return _rewritten(request) or request.graph  # each compiler has a copy of its own
    made = request._lowered
    kept = "exported, baked" if form == "exported" and request.weights else form
    if kept not in made:
        # torch's trace wraps Module.__call__ for the whole process while it runs: where two do so at a time,
        # one wrapper stays for good.
        with torch_compat.tracing_lock():
            made[kept] = _LOWERINGS[form](request)
    return made[kept]


def _rewritten(request: CompileRequest) -> fx.GraphModule | None:
    """Return a piece as passes over its ATen form left it; None where none has changed anything.

    ATen calls are calls of torch too, so that what a pass makes of them reaches every compiler.
    """
    if not any(spec.stage == "piece-aten" for spec in request.passes):
        return None
    try:
        shared = _shared_form(request)
    except CompileRejected as error:
        if request.pass_setup is None or request.pass_setup.strict:
            raise
        _note_skipped(request, error)
        return None
    if not shared.meta[_REWRITTEN]:
        return None
    graph = fx.Graph()
    results: Any = graph.graph_copy(shared.graph, {})
    graph.output(results)
    for node in results:
        if isinstance(node, fx.Node) and "val" in node.meta:
            # Where Inductor of torch 2.11 looks for the fake mode of a graph.
            node.meta["example_value"] = node.meta["val"]
    # With its nodes: a module takes over what they refer to, as constants and the branches of a cond.
    return fx.GraphModule(shared, graph)


def _shared_form(request: CompileRequest) -> fx.GraphModule:
    if not request.signature.mutated:
        # What writes to a tensor of the piece's own by a custom operator has no functional form.
        with contextlib.suppress(CompileRejected):
            functional: fx.GraphModule = lower(request, "aten-functional")
            return functional
    mutable: fx.GraphModule = lower(request, "aten-mutable")
    return mutable


def _note_skipped(request: CompileRequest, error: CompileRejected) -> None:
    """Note that passes over the ATen form did not run: the piece is compiled without them."""
    from intarsia.passes.running import note_runs  # who has no passes need not import it

    text = f"{request.name} has {error.what}"
    skipped = [spec for spec in request.passes if spec.stage == "piece-aten"]
    runs = [PassRun(spec.name, None, 0.0, spec.stage, text) for spec in skipped]
    note_runs(request, "piece-aten", runs)


def _aten(request: CompileRequest, functional: bool) -> fx.GraphModule:
    if functional and request.signature.mutated:
        raise CompileRejected("the piece writes to its inputs, so it has no functional form")
    try:
        traced = _traced(_run_graph(request.graph), request)
        if functional and any(nodes.mutated_arguments(node) for node in traced.graph.nodes):
            # Of ATen calls, not of torch's: functionalize fixes the sizes of a linear layer's rows.
            traced = _traced(
                torch.func.functionalize(_run_graph(traced), remove="mutations"), request
            )
    except Exception as error:
        raise CompileRejected(f"no ATen form: {type(error).__name__}: {error}") from error
    _number_placeholders(traced)
    _run_passes(request, traced)
    return traced


def _traced(run: Callable[..., Any], request: CompileRequest) -> fx.GraphModule:
    from torch.fx.experimental.proxy_tensor import make_fx

    with (
        fake_mode_of(request), torch.no_grad(), torch_compat.size_oblivious(),
        torch_compat.transforms_undone(), torch_compat.python_dispatcher(),
    ):  # fmt: skip
        # Not "symbolic": that would give the fake tensors new symbols, which the sizes among the inputs
        # know nothing of.
        traced: fx.GraphModule = make_fx(run, tracing_mode="real", _allow_non_fake_inputs=True)(
            *request.fake_inputs
        )
    return traced


_REWRITTEN = "intarsia rewritten"
"""Where a lowered module says whether its passes changed anything."""


def _run_passes(request: CompileRequest, module: fx.GraphModule) -> None:
    if not any(spec.stage == "piece-aten" for spec in request.passes):
        return
    from intarsia.passes.running import run_request_passes

    before = str(module.graph)
    run_request_passes(request, "piece-aten", module)
    module.meta[_REWRITTEN] = str(module.graph) != before
    # Sizes that nobody reads any more: Inductor of torch 2.11 does not take them.
    module.graph.eliminate_dead_code(is_impure_node=_has_effects)
    module.recompile()
    if module.meta[_REWRITTEN]:
        fill_in(module.graph, request.fake_inputs)


def _has_effects(node: fx.Node) -> bool:
    """Say whether a node does anything besides making its value, as far as one knows."""
    known = nodes.operation(node).startswith(("aten::", "operator.", "_operator."))
    return not known or bool(nodes.mutated_arguments(node)) or bool(node.is_impure())


def _run_graph(module: fx.GraphModule) -> Callable[..., Any]:
    def run(*inputs: Any) -> Any:
        return fx.Interpreter(module).run(*inputs)

    return run


def _number_placeholders(module: fx.GraphModule) -> None:
    for number, node in enumerate(n for n in module.graph.nodes if n.op == "placeholder"):
        node.name = node.target = f"in{number}"
    module.recompile()


def _exported(request: CompileRequest) -> Any:
    """Return the piece as a program of its tensors; sizes are read off them, baked weights are inside."""
    from torch.export import Dim, export

    if request.signature.mutated:
        raise CompileRejected("the piece writes to its inputs; exported programs may not")
    baked = request.weights or {}
    taken = request.signature.exported_inputs(baked)
    roles = [_role(request, taken, baked, position) for position in range(len(request.fake_inputs))]
    wrapper = _Exportable(_rewritten(request) or request.graph, roles, baked)
    dims: dict[str, Any] = {}
    shapes = [_dynamic_dims(request.signature.inputs[i], request, dims, Dim) for i in taken]
    examples = tuple(_example(request.fake_inputs[i]) for i in taken)
    try:
        return export(wrapper, examples, dynamic_shapes=(tuple(shapes),), strict=False)
    except Exception as error:
        raise CompileRejected(f"torch.export: {type(error).__name__}: {error}") from error


def _role(
    request: CompileRequest, taken: Sequence[int], baked: Mapping[int, torch.Tensor], position: int
) -> tuple[Any, ...]:
    """Say where an input of the graph comes from: a weight, a tensor, a size of one, or a number."""
    if position in baked:
        return "weight", position
    if position in taken:
        return "tensor", taken.index(position)
    value, info = request.fake_inputs[position], request.signature.inputs[position]
    if type(value) is int:
        return "number", value
    assert isinstance(info, IntInfo)
    for number, index in enumerate(taken):
        tensor = request.signature.inputs[index]
        assert isinstance(tensor, TensorInfo)
        if info.expression in tensor.shape:
            return "size", number, tensor.shape.index(info.expression)
    raise CompileRejected(
        f"the piece takes the size {info.expression}, which no tensor of it has; an exported program takes "
        "tensors alone"
    )


class _Exportable(torch.nn.Module):
    """A graph as a module of its tensors: `*args`, so that `dynamic_shapes` can be a plain tuple."""

    def __init__(
        self, module: fx.GraphModule, roles: Sequence[tuple[Any, ...]],
        baked: Mapping[int, torch.Tensor],
    ) -> None:  # fmt: skip
        super().__init__()
        self.graph_module = fx.GraphModule(module, module.graph)
        self.roles = roles
        for position, weight in baked.items():
            self.register_buffer(f"weight{position}", weight.detach())

    def forward(self, *args: Any) -> Any:
        return self.graph_module(*(self._value(role, args) for role in self.roles))

    def _value(self, role: tuple[Any, ...], args: Sequence[Any]) -> Any:
        kind, *where = role
        if kind == "weight":
            return getattr(self, f"weight{where[0]}")
        if kind == "number":
            return where[0]
        return args[where[0]] if kind == "tensor" else args[where[0]].shape[where[1]]


def _dynamic_dims(info: Any, request: CompileRequest, dims: dict[str, Any], dim: Any) -> Any:
    found: dict[int, Any] = {}
    for index, size in enumerate(info.shape):
        if isinstance(size, str) and size in request.box:
            low, high = request.box[size]
            if low != high:
                end = None if high >= (1 << 62) else high
                found[index] = dims.setdefault(size, dim(size, min=low, max=end))
        elif isinstance(size, str):
            raise CompileRejected(f"an input has the derived size {size}")
    return found or None


def _example(value: torch.Tensor) -> torch.Tensor:
    # Not int(): that notes for the request's box that the size is this one.
    sizes = [torch_compat.size_in_example(s) for s in value.shape]
    strides = [torch_compat.size_in_example(s) for s in value.stride()]
    made = torch.empty_strided(sizes, strides, dtype=value.dtype, device=value.device)
    return made.fill_(0) if made.dtype is not torch.bool else made.fill_(False)


_LOWERINGS: Mapping[str, Callable[[CompileRequest], Any]] = {
    "aten-functional": lambda request: _aten(request, functional=True),
    "aten-mutable": lambda request: _aten(request, functional=False),
    "exported": _exported,
}
