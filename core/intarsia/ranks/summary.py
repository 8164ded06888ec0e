"""What processes compare: facts about a compile as plain text, the same on every rank that does the same.

No fact depends on the rank itself, on its device's index, on a path, or on whether the plan came from the
cache: a rank that loads and a rank that compiles have the same plan.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from intarsia.boxes_text import describe_box
from intarsia.bundle.lookup import NoKey, chosen_factors
from intarsia.digests import plain_digest
from intarsia.graph_door.key import Chosen
from intarsia.job import CompileJob
from intarsia.plugin_manifest import manifest
from intarsia.report.records import PieceReport, Report
from intarsia.torch_compat import traced_function

_OWN = ("device index",)
"""Factors of a plan's key that each rank has of its own."""
_OF_RUNS = (
    "op_safety", "outputs", "static_graph", "static_graph_backend", "static_graph_budget",
    "static_inputs", "unknown_ops", "verify",
)  # fmt: skip
"""Settings that are in no plan's key, and change what runs."""


def setup_of(job: CompileJob, model: Any) -> dict[str, str]:
    """Return what a compile is asked for, and with which versions, plugins, settings and rules."""
    place = job.place
    try:
        found = chosen_factors(Chosen(job.config, job.host, place.platform, place.device))
    except NoKey as error:
        found = {"no key": str(error), "settings": plain_digest(job.config.to_dict())}
    plain = job.config.to_dict()
    found.update({
        f"setting {name.replace('_', '-')}": json.dumps(plain[name], sort_keys=True, default=repr)
        for name in _OF_RUNS
    })  # fmt: skip
    plugins = {
        f'plugin "{name}"': f"{plugin['distribution']} {plugin['version']}"
        for name, plugin in manifest(job.host).items()
    }
    every = {
        **plugins,
        "model": _class_of(model),
        **found,
    }  # a plugin that is not there explains much
    return {name: value for name, value in every.items() if name not in _OWN}


def _class_of(model: Any) -> str:
    if isinstance(model, torch.fx.GraphModule):  # Dynamo numbers the classes of its graphs
        return "graph"
    function, root = traced_function(model)
    kind = type(root) if root is not None else function
    return f"{kind.__module__}.{getattr(kind, '__qualname__', type(kind).__qualname__)}"


def plan_of(report: Report) -> dict[str, str]:
    """Return the plan that a report tells of: its pieces in order, and who compiled each for which box.

    The constants in a piece are not in it: a rank may have its own, as the rows of an embedding that it
    holds. The operators are, and with them the collectives in their order.
    """
    found = {
        "pieces": str(report.pieces),
        "boxes": "; ".join(describe_box(box) for box in report.boxes),
    }
    for piece in report.piece_reports:
        digest = plain_digest(list(piece.ops))[:8]
        found[f"piece {piece.index}"] = f"{piece.kind}, {len(piece.ops)} operators ({digest})"
        found[f"compiler of piece {piece.index}"] = _who(piece)
    return found


def _who(piece: PieceReport) -> str:
    by_compiler: dict[str, list[str]] = {}
    for box in piece.boxes:
        by_compiler.setdefault(box.compiler or "nobody", []).append(describe_box(box.box))
    if not by_compiler:
        return piece.compiler
    if len(by_compiler) == 1:
        return next(iter(by_compiler))
    return ", ".join(f"{who} for {' '.join(boxes)}" for who, boxes in by_compiler.items())


def notes_of(report: Report) -> dict[str, str]:
    """Return why pieces did not get the first compiler that they asked for."""
    found: dict[str, str] = {}
    for piece in report.piece_reports:
        for attempt in (a for box in piece.boxes for a in box.attempts if a.outcome != "compiled"):
            if attempt.reason:
                found.setdefault(
                    f"compiler of piece {piece.index}", f"{attempt.compiler}: {attempt.reason}"
                )
    return found
