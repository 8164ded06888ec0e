"""Piece signatures: from metadata, to fake inputs, and to plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from intarsia import torch_compat
from intarsia.capture import nodes
from intarsia.dtypes import dtype_name
from intarsia.interfaces import Box, IntInfo, PieceSignature, TensorInfo, ValueInfo


def size_of(value: Any, names: Mapping[Any, str]) -> int | str:
    """Return a size as an int, or as an expression over the symbols' names."""
    expression = torch_compat.expression_of(value)
    if isinstance(expression, int):
        return expression
    if expression.is_Integer:
        return int(expression)
    renamed = expression.xreplace(
        {s: type(s)(names[s], **s.assumptions0) for s in expression.free_symbols}
    )
    return str(renamed)


def tensor_info(
    value: torch.Tensor, names: Mapping[Any, str], *, kind: Any = "activation",
    alias_class: int | None = None,
) -> TensorInfo:  # fmt: skip
    """Return a tensor's metadata with symbols by name."""
    plain = type(value) in (torch.Tensor, torch.nn.Parameter) or torch_compat.is_fake(value)
    strided = value.layout == torch.strided
    return TensorInfo(
        dtype=dtype_name(value.dtype),
        shape=tuple(size_of(s, names) for s in value.shape),
        stride=tuple(size_of(s, names) for s in value.stride()) if strided else (),
        device_type=value.device.type,
        storage_offset=size_of(value.storage_offset(), names) if strided else 0,
        kind=kind,
        alias_class=alias_class,
        subclass=None if plain else f"{type(value).__module__}.{type(value).__qualname__}",
    )


def value_info(value: Any, names: Mapping[Any, str], **extra: Any) -> ValueInfo:
    """Return the metadata of a tensor or int."""
    if isinstance(value, torch.Tensor):
        return tensor_info(value, names, **extra)
    return IntInfo(size_of(value, names))


def storage_classes(graph_nodes: Sequence[fx.Node]) -> list[int | None]:
    """Number the groups of nodes that share a storage; a tensor alone in its group gets None."""
    groups: dict[Any, list[int]] = {}
    for index, node in enumerate(graph_nodes):
        storage = nodes.storage_of(node)
        if storage is not None:
            groups.setdefault(storage, []).append(index)
    classes: list[int | None] = [None] * len(graph_nodes)
    shared = [members for members in groups.values() if len(members) > 1]
    for number, members in enumerate(shared):
        for index in members:
            classes[index] = number
    return classes


# --------------------------------------------------------------------------------------- fake inputs


def _hint(low: int, high: int, taken: Iterable[int]) -> int:
    # Distinct hints per symbol, none of them 0 or 1 where the box has others: a compiler that guards on
    # a coincidence of the example would otherwise be right only there.
    used = set(taken)
    candidates = [high] if low == high else list(range(max(low, 2), min(high, low + 64) + 1))
    preferred = [v for v in candidates if v not in used and v % 8] or candidates
    return preferred[len(preferred) // 2] if preferred else low


def fake_inputs(
    signature: PieceSignature, device: int | None, wanted: Mapping[str, int] | None = None
) -> tuple[Any, tuple[Any, ...]]:
    """Return a new fake mode and one fake input per input of the signature, sized by the box.

    `wanted` are the sizes to take as examples where not every size of the box will do.
    """
    mode = torch_compat.new_fake_mode()
    symbols: dict[str, Any] = {}
    hints: dict[str, int] = {}
    for name, (low, high) in signature.box.items():
        if low == high:
            symbols[name], hints[name] = low, low
            continue
        example = (wanted or {}).get(name)
        hints[name] = _hint(low, high, hints.values()) if example is None else example
        symbols[name] = torch_compat.new_symbol(mode, name, low, high, hints[name])
    sizes = _Sizes(mode, symbols, hints)
    made: list[Any] = []
    storages: dict[int, torch.Tensor] = {}
    with mode:
        for info in signature.inputs:
            made.append(_fake_value(info, sizes, device, storages))
    return mode, tuple(made)


def symbols_of(mode: Any, box: Box) -> dict[Any, str]:
    """Return the sympy symbols that `fake_inputs` made for a box, with their names."""
    names = [name for name, (low, high) in sorted(box.items()) if low != high]
    return dict(zip(torch_compat.all_symbols(mode.shape_env), names, strict=False))


class _Sizes:
    """Turns a signature's size expressions into ints and SymInts of one fake mode."""

    def __init__(self, mode: Any, symbols: Mapping[str, Any], hints: Mapping[str, int]) -> None:
        import sympy

        self.mode = mode
        self.names = {
            n: (torch_compat.expression_of(v) if not isinstance(v, int) else sympy.Integer(v))
            for n, v in symbols.items()
        }
        self.hints = {self.names[n]: hints[n] for n in symbols}
        self.symbols = symbols

    def __call__(self, size: int | str) -> Any:
        if isinstance(size, int):
            return size
        if size in self.symbols:
            return self.symbols[size]
        expression = torch_compat.parse_expression(size, self.names)
        hint = int(expression.xreplace({k: v for k, v in self.hints.items() if k.is_Symbol}))
        return torch_compat.symint(self.mode, expression, hint)


def _fake_value(
    info: ValueInfo, sizes: _Sizes, device: int | None, storages: dict[int, torch.Tensor]
) -> Any:
    if isinstance(info, IntInfo):
        return sizes(info.expression)
    where = torch.device(info.device_type, device) if device is not None else info.device_type
    shape = [sizes(s) for s in info.shape]
    stride = [sizes(s) for s in info.stride]
    dtype = getattr(torch, info.dtype)
    offset = sizes(info.storage_offset)
    if info.alias_class is not None:
        return _fake_alias(info.alias_class, storages, shape, stride, offset, dtype, where)
    if isinstance(offset, int) and offset == 0:
        value = torch.empty_strided(shape, stride, dtype=dtype, device=where)
    else:
        value = _fake_alias(-1, {}, shape, stride, offset, dtype, where)
    return torch.nn.Parameter(value, requires_grad=False) if info.kind == "weight" else value


def _fake_alias(
    group: int, storages: dict[int, torch.Tensor], shape: Any, stride: Any, offset: Any,
    dtype: torch.dtype, where: Any,
) -> torch.Tensor:  # fmt: skip
    needed = offset + 1
    for size, step in zip(shape, stride, strict=True):
        needed = needed + (size - 1) * step
    base = storages.get(group)
    if base is None or base.dtype != dtype:
        base = storages[group] = torch.empty([needed], dtype=dtype, device=where)
    return base.as_strided(shape, stride, offset)
