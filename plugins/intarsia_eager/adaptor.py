"""Runs a piece as generated Python: the same calls, without an interpreter or module in between."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx

from intarsia.interfaces import CompileRequest, CompileResult, Decision, OpView, PieceSignature
from intarsia.runtime.source import compile_source, graph_source
from intarsia.split.encode import CannotEncode, decode_graph, encode_graph


class EagerCompiler:
    """The `Compiler` that runs pieces eagerly."""

    def __init__(self, options: Mapping[str, Any], device: int | None) -> None:
        self.options = options
        self.device = device

    def compile(self, request: CompileRequest) -> CompileResult:
        """Return the piece as a function; its artifact is the graph as plain data."""
        module: fx.GraphModule = request.lower("torch")
        artifact = _artifact(module, request.needs) if request.wants_artifact else None
        return CompileResult(_function(module), artifact, request.needs)

    def load(
        self, artifact: bytes, signature: PieceSignature, device: int | None
    ) -> Callable[..., Sequence[Any]]:
        """Return the function of an artifact.

        Raises:
            ValueError: it takes another number of inputs than the piece.
        """
        from intarsia.compiling.transport import import_needs  # of use to artifacts alone

        data = json.loads(artifact)
        import_needs(data["needs"])
        module = decode_graph(data["graph"])
        count = sum(node.op == "placeholder" for node in module.graph.nodes)
        if count != len(signature.inputs):
            raise ValueError(f"it takes {count} inputs, and the piece has {len(signature.inputs)}")
        return _function(module)

    def factors(self) -> Mapping[str, str]:
        """Return nothing: eager depends on torch alone, which every key has."""
        return {}

    def supports(self, op: OpView) -> Decision:
        """Take every operation."""
        return Decision(True)


def _function(module: fx.GraphModule) -> Callable[..., Sequence[Any]]:
    source, space = graph_source(module, "piece")
    return compile_source(source, "piece", space.values, "eager piece")


def _artifact(module: fx.GraphModule, needs: Sequence[str]) -> bytes | None:
    try:
        data = {"graph": encode_graph(module.graph, module), "needs": list(needs)}
        return json.dumps(data).encode()
    except CannotEncode:
        return None  # runs here all the same, but has no plain form to keep
