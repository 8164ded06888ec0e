"""Which operations may be part of a recording.

An operation that waits for the device, or whose work depends on values, cannot be recorded; a custom one
that nobody has spoken of may do anything on the host, which a replay would silently leave out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from attrs import frozen

from intarsia.errors import RecordError
from intarsia.interfaces import OpSafety, Safety

_BREAKS = frozenset((
    "_local_scalar_dense", "allclose", "argwhere", "bincount", "cpu", "equal", "is_nonzero", "item",
    "masked_select", "nonzero", "numpy", "pin_memory", "synchronize", "tensor", "tolist", "unique",
    "unique_consecutive", "unique_dim", "_unique2", "as_tensor", "from_numpy",
))  # fmt: skip
"""Operations of torch that read values on the host, or copy between it and the device."""

_TORCH = ("aten", "prims", "prim", "torch", "operator", "builtins", "math", "_operator")
_KERNELS = ("higher_order::triton_kernel_wrapper_mutation", "higher_order::wrap")


@frozen
class Verdict:
    """Whether an operation may be recorded, and who says so."""

    safety: Literal["safe", "break", "unknown"]
    reason: str


@frozen
class SafetyTable:
    """What is known of operations.

    Attributes:
        declared: what plugins say, for this device type.
        chosen: what config says, by operation.
        allow_unknown: whether operations that nobody speaks of are recorded.
    """

    declared: tuple[OpSafety, ...] = ()
    chosen: Mapping[str, str] = {}
    allow_unknown: bool = False

    @classmethod
    def of(cls, declared: Iterable[OpSafety], device_type: str, config: Any) -> SafetyTable:
        """Return the table for a device type."""
        mine = tuple(d for d in declared if d.device_type in ("", device_type))
        return cls(mine, config.op_safety, config.unknown_ops == "allow")

    def verdict(self, op: str) -> Verdict:
        """Return what is known of an operation, given as reports name it: "aten::mm.default", ".item"."""
        for name in (op, packet(op)):
            if name in self.chosen:
                return Verdict(_safety(self.chosen[name]), "config says so")
        for entry in reversed(self.declared):  # the last plugin to speak wins
            if entry.op in (op, packet(op)):
                return Verdict(entry.safety, entry.reason or "its plugin says so")
        return _built_in(op)

    def check(self, ops: Sequence[str], what: str) -> None:
        """Refuse to record operations that may not be.

        Raises:
            RecordError: naming every such operation, and what to do.
        """
        wrong = {op: v for op in dict.fromkeys(ops) if (v := self.verdict(op)).safety != "safe"}
        if self.allow_unknown:
            wrong = {op: v for op, v in wrong.items() if v.safety == "break"}
        if not wrong:
            return
        first = next(iter(wrong))
        if any(v.safety == "break" for v in wrong.values()):
            next_step = (
                "Name it in split-at, so that it runs between recordings, and record piecewise."
            )
        else:
            next_step = (
                f'If a recording may hold it, say so: op-safety = {{ "{packet(first)}" = "safe" }}; '
                'if not, name it in split-at. unknown-ops = "allow" lets all of them in.'
            )
        raise RecordError(
            f"{what} cannot be recorded",
            why="; ".join(f"{op} is {v.safety} ({v.reason})" for op, v in wrong.items()),
            next_step=next_step, subject=first,
        )  # fmt: skip


def _built_in(op: str) -> Verdict:
    overload = _overload(op)
    if overload is not None and torch.Tag.cudagraph_unsafe in overload.tags:
        return Verdict("break", "it has torch.Tag.cudagraph_unsafe")
    namespace, _, name = op.rpartition("::")
    plain = name.lstrip(".").split(".")[-1 if not namespace else 0]
    if op.startswith(_KERNELS):
        return Verdict("safe", "a kernel launch")
    if namespace and namespace not in _TORCH:
        return Verdict("unknown", "a custom operation that nobody declares")
    if plain in _BREAKS:
        return Verdict("break", "it reads values on the host, or copies between host and device")
    if not namespace and "." in op and op.split(".")[0] not in ("", *_TORCH):
        return Verdict("unknown", "a function that is not torch's")
    return Verdict("safe", "an operation of torch's")


def _overload(op: str) -> Any:
    namespace, _, name = op.rpartition("::")
    if not namespace:
        return None
    packet, _, overload = name.partition(".")
    found = getattr(getattr(torch.ops, namespace, None), packet, None)
    return getattr(found, overload or "default", None)


def packet(op: str) -> str:
    """Return an operator's name without its overload."""
    namespace, _, name = op.rpartition("::")
    return f"{namespace}::{name.partition('.')[0]}" if namespace else op


def _safety(text: str) -> Safety:
    return "safe" if text == "safe" else "break"
