"""Routes: the compilers to try for each piece, in order, and the reason."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

from attrs import frozen
from torch import fx

from intarsia.capture import nodes as graph_nodes
from intarsia.config import Config, PieceMatch
from intarsia.errors import CompileRejected
from intarsia.host import Host
from intarsia.interfaces import CompilerSpec, PieceView, PlatformSpec, TensorInfo, ValueInfo
from intarsia.split.canonical import CanonicalPiece
from intarsia.split.partition import Piece
from intarsia.split.rules import modules_around, op_view


@frozen
class RouteChoice:
    """The compilers for a piece, in order, and who chose them. No compilers: it runs as it is."""

    compilers: tuple[str, ...]
    reason: str


def piece_view(piece: Piece, canonical: CanonicalPiece) -> PieceView:
    """Return what a plugin sees of a piece."""
    ops = tuple(dict.fromkeys(graph_nodes.operation(n) for n in piece.nodes))
    modules = dict.fromkeys(path for n in piece.nodes for path, _ in modules_around(n) if path)
    devices = {i.device_type for i in (*canonical.inputs, *canonical.outputs)
               if isinstance(i, TensorInfo)}  # fmt: skip
    return PieceView(piece.index, piece.name, piece.kind, ops, tuple(sorted(devices)),
                     tuple(modules), len(piece.nodes))  # fmt: skip


def choose(
    piece: Piece, view: PieceView, config: Config, platform: PlatformSpec, host: Host
) -> RouteChoice:
    """Return the compilers for a piece: the user's routes, then the rule, then plugins, then config."""
    for number, route in enumerate(config.routes, 1):
        if matches(route.piece, view):
            return RouteChoice(route.compilers, f"route {number}")
    if piece.cut is not None and piece.cut.compilers is not None:
        return RouteChoice(piece.cut.compilers, f"rule: {piece.cut.reason}")
    if piece.kind == "splitting":
        return RouteChoice((), piece.cut.reason if piece.cut else "splitting piece")
    if config.compilers is not None:
        return RouteChoice(config.compilers, "compilers")
    wanted = host.choose_compiler(view, platform, host.compilers())
    if wanted is not None:
        return RouteChoice(wanted, "chosen by a plugin")
    return RouteChoice(platform.compilers, f"platform {platform.name}")


def matches(match: PieceMatch, view: PieceView) -> bool:
    """Say whether a route is for a piece; every condition that is set must hold."""
    conditions = (
        match.index is None or match.index == view.index,
        match.kind is None or match.kind == view.kind,
        match.contains is None or any(_is_op(match.contains, op) for op in view.ops),
        match.module is None or any(fnmatch.fnmatchcase(m, match.module) for m in view.modules),
        match.device is None or match.device in view.device_types,
        match.min_nodes is None or view.node_count >= match.min_nodes,
    )
    return all(conditions)


def _is_op(wanted: str, op: str) -> bool:
    return op == wanted or op.rpartition(".")[0] == wanted or op.endswith(f".{wanted}")


def fitting(spec: CompilerSpec, piece: Piece, canonical: CanonicalPiece, is_point: bool) -> None:
    """Check that a compiler may be asked for a piece at all.

    Raises:
        CompileRejected: it does not do this device, dtype, mutation or dynamic shape.
    """
    values = (*canonical.inputs, *canonical.outputs)
    is_fixed = is_point or not canonical.symbols
    refuse_unfit(spec, values, piece.nodes, mutates=bool(canonical.mutated), is_fixed=is_fixed)


def refuse_unfit(
    spec: CompilerSpec, values: Sequence[ValueInfo], nodes: Iterable[fx.Node], *, mutates: bool,
    is_fixed: bool,
) -> None:  # fmt: skip
    """Check what enters and leaves a piece, and its operations, against what a compiler says it can do.

    Raises:
        CompileRejected: it does not do this device, dtype, mutation, operation or dynamic shape.
    """
    for info in (value for value in values if isinstance(value, TensorInfo)):
        if spec.devices and info.device_type not in spec.devices:
            raise CompileRejected(f"does not compile for device type {info.device_type}")
        if info.subclass is not None and not spec.capabilities.subclasses:
            raise CompileRejected(f"does not take tensor subclasses ({info.subclass})")
        if spec.dtypes and info.dtype not in spec.dtypes:
            raise CompileRejected(f"does not take {info.dtype}")
    if mutates and not spec.capabilities.mutation:
        raise CompileRejected("does not take pieces that write to their inputs")
    if not is_fixed and not spec.capabilities.dynamic_shapes:
        raise CompileRejected("takes fixed shapes only; give it sizes")
    if not spec.capabilities.custom_ops:
        for node in nodes:
            name = op_view(node).name
            if "::" in name and name.split("::")[0] not in ("aten", "prims", "higher_order"):
                raise CompileRejected(f"does not take custom operations ({name})")
