"""A toy NPU: a device outside torch's tree, as its vendor would bring it to intarsia.

Nothing here imports torch; every heavy part is a "module:name" string.
"""

from __future__ import annotations

from intarsia.interfaces import (
    Capabilities,
    CompilerSpec,
    OpSafety,
    Option,
    PassSpec,
    PlatformSpec,
    SplitRuleSpec,
    StaticGraphSpec,
)

intarsia_api_version = (1, 0)


def intarsia_platforms() -> list[PlatformSpec]:
    """Bring the platform "toynpu": what a model on that device gets without a word in its config."""
    return [
        PlatformSpec(
            name="toynpu",
            device_type="toynpu",
            available="intarsia_toynpu.platform:available",
            traits="intarsia_toynpu.platform:traits",
            device="intarsia_toynpu.platform:NpuOps",
            compilers=("toynpu", "eager"),
            rules=("toynpu-attention",),
            passes=("toynpu-swiglu",),
            static_graph="toynpu",
            config_defaults={"static_graph": "piecewise"},
            priority=50,
        )
    ]


def intarsia_compilers() -> list[CompilerSpec]:
    """Bring the compiler "toynpu", which writes programs of the device's instructions."""
    return [
        CompilerSpec(
            name="toynpu",
            version="1",
            factory="intarsia_toynpu.adaptor:NpuCompiler",
            devices=("toynpu",),
            form="aten-functional",
            options={
                "matmul_precision": Option(
                    "float32", str, 'How the matrix unit reads float32: "float32", or "bfloat16".'
                ),
                "program_memory": Option(
                    4096, int, "How many instructions a program may have; longer ones are rejected."
                ),
            },
            supports="intarsia_toynpu.instructions:supports",
            capabilities=Capabilities(dynamic_shapes=True, concurrent=True, light=True),
        )
    ]


def intarsia_split_rules() -> list[SplitRuleSpec]:
    """Bring the rule "toynpu-attention"."""
    return [
        SplitRuleSpec(
            name="toynpu-attention",
            rule="intarsia_toynpu.rules:is_attention",
            doc="Cuts at attention, for which the device has no instruction.",
        )
    ]


def intarsia_passes() -> list[PassSpec]:
    """Bring the pass "toynpu-swiglu"."""
    return [
        PassSpec(
            name="toynpu-swiglu",
            version="1",
            stage="piece-aten",
            factory="intarsia_toynpu.passes:FuseSwiglu",
        )
    ]


def intarsia_static_graphs() -> list[StaticGraphSpec]:
    """Bring the static-graph backend "toynpu"."""
    return [
        StaticGraphSpec(
            name="toynpu", factory="intarsia_toynpu.graphs:NpuGraphs", devices=("toynpu",)
        )
    ]


def intarsia_op_safety() -> list[OpSafety]:
    """Say that the device's own operation may be recorded."""
    return [OpSafety("toynpu::swiglu", "safe", "toynpu", "one launch")]
