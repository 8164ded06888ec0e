"""The canonical form of a piece: what two pieces must share to share one artifact.

It holds targets, arguments, constants and edges, the metadata of every input and output (dtype, shape
with the symbols renamed by first appearance, stride, device type, alias class, subclass) and which
inputs are written. Equal hash and equal content make one artifact; names of nodes and weights do not
matter.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import evolve, frozen
from torch import fx

from intarsia import torch_compat
from intarsia.capture import nodes
from intarsia.capture.graph import Graph, GraphInput
from intarsia.compiling.signature import storage_classes, value_info
from intarsia.interfaces import Box, IntInfo, PieceSignature, TensorInfo, ValueInfo
from intarsia.split.encode import CannotEncode, encode_graph
from intarsia.split.partition import Piece


@frozen
class CanonicalPiece:
    """A piece reduced to what matters to a compiler.

    Attributes:
        digest: the hash of all of it, or "" for a piece that has no plain form and equals no other.
        encoded: the graph as plain data, or None.
        inputs, outputs: metadata with renamed symbols.
        symbols: the user's names of the symbols, in the order of their new names d0, d1...
        ranges: what the contract allows of each symbol, for those that no box mentions.
        mutated: indices of the inputs that are written.
        why_opaque: why there is no plain form, or "".
    """

    digest: str
    encoded: Any
    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    symbols: tuple[str, ...]
    ranges: tuple[tuple[int, int], ...]
    mutated: tuple[int, ...]
    why_opaque: str = ""

    def box(self, box: Box) -> Box:
        """Return the part of a box that concerns this piece, under the new names."""
        known = zip(self.symbols, self.ranges, strict=True)
        return {f"d{i}": box.get(name, bounds) for i, (name, bounds) in enumerate(known)}

    def signature(self, box: Box, options: Mapping[str, Any] | None = None) -> PieceSignature:
        """Return the piece's signature for a box, under the user's names.

        A symbol that the box leaves one size is that number in every expression.
        """
        own = {self.symbols[int(d[1:])]: bounds for d, bounds in self.box(box).items()}
        back = {f"d{i}": name for i, name in enumerate(self.symbols)}
        points = {n: low for n, (low, high) in own.items() if low == high}

        def filled(info: ValueInfo) -> ValueInfo:
            return _with_points(_renamed(info, back), points)

        return PieceSignature(
            inputs=tuple(map(filled, self.inputs)), outputs=tuple(map(filled, self.outputs)),
            box=own, mutated=self.mutated, options=dict(options or {}),
        )  # fmt: skip


def canonical(piece: Piece, graph: Graph, kinds: Mapping[fx.Node, GraphInput]) -> CanonicalPiece:
    """Return the canonical form of a piece of a graph.

    `kinds` tells where the whole graph's placeholders come from, so that weights are known as such.
    """
    values = [nodes.value_of(n) for n in (*piece.inputs, *piece.outputs)]
    classes = storage_classes((*piece.inputs, *piece.outputs))
    infos = [
        value_info(v, graph.names, **_extra(kinds.get(n), c)) if isinstance(v, torch.Tensor)
        else value_info(v, graph.names)
        for n, v, c in zip((*piece.inputs, *piece.outputs), values, classes, strict=True)
    ]  # fmt: skip
    order = _first_appearance(infos, graph.symbols)
    renamed = [_renamed(info, order) for info in infos]
    count = len(piece.inputs)
    inputs, outputs = tuple(map(_at_its_start, renamed[:count])), tuple(renamed[count:])
    mutated = mutated_inputs(piece)
    encoded, why = _encoded(piece)
    ranges = tuple(_range(graph, name) for name in order)
    digest = ""
    if encoded is not None:
        content = [encoded, [repr(i) for i in inputs], [repr(o) for o in outputs], mutated, ranges]
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return CanonicalPiece(digest, encoded, inputs, outputs, tuple(order),
                          ranges, mutated, why)  # fmt: skip


def _range(graph: Graph, name: str) -> tuple[int, int]:
    symbol = graph.symbols[name]
    return symbol.low, torch_compat.UNBOUNDED if symbol.high is None else symbol.high


def _extra(source: GraphInput | None, alias: int | None) -> dict[str, Any]:
    kind = "activation"
    if source is not None and source.kind in ("weight", "constant"):
        kind = "weight" if source.is_parameter else "buffer"
    return {"kind": kind, "alias_class": alias}


def _at_its_start(info: ValueInfo) -> ValueInfo:
    # A piece is given a tensor's first element; where that lies in the storage is not its business,
    # unless it also gets another view of the same storage.
    if isinstance(info, TensorInfo) and info.alias_class is None:
        return evolve(info, storage_offset=0)
    return info


def _encoded(piece: Piece) -> tuple[Any, str]:
    try:
        return encode_graph(piece.graph, piece.root), ""
    except CannotEncode as error:
        return None, str(error)


_NAME = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")


def _first_appearance(infos: Sequence[ValueInfo], symbols: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for info in infos:
        for size in _sizes(info):
            for name in _NAME.findall(size) if isinstance(size, str) else ():
                if name in symbols and name not in found:
                    found[name] = f"d{len(found)}"
    return found


def _sizes(info: ValueInfo) -> tuple[int | str, ...]:
    if isinstance(info, IntInfo):
        return (info.expression,)
    return (*info.shape, *info.stride, info.storage_offset)


def _renamed(info: ValueInfo, order: Mapping[str, str]) -> ValueInfo:
    def rename(size: int | str) -> int | str:
        if isinstance(size, int):
            return size
        return _NAME.sub(lambda found: order.get(found[0], found[0]), size)

    if isinstance(info, IntInfo):
        return IntInfo(rename(info.expression))
    return evolve(
        info, shape=tuple(map(rename, info.shape)), stride=tuple(map(rename, info.stride)),
        storage_offset=rename(info.storage_offset),
    )  # fmt: skip


def _with_points(info: ValueInfo, points: Mapping[str, int]) -> ValueInfo:
    def fill(size: int | str) -> int | str:
        if isinstance(size, int) or not points:
            return size
        return torch_compat.substituted(size, points)

    if isinstance(info, IntInfo):
        return IntInfo(fill(info.expression))
    return evolve(
        info, shape=tuple(map(fill, info.shape)), stride=tuple(map(fill, info.stride)),
        storage_offset=fill(info.storage_offset),
    )  # fmt: skip


def written_storages(graph: fx.Graph) -> set[Any]:
    """Return the storages, by id, that a graph's nodes write to."""
    written: set[Any] = set()
    for node in graph.nodes:
        for target in nodes.mutated_arguments(node):
            value = nodes.value_of(target)
            if isinstance(value, torch.Tensor):
                written.add(nodes.storage_of(target))
    return written - {None}


def mutated_inputs(piece: Piece) -> tuple[int, ...]:
    """Return the indices of the inputs whose storage the piece writes to."""
    written = written_storages(piece.graph)
    return tuple(
        index for index, node in enumerate(piece.inputs) if nodes.storage_of(node) in written
    )
