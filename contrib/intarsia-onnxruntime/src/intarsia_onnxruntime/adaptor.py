"""The adaptor: exported program -> ONNX model -> session."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import onnxruntime
import torch

from intarsia.errors import CompileRejected
from intarsia.exported import Layout, Run, check_dtypes, reason, takes_aten
from intarsia.interfaces import CompileRequest, CompileResult, Decision, OpView, PieceSignature

__all__ = ["OnnxRuntimeCompiler"]

DTYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
"""What ONNX Runtime has CPU kernels for, and numpy has a type for."""


class OnnxRuntimeCompiler:
    """The `Compiler` over ONNX Runtime."""

    def __init__(self, options: Mapping[str, Any], device: int | None) -> None:
        self.threads: int = options["threads"]

    def compile(self, request: CompileRequest) -> CompileResult:
        """Convert a piece and open a session for it; its artifact is the ONNX model.

        Raises:
            CompileRejected: a dtype or operator has no ONNX form, or a result shares memory.
        """
        check_dtypes(request, DTYPES)
        program = request.lower("exported")
        layout = Layout.of(request)
        try:
            with _quiet():
                made = torch.onnx.export(program, dynamo=True, verbose=False, external_data=False)
            assert made is not None
            model = made.model_proto.SerializeToString()
            run = self._opened(model)
        except Exception as error:
            raise CompileRejected(reason(error)) from error
        return CompileResult(layout.bind(run), layout.to_bytes(model), request.needs)

    def load(
        self, artifact: bytes, signature: PieceSignature, device: int | None
    ) -> Callable[..., Sequence[torch.Tensor]]:
        """Open a session for an artifact.

        Raises:
            ValueError: it is for a piece with other inputs or results.
        """
        layout, model = Layout.from_bytes(artifact, signature)
        return layout.bind(self._opened(model))

    def _opened(self, model: bytes) -> Run:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = self.threads or torch.get_num_threads()
        settings.log_severity_level = 3
        session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        places = _places(names, model)

        def run(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
            given = {name: tensors[at].numpy() for name, at in places.items()}
            # ONNX Runtime allocates results anew at every call.
            return [torch.from_numpy(made) for made in session.run(None, given)]

        return run

    def factors(self) -> Mapping[str, str]:
        """Return the versions of what converts and runs."""
        return {name: version(name) for name in ("onnxruntime", "onnx", "onnxscript")}

    def supports(self, op: OpView) -> Decision:
        """Take what has an ONNX form; whether an operation has one is known when it is converted."""
        return takes_aten(op)


def _places(names: list[str], model: bytes) -> dict[str, int]:
    """Return which of the program's tensors a session's inputs are; unused ones may have been dropped."""
    import onnx

    declared = [value.name for value in onnx.load_from_string(model).graph.input]
    return {name: declared.index(name) for name in names}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks about torchvision and the like from the user's log."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
