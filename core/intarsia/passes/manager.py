"""The built-in pass manager."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from intarsia.interfaces import (
    BoundPass,
    Box,
    PassContext,
    PassReport,
    PassRun,
    PassSpec,
    Stage,
)
from intarsia.passes.order import ordered

__all__ = ["BuiltInManager"]


class BuiltInManager:
    """Runs passes in the order that their constraints ask for."""

    def order(
        self, specs: Sequence[PassSpec], stage: Stage, box: Box, config: Any
    ) -> Sequence[PassSpec]:
        """Return the passes in order."""
        return ordered(specs)

    def run(
        self, passes: Sequence[BoundPass], stage: Stage, graph: fx.Graph, context: PassContext
    ) -> PassReport:
        """Run every pass once."""
        runs: list[PassRun] = [one.run(graph) for one in passes]
        return PassReport(stage, tuple(runs))

    def factors(self) -> Mapping[str, str]:
        """Return nothing: it is part of intarsia, which every key has."""
        return {}
