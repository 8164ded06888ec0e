"""Compile requests as bytes: JSON and nothing else, so that reading one runs no code of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from attrs import evolve, frozen
from torch import fx

from intarsia.compiling.signature import fake_inputs, signature_from_dict, signature_to_dict
from intarsia.errors import CompileFailed
from intarsia.interfaces import CompileRequest, PassSpec, PieceSignature
from intarsia.split.encode import decode_graph, encode_graph

_FORMAT = 1


def make_request(
    module: fx.GraphModule, signature: PieceSignature, *, device_type: str, device: int | None,
    name: str, kind: Any, key: str = "", passes: tuple[PassSpec, ...] = (),
    wants_artifact: bool = True, hints: Mapping[str, int] | None = None,
) -> CompileRequest:  # fmt: skip
    """Return a request whose fake inputs are made for its box, in a fake mode of their own.

    The graph is copied; its output nodes carry fake values of that mode, which is how Inductor and
    others find it.
    """
    mode, fakes = fake_inputs(signature, device, hints or {})
    graph = fx.Graph()
    result = graph.graph_copy(module.graph, {})
    graph.output(result)
    made = fx.GraphModule(module, graph)
    for node, fake in zip(_placeholders(made), fakes, strict=True):
        node.meta = {"example_value": fake, "val": fake}
    _mark_outputs(made, mode)
    return CompileRequest(
        graph=made, fake_inputs=fakes, signature=signature, passes=passes, device_type=device_type,
        device=device, name=name, kind=kind, key=key, wants_artifact=wants_artifact,
        hints=dict(hints or {}),
    )  # fmt: skip


def _placeholders(module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in module.graph.nodes if node.op == "placeholder"]


def _mark_outputs(module: fx.GraphModule, mode: Any) -> None:
    outputs: Any = module.graph.output_node().args[0]
    with mode:
        stand_in = torch.empty(0)
    for node in outputs:
        if isinstance(node, fx.Node) and node.op != "placeholder":
            node.meta = {**node.meta, "example_value": stand_in}
            node.meta.pop("val", None)


def fake_mode_of(request: CompileRequest) -> Any:
    """Return the fake mode of a request's inputs."""
    for value in request.fake_inputs:
        mode = getattr(value, "fake_mode", None)
        if mode is not None:
            return mode
    outputs: Any = request.graph.graph.output_node().args[0]
    for node in outputs:
        mode = getattr(node.meta.get("example_value"), "fake_mode", None)
        if mode is not None:
            return mode
    return None


def request_to_bytes(request: CompileRequest) -> bytes:
    """Return a request as bytes.

    Raises:
        CompileFailed: the graph holds something without a plain form, which the message names.
    """
    try:
        graph = encode_graph(request.graph.graph, request.graph)
    except Exception as error:
        raise CompileFailed(
            f"{request.name} cannot be sent to another process", why=str(error), subject=request.name
        ) from error
    data = {
        "format": _FORMAT,
        "graph": graph,
        "signature": signature_to_dict(request.signature),
        "device_type": request.device_type,
        "device": request.device,
        "name": request.name,
        "kind": request.kind,
        "key": request.key,
        "wants_artifact": request.wants_artifact,
        "hints": dict(request.hints),
        "needs": needs_of(request.graph),
    }
    return json.dumps(data).encode()


def request_from_bytes(data: bytes) -> CompileRequest:
    """Restore a request, importing the modules that it needs.

    Raises:
        CompileFailed: a module or operation cannot be found in this process.
    """
    fields = json.loads(data)
    try:
        import_needs(fields["needs"])
        module = decode_graph(fields["graph"])
    except (ImportError, AttributeError) as error:
        raise CompileFailed(
            f"{fields['name']} cannot be rebuilt in this process",
            why=f"{type(error).__name__}: {error}",
            next_step="Import the module that registers it before compiling.",
            subject=fields["name"],
        ) from error
    return make_request(
        module, signature_from_dict(fields["signature"]), device_type=fields["device_type"],
        device=fields["device"], name=fields["name"], kind=fields["kind"], key=fields["key"],
        wants_artifact=fields["wants_artifact"], hints=fields["hints"],
    )  # fmt: skip


def needs_of(module: fx.GraphModule) -> list[str]:
    """Return the modules and operations outside torch that a graph calls: "module:x", "op:ns::op"."""
    found: dict[str, None] = {}
    for node in module.graph.nodes:
        if node.op == "call_function":
            for need in _needs_of_target(node.target):
                found.setdefault(need)
    return list(found)


def _needs_of_target(target: Any) -> list[str]:
    from intarsia.torch_compat import operation_name, operator_module

    name = operation_name(target)
    if name is None:
        module = getattr(target, "__module__", None) or ""
        top = module.split(".")[0]
        return [] if top in ("torch", "_operator", "operator", "math", "builtins", "") else [
            f"module:{module}"
        ]  # fmt: skip
    if name.split("::")[0] in ("aten", "prims", "higher_order"):
        return []
    home = operator_module(target)
    return [f"module:{home}", f"op:{name}"] if home else [f"op:{name}"]


def import_needs(needs: list[str]) -> None:
    """Import what a graph or artifact needs.

    Raises:
        ImportError, AttributeError: something is not to be had; the message has its name.
    """
    import importlib

    from intarsia.split.encode import resolve_operation

    for need in needs:
        kind, _, name = need.partition(":")
        if kind == "module":
            importlib.import_module(name)
        else:
            resolve_operation(name)


@frozen
class CompileOrder:
    """What a worker is asked: a request, and the compiler to ask, by name."""

    request: bytes
    compiler: str
    config: Mapping[str, Any]


def compile_in_worker(request: bytes, compiler: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Compile a request in another process; returns the artifact, what it needs, and a note.

    A plain function of plain data, so that any `concurrent.futures.Executor` can run it.
    """
    from intarsia.compiling.instances import built_for
    from intarsia.compiling.soundness import compile_soundly  # cycle: it reads requests
    from intarsia.config import load_config
    from intarsia.host import Host

    restored = request_from_bytes(request)
    host = Host(load_config(dict(config), environ={}))
    spec = host.compiler(compiler)
    made = built_for(host, spec, restored.device).compiler
    result = compile_soundly(made, evolve(restored, wants_artifact=True))
    return {"artifact": result.artifact, "needs": tuple(result.needs), "note": result.note}
