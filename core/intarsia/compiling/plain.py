"""Piece signatures as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from intarsia.interfaces import IntInfo, PieceSignature, TensorInfo, ValueInfo


def signature_to_dict(signature: PieceSignature) -> dict[str, Any]:
    """Return a signature as JSON-able data."""
    return {
        "inputs": [_value_to_dict(v) for v in signature.inputs],
        "outputs": [_value_to_dict(v) for v in signature.outputs],
        "box": {name: list(bounds) for name, bounds in signature.box.items()},
        "mutated": list(signature.mutated),
        "options": dict(signature.options),
        "grad": signature.grad,
    }


def signature_from_dict(data: Mapping[str, Any]) -> PieceSignature:
    """Rebuild a signature from `signature_to_dict`'s data."""
    return PieceSignature(
        inputs=tuple(_value_from_dict(v) for v in data["inputs"]),
        outputs=tuple(_value_from_dict(v) for v in data["outputs"]),
        box={name: (low, high) for name, (low, high) in data["box"].items()},
        mutated=tuple(data["mutated"]),
        options=dict(data["options"]),
        grad=data["grad"],
    )


def _value_to_dict(value: ValueInfo) -> dict[str, Any]:
    if isinstance(value, IntInfo):
        return {"int": value.expression}
    return {
        "dtype": value.dtype, "shape": list(value.shape), "stride": list(value.stride),
        "device_type": value.device_type, "storage_offset": value.storage_offset,
        "kind": value.kind, "alias_class": value.alias_class, "subclass": value.subclass,
        "requires_grad": value.requires_grad, "device_slot": value.device_slot,
    }  # fmt: skip


def _value_from_dict(data: Mapping[str, Any]) -> ValueInfo:
    if "int" in data:
        return IntInfo(data["int"])
    return TensorInfo(**{**data, "shape": tuple(data["shape"]), "stride": tuple(data["stride"])})
