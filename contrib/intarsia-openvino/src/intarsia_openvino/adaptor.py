"""The adaptor: exported program -> OpenVINO model -> compiled model."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy
import openvino
import torch

from intarsia.errors import CompileRejected
from intarsia.exported import Layout, Run, check_dtypes, reason, takes_aten
from intarsia.interfaces import CompileRequest, CompileResult, Decision, OpView, PieceSignature

__all__ = ["OpenVinoCompiler"]

DTYPES = (
    "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
)  # fmt: skip
NUMPY_LACKS = {torch.bfloat16: (torch.int16, openvino.Type.bf16)}
"""Dtypes without one of numpy: what their bits are read as, and OpenVINO's name."""


class OpenVinoCompiler:
    """The `Compiler` over OpenVINO."""

    def __init__(self, options: Mapping[str, Any], device: int | None) -> None:
        self.threads: int = options["threads"]
        self.core = openvino.Core()

    def compile(self, request: CompileRequest) -> CompileResult:
        """Convert and compile a piece; its artifact is OpenVINO's own blob.

        Raises:
            CompileRejected: a dtype or operator cannot be converted, or a result shares memory.
        """
        check_dtypes(request, DTYPES)
        program = request.lower("exported")
        layout = Layout.of(request)
        try:
            model = openvino.convert_model(program)
            compiled = self.core.compile_model(model, "CPU", self._settings())
            blob = io.BytesIO()
            compiled.export_model(blob)
        except Exception as error:
            raise CompileRejected(reason(error)) from error
        dtypes = [_dtype(value.dtype) for value in request.signature.outputs]  # type: ignore[union-attr]
        return CompileResult(
            layout.bind(_runner(compiled, dtypes)), layout.to_bytes(blob.getvalue()), request.needs
        )

    def load(
        self, artifact: bytes, signature: PieceSignature, device: int | None
    ) -> Callable[..., Sequence[torch.Tensor]]:
        """Import a blob.

        Raises:
            ValueError: it is for a piece with other inputs or results.
        """
        layout, blob = Layout.from_bytes(artifact, signature)
        compiled = self.core.import_model(io.BytesIO(blob), "CPU", self._settings())
        dtypes = [_dtype(value.dtype) for value in signature.outputs]  # type: ignore[union-attr]
        return layout.bind(_runner(compiled, dtypes))

    def _settings(self) -> dict[str, Any]:
        # Else OpenVINO computes float32 in bfloat16 where the processor has it.
        return {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": self.threads or torch.get_num_threads(),
        }

    def factors(self) -> Mapping[str, str]:
        """Return OpenVINO's version; the processor is a trait of the platform."""
        return {"openvino": version("openvino")}

    def supports(self, op: OpView) -> Decision:
        """Take what OpenVINO converts; whether it does is known when it tries."""
        return takes_aten(op)


def _dtype(name: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, name)
    return found


def _runner(compiled: Any, dtypes: Sequence[torch.dtype]) -> Run:
    """Return the call; threads have a request each, for a request runs one call at a time."""
    local = threading.local()
    count = len(compiled.inputs)

    def run(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        request = getattr(local, "request", None)
        if request is None:
            request = local.request = compiled.create_infer_request()
        for number, tensor in enumerate(tensors[:count]):
            request.set_input_tensor(number, _shared(tensor))
        request.infer()
        # The request's own results are overwritten by its next call.
        return [_copied(request.get_output_tensor(n), dtype) for n, dtype in enumerate(dtypes)]

    return run


def _shared(tensor: torch.Tensor) -> Any:
    bits = NUMPY_LACKS.get(tensor.dtype)
    if bits is None:
        return openvino.Tensor(tensor.numpy(), shared_memory=True)
    array = tensor.view(bits[0]).numpy()
    return openvino.Tensor(array, list(tensor.shape), bits[1])


def _copied(result: Any, dtype: torch.dtype) -> torch.Tensor:
    bits = NUMPY_LACKS.get(dtype)
    if bits is None:
        return torch.from_numpy(numpy.array(result.data, copy=True)).to(dtype)
    array = numpy.array(result.data, copy=True)
    return torch.from_numpy(array.view(numpy.int16)).view(dtype)
