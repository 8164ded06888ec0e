"""The compiler "openvino": pieces as OpenVINO models on the CPU.

Nothing here imports torch or OpenVINO.
"""

from __future__ import annotations

from intarsia.interfaces import Capabilities, CompilerSpec, Decision, Option

intarsia_api_version = (1, 0)


def intarsia_compilers() -> list[CompilerSpec]:
    """Bring the compiler."""
    return [
        CompilerSpec(
            name="openvino",
            version="1",
            factory="intarsia_openvino.adaptor:OpenVinoCompiler",
            devices=("cpu",),
            form="exported",
            options={
                "weights": Option("input", str, 'Whether weights stay inputs ("input") or are part of the '
                                  'model ("bake"): faster, and compiled for each layer.'),
                "threads": Option(0, int, "Threads for one call; 0: as many as torch has."),
            },
            capabilities=Capabilities(dynamic_shapes=True, concurrent=False),
            available=available,
            install_hint="pip install intarsia-openvino",
        )
    ]  # fmt: skip


def available() -> Decision:
    """Say whether OpenVINO is installed."""
    from importlib.util import find_spec

    found = find_spec("openvino") is not None
    return Decision(found, "" if found else "openvino is not installed")
