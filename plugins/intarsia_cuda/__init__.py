"""The CUDA platform, and static graphs on CUDA graphs."""

from __future__ import annotations

from intarsia.interfaces import Check, PassSpec, PlatformSpec, StaticGraphSpec

intarsia_api_version = (1, 0)


def intarsia_platforms() -> list[PlatformSpec]:
    """Bring the platform "cuda"; its device operations are the core's, over `torch.accelerator`."""
    return [
        PlatformSpec(
            name="cuda",
            device_type="cuda",
            available="intarsia_cuda.device:available",
            traits="intarsia_cuda.device:traits",
            accepts="intarsia_cuda.device:accepts",
            compilers=("inductor", "eager"),
            static_graph="cuda",
            passes=(
                "fuse-qk-norm-rotary",
                "fuse-rms-norm-fp8-per-row",
                "fuse-silu-mul-fp8-per-row",
            ),
            priority=100,
        )
    ]


def intarsia_static_graphs() -> list[StaticGraphSpec]:
    """Bring the static-graph backend "cuda"."""
    return [
        StaticGraphSpec(
            name="cuda",
            factory="intarsia_cuda.graphs:CudaGraphs",
            devices=("cuda",),
            available="intarsia_cuda.device:available",
        )
    ]


def intarsia_passes() -> list[PassSpec]:
    """Bring the fusions. The platform enables those that win at every size: docs/performance.md."""
    return [
        _fusion("add_rms_norm", "rms_norm_fp8", "rms_norm_fp8_per_row"),
        _fusion("rms_norm_fp8"),
        _fusion("rms_norm_fp8_per_row"),
        _fusion("silu_mul", "silu_mul_fp8", "silu_mul_fp8_per_row"),
        _fusion("silu_mul_fp8"),
        _fusion("silu_mul_fp8_per_row"),
        _fusion("rotary", "qk_norm_rotary"),
        _fusion("qk_norm_rotary"),
    ]


def _fusion(name: str, *after: str) -> PassSpec:
    """Return a pass of `fusions`; it runs after those that fuse more of the same."""
    return PassSpec(
        _called(name), "1", "piece-aten", f"intarsia_cuda.fusions:{name}",
        after=tuple(map(_called, after)),
    )  # fmt: skip


def _called(name: str) -> str:
    return f"fuse-{name.replace('_', '-')}"


def intarsia_doctor() -> list[Check]:
    """Check the driver, and that Inductor has Triton; both are fine where there is no CUDA."""
    return [
        Check("CUDA driver", "intarsia_cuda.device:check_driver"),
        Check("Triton for CUDA", "intarsia_cuda.device:check_triton"),
    ]
