"""The front of a compiled model as plain data: its entry, the contract of a call, the policy beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from intarsia.bundle.codec import (
    Known,
    decode,
    encode,
    path_from_data,
    path_to_data,
    space_to_data,
)
from intarsia.capture.graph import ArgumentTree, Expected, Parameter
from intarsia.runtime.bound import BoundBox
from intarsia.runtime.contract import Entry, TensorContract, entry_names
from intarsia.runtime.source import Namespace
from intarsia.split.encode import Encoded


@frozen
class Front:
    """What stands between a call and the bound plans.

    Attributes:
        tree: what the arguments must look like.
        policy: what happens to sizes outside every box.
        padded: symbols that are padded.
    """

    entry: Entry
    tree: ArgumentTree
    tensors: tuple[TensorContract, ...]
    policy: str
    padded: tuple[str, ...]

    def sources(self, boxes: Sequence[BoundBox]) -> dict[str, str]:
        """Return the generated code of a model, title -> source."""
        found = {"entry": self.entry.source}
        for box in boxes:
            for number, (stitching, _) in enumerate(box.plan.made()):
                fixed = "".join(f" {n}={v}" for n, v in box.plan.fixed.items())
                found[f"stitching{fixed} {number}"] = stitching.source
        return found


def front_to_data(front: Front, known: Known) -> Encoded:
    """Return it as plain data.

    Raises:
        CannotEncode: it holds a value without a plain form.
    """
    entry = front.entry
    return {
        "entry": {
            "source": entry.source, "roots": list(entry.roots), "symbols": list(entry.symbols),
            "values": space_to_data(entry.space, frozenset(entry_names()), known),
            "tensors": [path_to_data(path) for path in entry.tensors],
        },
        "tree": _tree_to_data(front.tree, known),
        "tensors": [_contract_to_data(contract) for contract in front.tensors],
        "policy": front.policy, "padded": list(front.padded),
    }  # fmt: skip


def front_from_data(data: Mapping[str, Any], defaults: Mapping[str, Any]) -> Front:
    """Return the front of plain data; `defaults` are those of the model's parameters."""
    entry = data["entry"]
    values = {name: decode(value, defaults=defaults) for name, value in entry["values"].items()}
    made = Entry(
        entry["source"], Namespace({**values, **entry_names()}),
        tuple(path_from_data(path) for path in entry["tensors"]), tuple(entry["roots"]),
        tuple(entry["symbols"]),
    )  # fmt: skip
    return Front(
        made, _tree_from_data(data["tree"], defaults),
        tuple(_contract_from_data(one) for one in data["tensors"]), data["policy"],
        tuple(data["padded"]),
    )  # fmt: skip


# --------------------------------------------------------------------------------------------- parts


def _tree_to_data(tree: ArgumentTree, known: Known) -> Encoded:
    return {
        "parameters": [
            [p.name, p.kind, encode(p.default, known) if p.has_default else None, p.has_default]
            for p in tree.parameters
        ],
        "values": [[path_to_data(p), e.kind, encode(e.value, known)] for p, e in tree.values],
        "tensors": [path_to_data(path) for path in tree.tensors],
        "same": [[path_to_data(path) for path in group] for group in tree.same],
        "subclasses": [[path_to_data(path), encode(cls)] for path, cls in tree.subclasses],
        "autocast": [[kind, encode(dtype)] for kind, dtype in tree.autocast],
    }


def _tree_from_data(data: Mapping[str, Any], defaults: Mapping[str, Any]) -> ArgumentTree:
    def value(form: Encoded) -> Any:
        return decode(form, defaults=defaults)

    return ArgumentTree(
        tuple(Parameter(n, k, has, value(d) if has else None) for n, k, d, has in data["parameters"]),
        tuple((path_from_data(p), Expected(k, value(v))) for p, k, v in data["values"]),
        _paths(data["tensors"]), tuple(_paths(group) for group in data["same"]),
        tuple((path_from_data(p), decode(cls)) for p, cls in data["subclasses"]),
        tuple((kind, decode(dtype)) for kind, dtype in data["autocast"]),
    )  # fmt: skip


def _paths(data: Sequence[Encoded]) -> Any:
    return tuple(path_from_data(path) for path in data)


def _contract_to_data(contract: TensorContract) -> Encoded:
    return [
        path_to_data(contract.path), encode(contract.dtype), encode(contract.device),
        list(contract.shape), list(contract.stride), contract.contiguous, contract.mutated,
        encode(contract.layout), encode(contract.subclass),
    ]  # fmt: skip


def _contract_from_data(data: Any) -> TensorContract:
    path, dtype, place, shape, stride, contiguous, mutated, layout, subclass = data
    return TensorContract(
        path_from_data(path), decode(dtype), decode(place), tuple(shape),
        tuple(stride), contiguous, mutated, decode(layout), decode(subclass),
    )  # fmt: skip
