"""The Inductor compiler: quick artifacts and packages.

Inductor is not thread-safe and its settings are process-wide while it works, so one lock serialises every
call in the process. Nothing here imports it before a piece is compiled or a quick artifact is loaded: a
start that loads packages alone needs torch and no more.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import fx

from intarsia import torch_compat
from intarsia.errors import CompileRejected, ConfigError, nearest
from intarsia.interfaces import (
    CompileRequest,
    CompileResult,
    Decision,
    OpView,
    PieceSignature,
    TensorInfo,
    Tier,
)
from intarsia_inductor import ENVIRONMENT
from intarsia_inductor.calls import boxed, partitioned
from intarsia_inductor.identity import NoIdentity, identity
from intarsia_inductor.own_passes import passes_for
from intarsia_inductor.package_file import is_package, load_package, packages_load_here
from intarsia_inductor.quick import load_quick, make_quick
from intarsia_inductor.strides import keep_strides, strides_of

_process_lock = threading.Lock()
_log = logging.getLogger("intarsia")


class InductorCompiler:
    """The `Compiler` that gives pieces to Inductor."""

    def __init__(self, options: Mapping[str, Any], device: int | None) -> None:
        self.direct = bool(options.get("direct", True))
        self.patches = {
            k: v for k, v in options.items() if k not in ("direct", "*", "partition_at")
        }
        self.partition_at = tuple(options.get("partition_at", ()))
        if self.partition_at:  # settings of Inductor's, so the factors have them
            self.patches |= {
                "graph_partition": True, "custom_should_partition_ops": list(self.partition_at)
            }  # fmt: skip
        self.device = device
        self._told = False

    def compile(self, request: CompileRequest) -> CompileResult:
        """Compile a piece.

        Raises:
            CompileRejected: the piece returns no tensor, so there is nothing to generate; or it cannot be
                packaged, where a package is asked for.
            ConfigError: Inductor has no setting of an option's name.
        """
        _refuse_unknown(self.patches)
        if not request.signature.outputs and not request.signature.mutated:
            raise CompileRejected("the piece returns nothing and writes nothing")
        with _process_lock:
            return self._package(request) if request.tier == "package" else self._quick(request)

    def _quick(self, request: CompileRequest) -> CompileResult:
        module: fx.GraphModule = request.lower("torch")
        settings = self._settings(request)
        direct = self.direct and shares_nothing(request.signature)
        if self.partition_at and not direct:
            raise CompileRejected(
                "inputs or outputs share memory, so its partitions cannot be reached"
            )
        wanted = strides_of(request)
        with self._cutting():
            made = torch_compat.inductor_compile(
                module, list(request.fake_inputs), request.fake_mode, settings,
                serializable=request.wants_artifact, direct=direct,
                adjust=lambda graph: keep_strides(graph, wanted),
            )  # fmt: skip
        artifact = None
        if made.saved is not None:
            outputs = len(request.signature.outputs)
            artifact = make_quick(made.saved, settings, direct=direct, outputs=outputs)
        if made.boxed is not None:
            return CompileResult(self._boxed(made.boxed), artifact, request.needs, "direct call")
        if (
            artifact is not None
        ):  # out of Inductor's own cache, which does not give the direct call away
            function = self._load(artifact, contextlib.nullcontext())
            kind = "direct" if getattr(function, "boxed_call", False) else "artifact"
            return CompileResult(function, artifact, request.needs, f"{kind} call")
        return CompileResult(made.callable, artifact, request.needs, "artifact call")

    def _package(self, request: CompileRequest) -> CompileResult:
        from intarsia_inductor.packaging import make_package  # heavy, and only this needs it

        needs = request.needs  # the graph is rewritten on its way
        data, function, note = make_package(request, self._settings(request))
        return CompileResult(function, data, needs, note)

    def _settings(self, request: CompileRequest) -> dict[str, Any]:
        settings = dict(self.patches)
        if request.device_type == "cpu" and torch_compat.cpp_compiler_is_modern():
            settings.setdefault("cpp.vec_isa_ok", True)
        if torch_compat.padding_notes_conditions() and _is_dynamic(request):
            settings.setdefault("shape_padding", False)  # of no effect on the CPU
        return {**settings, **passes_for(request, settings)}

    def load(
        self, artifact: bytes, signature: PieceSignature, device: int | None
    ) -> Callable[..., Sequence[Any]]:
        """Restore an artifact of either tier.

        Raises:
            CompileRejected: the artifact is fine, and cannot be used in this process: the reason says why.
        """
        if is_package(artifact):
            return load_package(artifact, _device_of(signature, device))
        return self._load(artifact, _process_lock)

    def _load(self, artifact: bytes, lock: AbstractContextManager[Any]) -> Callable[..., Any]:
        with self._cutting():
            function = load_quick(artifact, lock)
        if not self.partition_at:
            return function
        if not getattr(function, "boxed_call", False):
            raise CompileRejected("its partitions cannot be reached")
        return partitioned(function.func)  # type: ignore[attr-defined]

    def _boxed(self, call: Any) -> Callable[..., Any]:
        return partitioned(call) if self.partition_at else boxed(call)

    def _cutting(self) -> AbstractContextManager[None]:
        return torch_compat.cut_for_others() if self.partition_at else contextlib.nullcontext()

    def loads(self, tier: Tier) -> Decision:
        """Say whether artifacts of a tier can be loaded in this process."""
        return packages_load_here() if tier == "package" else Decision(True)

    def factors(self) -> Mapping[str, str] | None:
        """Return what decides the generated code; None where a pass cannot be told from another.

        That is logged once. Takes well under a millisecond, and imports nothing.
        """
        try:
            return identity(self.patches, on_cpu=self.device is None, declared=ENVIRONMENT)
        except NoIdentity as error:
            if not self._told:
                self._told = True
                _log.warning("Inductor's pieces are not cached: %s", error)
            return None

    def supports(self, op: OpView) -> Decision:
        """Take every operation."""
        return Decision(True)


def _is_dynamic(request: CompileRequest) -> bool:
    return any(low != high for low, high in request.box.values())


def shares_nothing(signature: PieceSignature) -> bool:
    """Say whether no input or output shares memory with another.

    AOTAutograd's wrapper makes such outputs views again after the generated code ran, and hands inputs
    of one storage over as one base; without the wrapper the generated code would get and return other
    tensors than the piece.
    """
    values = (*signature.inputs, *signature.outputs)
    tensors = [v for v in values if isinstance(v, TensorInfo)]
    return all(info.alias_class is None for info in tensors)


def _device_of(signature: PieceSignature, index: int | None) -> torch.device:
    tensors = [v for v in (*signature.inputs, *signature.outputs) if isinstance(v, TensorInfo)]
    kind = tensors[0].device_type if tensors else "cpu"
    return torch.device(kind) if index is None else torch.device(kind, index)


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    """Refuse options that are no settings of `torch._inductor.config`.

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
