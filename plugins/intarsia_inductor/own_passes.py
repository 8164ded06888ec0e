"""Passes of plugins in Inductor's own stages: they join what is in its slots, for one compile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from torch import fx

from intarsia import torch_compat
from intarsia.interfaces import CompileRequest, Stage

SLOTS: Mapping[Stage, str] = {
    "inductor-pre-grad": "pre_grad_custom_pass",
    "inductor-joint": "joint_custom_post_pass",
    "inductor-post-grad-before": "post_grad_custom_pre_pass",
    "inductor-post-grad-after": "post_grad_custom_post_pass",
}


def passes_for(request: CompileRequest, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return Inductor's settings with the passes of a request in its slots.

    What the user has put there, in `options.inductor` or in torch's own config, runs first.
    """
    found = {}
    for stage, slot in SLOTS.items():
        mine = [spec for spec in request.passes if spec.stage == stage]
        if mine:
            earlier = settings[slot] if slot in settings else torch_compat.inductor_slot(slot)
            # An identity of this very compile: out of Inductor's own cache a graph would come without its
            # passes being run, counted and checked. Ours keeps the counts.
            found[slot] = torch_compat.inductor_pass(_running(request, stage), uuid4().hex, earlier)
    return found


def _running(request: CompileRequest, stage: Stage) -> Any:
    def run(graph: fx.Graph) -> None:
        from intarsia.passes.running import run_slot

        run_slot(request, stage, graph)

    return run
