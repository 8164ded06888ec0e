"""Compiles a piece with Inductor.

`standalone_compile` is not thread-safe and its settings are process-wide while it runs, so one lock
serialises every call in the process.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx

from intarsia import torch_compat
from intarsia.compiling.transport import fake_mode_of, needs_of
from intarsia.errors import CompileRejected, ConfigError, nearest
from intarsia.interfaces import (
    CompileRequest,
    CompileResult,
    Decision,
    OpView,
    PieceSignature,
    TensorInfo,
)

_process_lock = threading.Lock()


class InductorCompiler:
    """The `Compiler` that gives pieces to Inductor."""

    def __init__(self, options: Mapping[str, Any], device: int | None) -> None:
        self.direct = bool(options.get("direct", True))
        self.patches = _patches({k: v for k, v in options.items() if k not in ("direct", "*")})
        self.device = device

    def compile(self, request: CompileRequest) -> CompileResult:
        """Compile a piece.

        Raises:
            CompileRejected: the piece returns no tensor, so there is nothing to generate.
        """
        module: fx.GraphModule = request.lower("torch")
        if not request.signature.outputs and not request.signature.mutated:
            raise CompileRejected("the piece returns nothing and writes nothing")
        with _process_lock:
            made = torch_compat.inductor_compile(
                module, list(request.fake_inputs), fake_mode_of(request), self._settings(request),
                serializable=request.wants_artifact,
                direct=self.direct and _shares_nothing(request.signature),
            )  # fmt: skip
        artifact = made.serialize() if made.serialize is not None else None
        needs = tuple(needs_of(module))
        if made.boxed is not None:
            return CompileResult(_boxed(made.boxed), artifact, needs, "direct call")
        return CompileResult(made.callable, artifact, needs, "artifact call")

    def _settings(self, request: CompileRequest) -> dict[str, Any]:
        settings = dict(self.patches)
        if request.device_type == "cpu" and torch_compat.cpp_compiler_is_modern():
            settings.setdefault("cpp.vec_isa_ok", True)
        return settings

    def load(
        self, artifact: bytes, signature: PieceSignature, device: int | None
    ) -> Callable[..., Sequence[Any]]:
        """Restore an artifact."""
        with _process_lock:
            return torch_compat.inductor_load(artifact)

    def factors(self) -> Mapping[str, str]:
        """Return the settings that differ from Inductor's own."""
        return {f"option {name}": repr(value) for name, value in sorted(self.patches.items())}

    def supports(self, op: OpView) -> Decision:
        """Take every operation."""
        return Decision(True)


def _boxed(function: Callable[[list[Any]], Sequence[Any]]) -> Callable[..., Sequence[Any]]:
    """Return Inductor's generated call, which takes one list and clears it, marked as such."""
    made: Any = functools.partial(function)  # a bound method takes no attributes; this costs 30 ns
    made.boxed_call = True
    return made


def _shares_nothing(signature: PieceSignature) -> bool:
    """Say whether no input or output shares memory with another.

    AOTAutograd's wrapper makes such outputs views again after the generated code ran, and hands inputs
    of one storage over as one base; without the wrapper the generated code would get and return other
    tensors than the piece.
    """
    values = (*signature.inputs, *signature.outputs)
    tensors = [v for v in values if isinstance(v, TensorInfo)]
    return all(info.alias_class is None for info in tensors)


def _patches(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as settings of `torch._inductor.config`.

    Raises:
        ConfigError: Inductor has no setting of that name.
    """
    known = torch_compat.inductor_options() if options else frozenset()
    for name in options:
        if name not in known:
            raise ConfigError(
                f'Inductor has no setting "{name}"',
                next_step=nearest(name, known).partition(" Known:")[0],
                subject=f"options.inductor.{name}",
            )
    return dict(options)
