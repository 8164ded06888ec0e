"""Gives a compiled model its stage of static graphs, where the settings ask for one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from intarsia.config import Config
from intarsia.device_ops import device_ops
from intarsia.host import Host
from intarsia.partition_at import partition_ops
from intarsia.place import Place
from intarsia.report.records import Report
from intarsia.runtime.swapping import Swappable
from intarsia.static_graph.safety import SafetyTable
from intarsia.static_graph.stage import StaticGraphs, StaticGraphSettings


def add_static_graphs(
    plans: Swappable, place: Place, host: Host, name: str, paths: Sequence[str],
    report: Callable[[], Report], padded: tuple[str, ...] = (),
) -> StaticGraphs | None:  # fmt: skip
    """Give bound plans static graphs; None where the settings ask for none.

    Args:
        plans: what is recorded.
        place: the platform, device and settings in effect.
        host: the plugins, who say which operations may be recorded.
        name: the model's name in messages.
        paths: the paths of a forward's first arguments.
        report: returns the report of the compile, which has the operations of each piece.
        padded: symbols that a call may be padded in, to the next recorded size.

    Raises:
        ConfigError: a setting names an argument that there is not.
    """
    config = place.resolved.config
    backend = place.components.static_graph
    if config.static_graph == "none" or backend is None:
        return None

    def ops() -> list[tuple[int | None, Sequence[str]]]:
        pieces = report().piece_reports
        return [(p.index if p.requested else None, p.ops) for p in pieces]

    made = StaticGraphs(
        name, plans, paths, ops, settings_of(config, host, place.device_type), backend, place.device,
        device_ops(place.platform, place.device), padded,
    )  # fmt: skip
    plans.static_graphs = made
    if padded:
        plans.dispatcher.pad = made.pad
    return made


def settings_of(config: Config, host: Host, device_type: str) -> StaticGraphSettings:
    """Return what config says of static graphs."""
    policies: Any = config.static_inputs
    return StaticGraphSettings(
        config.static_graph, config.sizes, config.static_graph_budget, policies,
        config.outputs == "owned", config.strict,
        SafetyTable.of(host.op_safety(), device_type, config),
        () if config.split_by == "fx" else partition_ops(config),
    )  # fmt: skip
