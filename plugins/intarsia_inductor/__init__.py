"""The Inductor compiler, through `torch._inductor.standalone_compile`."""

from __future__ import annotations

from intarsia.interfaces import Capabilities, CompilerSpec, Decision, Option, OpView

intarsia_api_version = (1, 0)

ENVIRONMENT = ("TORCHINDUCTOR_FREEZING", "TORCHINDUCTOR_MAX_AUTOTUNE")
"""The best known of the variables that change what Inductor makes; `factors()` has the others."""


def supports(op: OpView) -> Decision:
    """Take every operation: what Inductor cannot generate code for it calls."""
    return Decision(True)


def intarsia_compilers() -> list[CompilerSpec]:
    """Bring the compiler "inductor"."""
    return [
        CompilerSpec(
            name="inductor",
            version="1",
            factory="intarsia_inductor.adaptor:InductorCompiler",
            devices=("cpu", "cuda", "xpu", "mps"),
            options={
                "*": Option(None, object, "Any setting of `torch._inductor.config`, by its name."),
                "direct": Option(
                    True,
                    bool,
                    "Call the generated code without AOTAutograd's wrappers where that is safe.",
                ),
            },
            supports=supports,
            capabilities=Capabilities(
                dynamic_shapes=True, mutation=True, custom_ops=True, partitions=("cuda", "xpu")
            ),
            environment=ENVIRONMENT,
            tiers=("quick", "package"),
        )
    ]
