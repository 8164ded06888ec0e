"""Torch's operations on the device, one launch each.

One fallback serves all of ATen: it runs an operation on the host's views of the tensors. Only what makes
tensors, or views of them, is written out. A custom operation without a kernel for this device is an error,
as on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from intarsia_toynpu.memory import MEMORY, contiguous_strides, empty, host_view, over
from intarsia_toynpu.stream import capture, launch, refuse_in_capture

KEY = "PrivateUse1"

_READS_VALUES = frozenset(("_local_scalar_dense", "equal", "is_nonzero", "item", "masked_select",
                           "nonzero", "unique_dim", "_unique2", "bincount"))  # fmt: skip
"""Operations whose result's form depends on values: none can be recorded."""


def register_kernels() -> tuple[torch.library.Library, ...]:
    """Register every kernel; they stay as long as what is returned lives."""
    aten, rest = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    kernels: dict[str, Callable[..., Any]] = {
        "empty.memory_format": _empty,
        "empty_strided": _empty_strided,
        "as_strided": _as_strided,
        "resize_": _resize,
        "set_.source_Storage_storage_offset": _set_storage,
        "_copy_from": _copy_from,
    }
    for name, kernel in kernels.items():
        aten.impl(name, kernel, KEY)
    rest.fallback(_fallback, KEY)
    return aten, rest


def _pool() -> Any:
    recording = capture()
    return MEMORY if recording is None else recording.pool


def _empty(
    size: Sequence[int], *, dtype: torch.dtype | None = None, layout: Any = None, device: Any = None,
    pin_memory: Any = None, memory_format: torch.memory_format | None = None,
) -> torch.Tensor:  # fmt: skip
    shape, stride = tuple(size), contiguous_strides(size)
    if memory_format not in (None, torch.contiguous_format, torch.preserve_format):
        stride = torch.empty(shape, device="meta", memory_format=memory_format).stride()
    return empty(shape, stride, dtype or torch.get_default_dtype(), _pool())


def _empty_strided(
    size: Sequence[int], stride: Sequence[int], *, dtype: torch.dtype | None = None, layout: Any = None,
    device: Any = None, pin_memory: Any = None,
) -> torch.Tensor:  # fmt: skip
    return empty(tuple(size), tuple(stride), dtype or torch.get_default_dtype(), _pool())


def _as_strided(
    self: torch.Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    storage_offset: int | None = None,
) -> torch.Tensor:
    # torch's `alias` works on any device, and gives the memory a tensor of its own.
    alias = torch.ops.aten.alias.default(self)
    offset = self.storage_offset() if storage_offset is None else storage_offset
    return alias.as_strided_(size, stride, offset)


def _resize(self: torch.Tensor, size: Sequence[int], *, memory_format: Any = None) -> torch.Tensor:
    if tuple(size) != tuple(self.shape):
        self.data = _empty(size, dtype=self.dtype, memory_format=memory_format)
    return self


def _set_storage(
    self: torch.Tensor, source: torch.UntypedStorage, storage_offset: int, size: Sequence[int],
    stride: Sequence[int] = (),
) -> torch.Tensor:  # fmt: skip
    stride = tuple(stride) or contiguous_strides(size)
    self.data = over(source, storage_offset, tuple(size), stride, self.dtype)
    return self


def _copy_from(self: torch.Tensor, dst: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """Copy `self` to `dst`, either of which may be on the host."""
    if self.device.type == dst.device.type:
        launch(lambda views: [views[1].copy_(views[0])], [self, dst], written=(1,))
        return dst
    refuse_in_capture("a copy between host and device")
    source, target = (t if t.device.type == "cpu" else host_view(t) for t in (self, dst))
    target.copy_(source)
    return dst


def _fallback(op: Any, *args: Any, **kwargs: Any) -> Any:
    if op.namespace not in ("aten", "prims"):
        raise NotImplementedError(f"{op}: there is no kernel for toynpu")
    if op._schema.name.rpartition("::")[2] in _READS_VALUES:
        refuse_in_capture(str(op))
    tensors: list[torch.Tensor] = []
    written: set[int] = set()
    fresh: set[int] = set()

    def slot(value: Any, *, writes: bool, out: bool) -> Any:
        if isinstance(value, torch.Tensor):
            number = next((n for n, t in enumerate(tensors) if t is value), len(tensors))
            if number == len(tensors):
                tensors.append(value)
            if writes:
                written.add(number)
            if out and not value.numel():
                fresh.add(number)
            return _Slot(number)
        if isinstance(value, list | tuple):
            return [slot(v, writes=writes, out=out) for v in value]
        return torch.device("cpu") if isinstance(value, torch.device) else value

    forms = {a.name: a for a in op._schema.arguments}
    positional = list(forms.values())
    marks = {n: (a.alias_info is not None and a.alias_info.is_write) for n, a in forms.items()}
    given = [slot(v, writes=marks[a.name], out=a.is_out) for a, v in zip(positional, args)]  # noqa: B905
    named = {n: slot(v, writes=marks[n], out=forms[n].is_out) for n, v in kwargs.items()}

    def compute(views: list[torch.Tensor]) -> list[Any]:
        # An empty `out` is resized by the operation, which memory of the device cannot be.
        views = [torch.empty(0, dtype=v.dtype) if n in fresh else v for n, v in enumerate(views)]
        made = op(*_filled(given, views), **_filled(named, views))
        results = list(made) if isinstance(made, list | tuple) else [made]
        return [*results, *(views[n] for n in sorted(fresh))]

    results = launch(compute, tensors, written)
    for number in sorted(fresh, reverse=True):
        tensors[number].data = results.pop()
    if len(op._schema.returns) == 1 and not isinstance(op._schema.returns[0].type, torch.ListType):
        return tensors[min(fresh)] if fresh else results[0]
    return results if len(op._schema.returns) == 1 else tuple(results)


class _Slot:
    """The place of a tensor among an operation's arguments."""

    def __init__(self, number: int) -> None:
        self.number = number


def _filled(value: Any, views: Sequence[torch.Tensor]) -> Any:
    if isinstance(value, _Slot):
        return views[value.number]
    if isinstance(value, list):
        return [_filled(v, views) for v in value]
    if isinstance(value, dict):
        return {n: _filled(v, views) for n, v in value.items()}
    return value
