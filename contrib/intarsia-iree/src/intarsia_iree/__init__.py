"""The compiler "iree": pieces through MLIR to machine code for this CPU.

Nothing here imports torch or IREE.
"""

from __future__ import annotations

from intarsia.interfaces import Capabilities, CompilerSpec, Decision, Option

intarsia_api_version = (1, 0)


def intarsia_compilers() -> list[CompilerSpec]:
    """Bring the compiler."""
    return [
        CompilerSpec(
            name="iree",
            version="1",
            factory="intarsia_iree.adaptor:IreeCompiler",
            devices=("cpu",),
            form="exported",
            options={
                "weights": Option("input", str, 'Whether weights stay inputs ("input") or are part of the '
                                  'program ("bake"): much faster, and compiled for each layer.'),
                "flags": Option((), tuple, "Further flags of iree-compile."),
            },
            capabilities=Capabilities(dynamic_shapes=True, concurrent=False),
            available=available,
            install_hint="pip install intarsia-iree",
        )
    ]  # fmt: skip


def available() -> Decision:
    """Say whether IREE's compiler, runtime and torch front end are installed."""
    from importlib.util import find_spec

    for name in ("iree.compiler", "iree.runtime", "iree.turbine"):
        try:
            found = find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            return Decision(False, f"{name} is not installed")
    return Decision(True)
