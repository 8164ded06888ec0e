"""Runs the passes of a stage over a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from intarsia.capture import nodes
from intarsia.capture.fake_values import values_in
from intarsia.compiling.signature import fake_inputs
from intarsia.interfaces import (
    Box,
    CompileRequest,
    PassContext,
    PassManager,
    PassRun,
    PassSetup,
    PassSpec,
    Stage,
)
from intarsia.passes.checks import Checked
from intarsia.passes.manager import BuiltInManager
from intarsia.passes.plan import built
from intarsia.references import resolve_reference

__all__ = ["note_runs", "run_graph_passes", "run_passes", "run_request_passes", "run_slot"]


def run_passes(
    graph: fx.Graph, specs: Sequence[PassSpec], setup: PassSetup, stage: Stage, *, box: Box,
    inputs: Sequence[Any] | None, where: str, device_type: str, device: int | None,
) -> list[PassRun]:  # fmt: skip
    """Run the passes of a stage over a graph in place, in their order; returns how each went.

    Raises:
        PassError: in strict mode, where one fails or leaves another function.
    """
    mine = [spec for spec in specs if spec.stage == stage]
    if not mine:
        return []
    checked = Checked(inputs, where, setup.strict, setup.owners, setup.deadline, setup.dump)
    passes = [checked.bound(spec, built(spec, setup.options[spec.name])) for spec in mine]
    context = PassContext(box, device_type, device, where, setup.strict, setup.options)
    _manager(setup).run(passes, stage, graph, context)
    # What ran is what the checks saw, whatever the manager tells.
    return checked.runs


def run_request_passes(request: CompileRequest, stage: Stage, module: fx.GraphModule) -> None:
    """Run a request's passes of a stage over a form of its piece, and note how they went."""
    if request.pass_setup is None:
        return
    if not any(spec.stage == stage for spec in request.passes):
        return
    # Of their own: what the checks find out about sizes must not look like a compiler's condition.
    _, fakes = fake_inputs(request.signature, request.device, request.hints)
    runs = run_passes(
        module.graph, request.passes, request.pass_setup, stage, box=request.box,
        inputs=fakes, where=request.name, device_type=request.device_type,
        device=request.device,
    )  # fmt: skip
    module.recompile()
    note_runs(request, stage, runs)


def note_runs(request: CompileRequest, stage: Stage, runs: Sequence[PassRun]) -> None:
    """Note how the passes of a stage went; those over another form of the same piece do not count twice."""
    request.pass_runs[:] = [run for run in request.pass_runs if run.stage != stage] + [*runs]


def run_graph_passes(
    module: fx.GraphModule, specs: Sequence[PassSpec], setup: PassSetup, *, box: Box, where: str,
    device_type: str, device: int | None,
) -> list[PassRun]:  # fmt: skip
    """Run the passes of the stage "graph" over a captured graph, and give its nodes their values anew."""
    if not any(spec.stage == "graph" for spec in specs):
        return []
    inputs = own_values(module.graph)
    runs = run_passes(
        module.graph, specs, setup, "graph", box=box, inputs=inputs, where=where,
        device_type=device_type, device=device,
    )  # fmt: skip
    values = values_in(module.graph, inputs)
    for node, value in values.items():
        if node.op != "placeholder":
            node.meta.pop(nodes.STORAGE, None)
            node.meta["example_value"] = value
    module.recompile()
    return runs


def own_values(graph: fx.Graph) -> list[Any]:
    """Return the fake values of a graph's inputs, each with a memory of its own where tracing says so.

    Of repeated blocks only the first was traced, so that the inputs of all share the values of its.
    """
    made: dict[Any, Any] = {}
    found = []
    for hole in (n for n in graph.nodes if n.op == "placeholder"):
        value, key = nodes.value_of(hole), hole.meta.get(nodes.STORAGE)
        if key is not None and isinstance(value, torch.Tensor):
            if key not in made:
                with value.fake_mode:  # type: ignore[attr-defined]
                    made[key] = torch.empty_strided(
                        value.shape, value.stride(), dtype=value.dtype, device=value.device
                    )
            value = made[key]
            hole.meta.pop(nodes.STORAGE)
            hole.meta["example_value"] = value
        found.append(value)
    return found


def run_slot(request: CompileRequest, stage: Stage, graph: fx.Graph) -> None:
    """Run a request's passes in one of Inductor's own stages, over a graph of Inductor's."""
    assert request.pass_setup is not None
    inputs = [nodes.value_of(n) for n in graph.nodes if n.op == "placeholder"]
    known = None if any(value is None for value in inputs) else inputs
    request.pass_runs.extend(run_passes(
        graph, request.passes, request.pass_setup, stage, box=request.box, inputs=known,
        where=request.name, device_type=request.device_type, device=request.device,
    ))  # fmt: skip


def _manager(setup: PassSetup) -> PassManager:
    if setup.manager is None:
        return BuiltInManager()
    made: PassManager = resolve_reference(
        setup.manager, owner=f'pass manager "{setup.manager_name}"'
    )()
    return made
