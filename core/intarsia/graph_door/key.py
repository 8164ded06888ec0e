"""The key of a graph: all that its plan depends on, each aspect as a factor of its own.

Dynamo has traced the graph already, so its key is made of the graph itself. How large the example of the
trace was is no part of it, unless the boxes are cut by it: another first batch finds the same plan.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen

from intarsia import torch_compat
from intarsia.bundle.lookup import NoKey, autocast_of, chosen_factors
from intarsia.capture import nodes
from intarsia.capture.conditions import text_of
from intarsia.capture.graph import Graph
from intarsia.compiling.boxes import PlannedBox
from intarsia.compiling.kept import without_constants
from intarsia.compiling.signature import size_of, storage_classes, tensor_info, value_info
from intarsia.config import Config
from intarsia.digests import plain_digest
from intarsia.graph_door.job import GraphJob
from intarsia.host import Host
from intarsia.interfaces import PlatformSpec, TensorInfo
from intarsia.ranks.state import job_factors
from intarsia.split.encode import Encoded
from intarsia.split.rules import modules_around


@frozen
class Chosen:
    """What a graph is to be compiled with."""

    config: Config
    host: Host
    platform: PlatformSpec
    device: int | None


def graph_factors(
    job: GraphJob, graph: Graph, encoded: Encoded, boxes: Sequence[PlannedBox]
) -> dict[str, str]:
    """Return the factors of a graph's key.

    Raises:
        NoKey: a compiler or rule has no identity that another process could compare, or the graph has
            tensors of a subclass.
    """
    place = job.place
    chosen = Chosen(job.config, job.host, place.platform, place.device)
    structure, constants = without_constants(encoded)
    every = list(graph.module.graph.nodes)
    return {
        **chosen_factors(chosen),
        **job_factors(),
        "graph": plain_digest(structure),
        "graph constants": plain_digest(constants),
        "graph values": plain_digest([_plain(nodes.value_of(n), graph) for n in every]),
        "modules": plain_digest([modules_around(n) for n in every]),
        "operators": json.dumps(_operators(every)),
        **_inputs(graph),
        "symbols": json.dumps([[s.name, s.low, s.high, s.dispatch] for s in graph.symbols.values()]),
        "conditions": json.dumps(sorted(text_of(c, graph) for c in graph.conditions)),
        "boxes": json.dumps([[dict(b.box), b.origin, dict(b.hints)] for b in boxes]),
    }  # fmt: skip


def _inputs(graph: Graph) -> dict[str, str]:
    """Return what is known of a graph's inputs."""
    holes = [n for n in graph.module.graph.nodes if n.op == "placeholder"]
    values = [nodes.value_of(n) for n in holes]
    tensors = [v for v in values if isinstance(v, torch.Tensor)]
    classes = storage_classes(holes)
    infos = [
        value_info(v, graph.names, alias_class=c) if isinstance(v, torch.Tensor)
        else value_info(v, graph.names)
        for v, c in zip(values, classes, strict=True)
    ]  # fmt: skip
    known = [i for i in infos if isinstance(i, TensorInfo)]
    return {
        "inputs": plain_digest([
            "number" if not isinstance(i, TensorInfo) else "static" if e.is_parameter else "tensor"
            for i, e in zip(infos, graph.inputs, strict=True)
        ]),
        "inputs shape": plain_digest([list(i.shape) for i in known]),
        "inputs dtype": plain_digest([i.dtype for i in known]),
        "inputs stride": plain_digest([[*i.stride, i.storage_offset] for i in known]),
        "inputs memory": plain_digest([[i.device_type, i.alias_class, i.subclass] for i in known]),
        "autocast": autocast_of(tensors),
    }  # fmt: skip


def _plain(value: Any, graph: Graph) -> Any:
    """Return what tracing knows of a node's value, as plain data."""
    if isinstance(value, torch.Tensor):
        info = tensor_info(value, graph.names)
        if info.subclass is not None:
            raise NoKey(
                f"the graph has tensors of the class {info.subclass}",
                why="what is inside of them is no part of a key", subject=info.subclass,
            )  # fmt: skip
        return [info.dtype, list(info.shape), list(info.stride), info.device_type,
                info.storage_offset, str(value.layout)]  # fmt: skip
    if isinstance(value, torch.SymInt):
        return size_of(value, graph.names)
    if isinstance(value, tuple | list):
        return [_plain(item, graph) for item in value]
    return value if isinstance(value, bool | int | str | type(None)) else type(value).__qualname__


_TORCHS = ("aten", "prims", "higher_order")


def _operators(every: Sequence[torch.fx.Node]) -> list[list[str]]:
    """Return the custom operators with their schemas and tags: splitting looks at what they write to."""
    found: dict[str, list[str]] = {}
    for target in (n.target for n in every if n.op == "call_function"):
        name = torch_compat.operation_name(target)
        if name is None or name.split("::")[0] in _TORCHS or name in found:
            continue
        tags = sorted(str(tag) for tag in getattr(target, "tags", ()))
        found[name] = [*(str(s) for s in torch_compat.schemas_of(target)), *tags]
    return [[name, *found[name]] for name in sorted(found)]
