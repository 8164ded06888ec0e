"""The compiler "onnxruntime": pieces as ONNX models, run by ONNX Runtime on the CPU.

Nothing here imports torch or ONNX Runtime.
"""

from __future__ import annotations

from intarsia.interfaces import Capabilities, CompilerSpec, Decision, Option

intarsia_api_version = (1, 0)


def intarsia_compilers() -> list[CompilerSpec]:
    """Bring the compiler."""
    return [
        CompilerSpec(
            name="onnxruntime",
            version="1",
            factory="intarsia_onnxruntime.adaptor:OnnxRuntimeCompiler",
            devices=("cpu",),
            form="exported",
            options={
                "weights": Option("input", str, 'Whether weights stay inputs ("input") or are part of the '
                                  'model ("bake"): faster, and compiled for each layer.'),
                "threads": Option(0, int, "Threads for one call; 0: as many as torch has."),
            },
            capabilities=Capabilities(dynamic_shapes=True, concurrent=False),
            available=available,
            install_hint="pip install intarsia-onnxruntime",
        )
    ]  # fmt: skip


def available() -> Decision:
    """Say whether ONNX Runtime and torch's exporter are installed."""
    from importlib.util import find_spec

    for name in ("onnxruntime", "onnx", "onnxscript"):
        if find_spec(name) is None:
            return Decision(False, f"{name} is not installed")
    return Decision(True)
