"""Compilers that are broken on purpose, one defect each, for the kit and for what happens at run time."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from intarsia.errors import CompileRejected
from intarsia.interfaces import (
    Capabilities,
    CompileRequest,
    CompileResult,
    CompilerSpec,
    Decision,
    Option,
)


class Toy:
    """Runs the graph as it is, with one defect."""

    def __init__(self, options: Mapping[str, Any], device: int | None) -> None:
        self.defect = options["defect"]
        self.held: dict[Any, torch.Tensor] = {}

    def compile(self, request: CompileRequest) -> CompileResult:
        """Compile, each defect in its own way."""
        if self.defect == "hangs":
            time.sleep(3600)
        if self.defect == "exits":
            os._exit(7)
        if self.defect == "refuses-all":
            raise CompileRejected("it refuses everything")
        module = request.lower("torch")
        artifact = pickle.dumps(None) if self.defect == "loads-another" else None
        return CompileResult(self.wrapped(module, request), artifact, ())

    def wrapped(self, module: Any, request: CompileRequest) -> Callable[..., Sequence[Any]]:
        """Return the call with the defect."""
        defect, held = self.defect, self.held

        def call(*inputs: Any) -> Sequence[Any]:
            if defect == "exits-in-a-call":
                os._exit(7)
            results = list(module(*inputs))
            first = results[0]
            if defect == "wrong-numbers":
                results[0] = first + 1 if first.is_floating_point() else first
            elif defect == "nan" and first.is_floating_point():
                results[0] = torch.full_like(first, torch.nan)
            elif defect == "wrong-arity":
                results.append(first)
            elif defect == "wrong-dtype":
                results[0] = first.double()
            elif defect == "alias":
                place = held.setdefault((tuple(first.shape), first.dtype), torch.empty_like(first))
                results[0] = place.copy_(first)
            elif defect == "one-size" and isinstance(inputs[0], torch.Tensor):
                results[0] = first * (1 if inputs[0].shape[0] == 4 else 2)
            return results

        return call

    def load(self, artifact: bytes, signature: Any, device: int | None) -> Any:
        """Load something else than was compiled."""
        return lambda *inputs: [torch.zeros(3)]

    def factors(self) -> Mapping[str, str]:
        """Return nothing."""
        return {}

    def supports(self, op: Any) -> Decision:
        """Take everything, also what it cannot do."""
        return Decision(True)


class Plugin:
    """Brings the compiler "broken"."""

    intarsia_api_version = (1, 0)
    __name__ = "broken"

    def intarsia_compilers(self) -> list[CompilerSpec]:
        """Bring it."""
        able = Capabilities(dynamic_shapes=True, mutation=True, custom_ops=True, concurrent=True)
        return [
            CompilerSpec(
                "broken", "1", "tests.conformance.broken:Toy", capabilities=able,
                options={"defect": Option("", str, "what is wrong with it")},
            )
        ]  # fmt: skip


def plugins() -> list[Plugin]:
    """Return the plugin, as the kit asks for it."""
    return [Plugin()]
