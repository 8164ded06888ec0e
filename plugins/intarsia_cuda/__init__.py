"""The CUDA platform, and static graphs on CUDA graphs."""

from __future__ import annotations

from intarsia.interfaces import Check, PlatformSpec, StaticGraphSpec

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


def intarsia_doctor() -> list[Check]:
    """Check the driver, and that Inductor has Triton; both are fine where there is no CUDA."""
    return [
        Check("CUDA driver", "intarsia_cuda.device:check_driver"),
        Check("Triton for CUDA", "intarsia_cuda.device:check_triton"),
    ]
