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
from intarsia.compile.signature import storage_classes, value_info
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
        """Return the piece's signature for a box under the user's names."""
        return PieceSignature(
            inputs=self.inputs, outputs=self.outputs, box=self.box(box), mutated=self.mutated,
            options=dict(options or {}),
        )  # fmt: skip


def canonical(piece: Piece, graph: Graph, kinds: Mapping[fx.Node, GraphInput]) -> CanonicalPiece:
    """Return the canonical form of a piece of a graph.

    `kinds` tells where the whole graph's placeholders come from, so that weights are known as such.
    """
    values = [nodes.value_of(n) for n in (*piece.inputs, *piece.outputs)]
    classes = storage_classes(values)
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
    digest = ""
    if encoded is not None:
        content = [encoded, [repr(i) for i in inputs], [repr(o) for o in outputs], mutated]
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return CanonicalPiece(digest, encoded, inputs, outputs, tuple(order),
                          tuple(_range(graph, name) for name in order), mutated, why)  # fmt: skip


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
        return encode_graph(piece.module), ""
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


def written_storages(module: fx.GraphModule) -> set[int]:
    """Return the storages, by id, that a graph's nodes write to."""
    written: set[int] = set()
    for node in module.graph.nodes:
        for target in nodes.mutated_arguments(node):
            value = nodes.value_of(target)
            if isinstance(value, torch.Tensor):
                written.add(torch_compat.storage_id(value))
    return written


def mutated_inputs(piece: Piece) -> tuple[int, ...]:
    """Return the indices of the inputs whose storage the piece writes to."""
    written = written_storages(piece.module)
    return tuple(
        index for index, node in enumerate(piece.inputs)
        if isinstance(value := nodes.value_of(node), torch.Tensor)
        and torch_compat.storage_id(value) in written
    )  # fmt: skip
