"""The adaptor: exported program -> MLIR -> module of IREE's virtual machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import iree.compiler
import iree.runtime
import numpy
import torch

from intarsia.errors import CompileRejected
from intarsia.exported import Layout, Run, check_dtypes, reason, takes_aten
from intarsia.interfaces import CompileRequest, CompileResult, Decision, OpView, PieceSignature

__all__ = ["IreeCompiler"]

DTYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
FLAGS = ("--iree-llvmcpu-target-cpu=host", "--iree-input-demote-f64-to-f32=false")


class IreeCompiler:
    """The `Compiler` over IREE."""

    def __init__(self, options: Mapping[str, Any], device: int | None) -> None:
        self.flags = [*FLAGS, *options["flags"]]

    def compile(self, request: CompileRequest) -> CompileResult:
        """Compile a piece; its artifact is a module of IREE's virtual machine.

        Raises:
            CompileRejected: a dtype or operator cannot be lowered, or a result shares memory.
        """
        from iree.turbine import aot

        check_dtypes(request, DTYPES)
        program = request.lower("exported")
        layout = Layout.of(request)
        try:
            text = str(aot.export(program).mlir_module)
            module: bytes = iree.compiler.compile_str(
                text, target_backends=["llvm-cpu"], input_type="torch", extra_args=self.flags
            )
            run = _loaded(module)
        except Exception as error:
            raise CompileRejected(reason(error)) from error
        return CompileResult(layout.bind(run), layout.to_bytes(module), request.needs)

    def load(
        self, artifact: bytes, signature: PieceSignature, device: int | None
    ) -> Callable[..., Sequence[torch.Tensor]]:
        """Load a module.

        Raises:
            ValueError: it is for a piece with other inputs or results.
        """
        layout, module = Layout.from_bytes(artifact, signature)
        return layout.bind(_loaded(module))

    def factors(self) -> Mapping[str, str]:
        """Return the versions of what compiles and runs; the processor is a trait of the platform."""
        names = ("iree-base-compiler", "iree-base-runtime", "iree-turbine")
        return {name: version(name) for name in names}

    def supports(self, op: OpView) -> Decision:
        """Take what IREE lowers; whether it does is known when it tries."""
        return takes_aten(op)


def _loaded(module: bytes) -> Run:
    context = iree.runtime.SystemContext(config=iree.runtime.Config("local-sync"))
    # Copied: the module's memory must outlive the bytes that it came in.
    context.add_vm_module(iree.runtime.VmModule.copy_buffer(context.instance, module))
    (name,) = {n for n in context.modules.module.vm_module.function_names if n in ("main",)}
    function = context.modules.module[name]

    def run(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        made = function(*(tensor.numpy() for tensor in tensors))
        listed = made if isinstance(made, (list, tuple)) else [made]
        return [torch.from_numpy(numpy.array(value.to_host(), copy=True)) for value in listed]

    run.context = context  # type: ignore[attr-defined]  # it owns what the function runs
    return run
