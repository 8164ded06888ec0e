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
    """Bring the fusions. All are off by default: docs/performance.md has what each gains."""
    return [
        PassSpec("fuse-add-rms-norm", "1", "piece-aten", "intarsia_cuda.fusions:add_rms_norm",
                 after=("fuse-rms-norm-fp8",)),
        PassSpec("fuse-rms-norm-fp8", "1", "piece-aten", "intarsia_cuda.fusions:rms_norm_fp8"),
        PassSpec("fuse-silu-mul", "1", "piece-aten", "intarsia_cuda.fusions:silu_mul",
                 after=("fuse-silu-mul-fp8",)),
        PassSpec("fuse-silu-mul-fp8", "1", "piece-aten", "intarsia_cuda.fusions:silu_mul_fp8"),
        PassSpec("fuse-rotary", "1", "piece-aten", "intarsia_cuda.fusions:rotary",
                 after=("fuse-qk-norm-rotary",)),
        PassSpec("fuse-qk-norm-rotary", "1", "piece-aten", "intarsia_cuda.fusions:qk_norm_rotary"),
    ]  # fmt: skip


def intarsia_doctor() -> list[Check]:
    """Check the driver, and that Inductor has Triton; both are fine where there is no CUDA."""
    return [
        Check("CUDA driver", "intarsia_cuda.device:check_driver"),
        Check("Triton for CUDA", "intarsia_cuda.device:check_triton"),
    ]
