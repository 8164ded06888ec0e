"""Compile requests as bytes: JSON and nothing else, so that reading one runs no code of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import asdict, evolve
from attrs import fields as fields_of
from torch import fx

from intarsia import torch_compat
from intarsia.compiling.plain import signature_from_dict, signature_to_dict
from intarsia.compiling.signature import fake_inputs
from intarsia.errors import CompileFailed
from intarsia.interfaces import (
    CompileRequest,
    Option,
    PassSetup,
    PassSpec,
    PieceSignature,
    Tier,
)
from intarsia.split.encode import decode_graph, encode_graph

_FORMAT = 1


def make_request(
    module: fx.GraphModule, signature: PieceSignature, *, device_type: str, device: int | None,
    name: str, kind: Any, key: str = "", passes: tuple[PassSpec, ...] = (),
    wants_artifact: bool = True, hints: Mapping[str, int] | None = None,
    weights: Mapping[int, torch.Tensor] | None = None, tier: Tier = "quick",
    pass_setup: PassSetup | None = None,
) -> CompileRequest:  # fmt: skip
    """Return a request whose fake inputs are made for its box, in a fake mode of their own.

    The graph is copied; its output nodes carry fake values of that mode, which is how Inductor and
    others find it.
    """
    mode, fakes = fake_inputs(signature, device, hints or {})
    request = CompileRequest(
        graph=_copied(module, mode, fakes), fake_inputs=fakes, signature=signature, passes=passes,
        device_type=device_type, device=device, name=name, kind=kind, key=key,
        wants_artifact=wants_artifact, hints=dict(hints or {}), weights=weights, tier=tier,
        pass_setup=pass_setup,
    )  # fmt: skip
    return _with_passes(request, mode)


def _with_passes(request: CompileRequest, mode: Any) -> CompileRequest:
    """Run the passes over the piece as it is in torch's form."""
    if request.passes:
        from intarsia.passes.running import (
            run_request_passes,  # who has no passes need not import it
        )

        run_request_passes(request, "piece", request.graph)
        _mark_outputs(request.graph, mode)
    return request


def next_request(
    module: fx.GraphModule, earlier: CompileRequest, signature: PieceSignature,
    weights: Mapping[int, torch.Tensor] | None,
) -> CompileRequest | None:  # fmt: skip
    """Return a request for the next compiler that is asked for a piece, which shares lowered forms.

    None where the one before left conditions on sizes in the fake mode, which both would share.
    """
    mode = fake_mode_of(earlier)
    environment = None if mode is None else mode.shape_env
    if environment is None or torch_compat.shape_guards(environment):
        return None
    if torch_compat.replacements(environment):
        return None
    graph = _copied(module, mode, earlier.fake_inputs)
    # The lowered forms are shared, and how the passes over them went with them.
    lowered = [run for run in earlier.pass_runs if run.stage == "piece-aten"]
    made = evolve(earlier, graph=graph, signature=signature, weights=weights, pass_runs=lowered)
    return _with_passes(made, mode)


def _copied(module: fx.GraphModule, mode: Any, fakes: Sequence[Any]) -> fx.GraphModule:
    graph = fx.Graph()
    result = graph.graph_copy(module.graph, {})
    graph.output(result)
    made = fx.GraphModule(module, graph)
    for node, fake in zip(_placeholders(made), fakes, strict=True):
        node.meta = {"example_value": fake, "val": fake}
    _mark_outputs(made, mode)
    return made


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
    if request.weights is not None:
        raise CompileFailed(
            f"{request.name} cannot be sent to another process",
            why="its compiler bakes the weights into the artifact, and they are not sent",
            subject=request.name,
        )
    try:
        graph = encode_graph(request.graph.graph, request.graph)
    except Exception as error:
        raise CompileFailed(
            f"{request.name} cannot be sent to another process",
            why=str(error),
            subject=request.name,
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
        "tier": request.tier,
        "needs": needs_of(request.graph),
        "passes": [_pass_to_dict(spec) for spec in request.passes],
        "pass_setup": _setup_to_dict(request.pass_setup),
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
        passes=tuple(map(_pass_from_dict, fields["passes"])),
        wants_artifact=fields["wants_artifact"], hints=fields["hints"], tier=fields["tier"],
        pass_setup=None if fields["pass_setup"] is None else PassSetup(**fields["pass_setup"]),
    )  # fmt: skip


def _setup_to_dict(setup: PassSetup | None) -> dict[str, Any] | None:
    if setup is None:
        return None
    if setup.manager is not None and not isinstance(setup.manager, str):
        raise CompileFailed(
            f'the pass manager "{setup.manager_name}" cannot be sent to another process',
            why='its factory is not a "module:name" string', subject=setup.manager_name,
        )  # fmt: skip
    plain = {f.name: getattr(setup, f.name) for f in fields_of(PassSetup)}
    plain["options"] = {name: dict(table) for name, table in setup.options.items()}
    return {**plain, "owners": dict(setup.owners)}


_TYPES: Mapping[str, type] = {
    t.__name__: t for t in (bool, int, float, str, list, tuple, dict, type(None), object)
}


def _pass_to_dict(spec: PassSpec) -> dict[str, Any]:
    """Return a pass as plain data: its own record, so that the other process runs this very pass.

    Raises:
        CompileFailed: it holds something that has no plain form.
    """
    for what, reference in (("factory", spec.factory), ("boxes", spec.boxes)):
        if reference is not None and not isinstance(reference, str):
            raise _unsendable(spec, f'its {what} is not a "module:name" string')
    options = {name: _option_to_dict(spec, name, o) for name, o in spec.options.items()}
    return {
        "name": spec.name, "version": spec.version, "stage": spec.stage, "factory": spec.factory,
        "options": options, "before": list(spec.before), "after": list(spec.after),
        "boxes": spec.boxes, "min_matches": spec.min_matches,
    }  # fmt: skip


def _option_to_dict(spec: PassSpec, name: str, option: Option) -> dict[str, Any]:
    types = option.type if isinstance(option.type, tuple) else (option.type,)
    names = [t.__name__ for t in types]
    if any(_TYPES.get(n) is not t for n, t in zip(names, types, strict=True)):
        raise _unsendable(spec, f"its option {name} has the type {' | '.join(names)}")
    try:
        same = json.loads(json.dumps(option.default)) == option.default
    except (TypeError, ValueError):
        same = False
    if not same:
        raise _unsendable(spec, f"its option {name} has the default {option.default!r}")
    return {"default": option.default, "type": names, "doc": option.doc, "in_key": option.in_key}


def _unsendable(spec: PassSpec, why: str) -> CompileFailed:
    return CompileFailed(
        f'the pass "{spec.name}" cannot be sent to another process', why=why,
        next_step='Give it as a "module:name" string and plain options, or compile without executor.',
        subject=spec.name,
    )  # fmt: skip


def _pass_from_dict(data: Mapping[str, Any]) -> PassSpec:
    options = {
        name: Option(o["default"], _type_of(o["type"]), o["doc"], o["in_key"])
        for name, o in data["options"].items()
    }
    ordered = {"before": tuple(data["before"]), "after": tuple(data["after"])}
    return PassSpec(**{**data, **ordered, "options": options})


def _type_of(names: Sequence[str]) -> Any:
    types = tuple(_TYPES[name] for name in names)
    return types if len(types) > 1 else types[0]


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


def compile_in_worker(
    request: bytes, compiler: str, settings: Mapping[str, Any], *, host: Any = None
) -> dict[str, Any]:
    """Compile a request in another process; returns the artifact, what it needs, a note, and seconds.

    A plain function of plain data, so that any `concurrent.futures.Executor` can run it.

    Raises:
        Unfit: this process cannot do it, or would make something else than the one that asks.
        CompileRejected: the compiler declines the piece.
    """
    from intarsia.compiling.soundness import compile_soundly  # cycle: it reads requests
    from intarsia.compiling.worker_jobs import prepared

    begun = time.perf_counter()
    restored, spec, made = prepared(request, compiler, settings, host)
    with made.turn(spec):  # the "process" may be a thread of this one
        result = compile_soundly(made.compiler, evolve(restored, wants_artifact=True))
    return {
        "artifact": result.artifact, "needs": tuple(result.needs), "note": result.note,
        "passes": [asdict(run) for run in result.passes], "seconds": time.perf_counter() - begun,
    }  # fmt: skip
