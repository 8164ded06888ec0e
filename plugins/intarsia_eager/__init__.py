"""The eager compiler: a piece as the Python calls that it is made of."""

from __future__ import annotations

from intarsia.interfaces import Capabilities, CompilerSpec, Decision, OpView

intarsia_api_version = (1, 0)


def supports(op: OpView) -> Decision:
    """Take every operation."""
    return Decision(True)


def intarsia_compilers() -> list[CompilerSpec]:
    """Bring the compiler "eager"."""
    return [
        CompilerSpec(
            name="eager",
            version="1",
            factory="intarsia_eager.adaptor:EagerCompiler",
            supports=supports,
            capabilities=Capabilities(
                dynamic_shapes=True,
                mutation=True,
                custom_ops=True,
                subclasses=True,
                concurrent=True,
                light=True,
            ),
        )
    ]
