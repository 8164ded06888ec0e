"""Graph passes that are of use to every compiler: off until the platform or config enables them."""

from __future__ import annotations

from intarsia.interfaces import PassSpec

intarsia_api_version = (1, 0)


def intarsia_passes() -> list[PassSpec]:
    """Bring the passes "remove-noops" and "coalesce-slices"."""
    return [
        PassSpec("remove-noops", "1", "piece-aten", "intarsia_passes.noops:RemoveNoops"),
        PassSpec(
            "coalesce-slices", "1", "piece-aten", "intarsia_passes.slices:CoalesceSlices",
            after=("remove-noops",),
        ),
    ]  # fmt: skip
