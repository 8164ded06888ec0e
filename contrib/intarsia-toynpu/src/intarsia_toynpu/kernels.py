"""Torch's operations on the device, one launch each.

One fallback serves all of ATen: it runs an operation on the host's views of the tensors. Only what makes
tensors, or views of them, is written out. A custom operation without a kernel for this device is an error,
as on any device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import define, field, frozen

from intarsia_toynpu.memory import contiguous_strides, host_view, over
from intarsia_toynpu.stream import launch, new_tensor, refuse_in_capture

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
        "set_.source_Storage": _set_whole_storage,
        "set_.source_Storage_storage_offset": _set_storage,
        "convolution_overrideable": _convolution,
        "_copy_from": _copy_from,
    }
    for name, kernel in kernels.items():
        aten.impl(name, kernel, KEY)
    rest.fallback(_fallback, KEY)
    return aten, rest


def _empty(
    size: Sequence[int], *, dtype: torch.dtype | None = None, layout: Any = None, device: Any = None,
    pin_memory: Any = None, memory_format: torch.memory_format | None = None,
) -> torch.Tensor:  # fmt: skip
    shape, stride = tuple(size), contiguous_strides(size)
    if memory_format not in (None, torch.contiguous_format, torch.preserve_format):
        stride = torch.empty(shape, device="meta", memory_format=memory_format).stride()
    return new_tensor(shape, stride, dtype or torch.get_default_dtype())


def _empty_strided(
    size: Sequence[int], stride: Sequence[int], *, dtype: torch.dtype | None = None, layout: Any = None,
    device: Any = None, pin_memory: Any = None,
) -> torch.Tensor:  # fmt: skip
    return new_tensor(tuple(size), tuple(stride), dtype or torch.get_default_dtype())


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
    shape, stride = tuple(size), contiguous_strides(size)
    needed = (self.storage_offset() + math.prod(shape)) * self.element_size()
    if needed > self.untyped_storage().nbytes():  # the elements that there are stay where they are
        grown = new_tensor((needed // self.element_size(),), (1,), self.dtype)
        kept = self.untyped_storage().nbytes() // self.element_size()
        grown[:kept].copy_(over(self.untyped_storage(), 0, (kept,), (1,), self.dtype))
        self.data = grown.as_strided(shape, stride, self.storage_offset())
        return self
    return self.as_strided_(shape, stride)


def _set_whole_storage(self: torch.Tensor, source: torch.UntypedStorage) -> torch.Tensor:
    return _set_storage(self, source, 0, (source.nbytes() // self.element_size(),))


def _set_storage(
    self: torch.Tensor, source: torch.UntypedStorage, storage_offset: int, size: Sequence[int],
    stride: Sequence[int] = (),
) -> torch.Tensor:  # fmt: skip
    stride = tuple(stride) or contiguous_strides(size)
    self.data = over(source, storage_offset, tuple(size), stride, self.dtype)
    return self


def _convolution(*args: Any) -> torch.Tensor:
    tensors = [value for value in args if isinstance(value, torch.Tensor)]
    others = tuple(None if isinstance(value, torch.Tensor) else value for value in args[3:])
    has_bias = args[2] is not None

    def compute(views: list[torch.Tensor]) -> list[torch.Tensor]:
        bias = views[2] if has_bias else None
        return [torch.ops.aten.convolution.default(views[0], views[1], bias, *others)]

    made: torch.Tensor = launch(compute, tensors)[0]
    return made


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
    """Run an operation of ATen as one launch.

    Raises:
        NotImplementedError: it is a custom operation.
        CaptureError: it reads values, and launches are being recorded.
    """
    if op.namespace not in ("aten", "prims"):
        raise NotImplementedError(f"{op}: there is no kernel for toynpu")
    if op.name().partition("::")[2].partition(".")[0] in _READS_VALUES:
        refuse_in_capture(op.name())
    given = _Arguments.of(op, args, kwargs)
    call = given.call  # a recorded launch keeps it, so it has no tensor
    results = launch(call.run, given.tensors, given.written)
    outs = tuple(given.tensors[n] for n in call.outs)
    for out, made in zip(outs, results[len(results) - len(outs) :], strict=True):
        if made is not out:  # it had another size
            out.data = made
    if outs:
        return outs if len(outs) > 1 else outs[0]
    returns = op._schema.returns
    if len(returns) == 1 and isinstance(returns[0].type, torch.ListType):
        return results
    return results[0] if len(returns) == 1 else tuple(results)


@define
class _Call:
    """An operation and its arguments, with numbers in the place of tensors.

    Attributes:
        outs: which tensors are an `out`.
    """

    op: Any
    positional: list[Any] = field(factory=list)
    keywords: dict[str, Any] = field(factory=dict)
    outs: list[int] = field(factory=list)

    def run(self, views: Sequence[torch.Tensor]) -> list[Any]:
        """Call the operation on the host's views; returns its results, and what every `out` became."""
        # It may give an `out` another size, also in between, which memory of the device cannot take.
        outs = {n: torch.empty(0, dtype=views[n].dtype, device="cpu") for n in self.outs}
        made = self.op(
            *_filled(self.positional, views, outs), **_filled(self.keywords, views, outs)
        )
        results = list(made) if isinstance(made, list | tuple) else [made]
        kept = {id(outs[n]): _kept(views[n], outs[n]) for n in self.outs}
        return [*(kept.get(id(r), r) for r in results), *kept.values()]


def _kept(out: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """Return an `out` with the result in it, or the result where that has another size."""
    return out.copy_(made) if out.shape == made.shape else made


@define
class _Arguments:
    """The tensors among an operation's arguments, each once; `written` are those that it writes to."""

    call: _Call
    tensors: list[torch.Tensor] = field(factory=list)
    written: set[int] = field(factory=set)

    @classmethod
    def of(cls, op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> _Arguments:
        """Return the arguments of a call."""
        made, forms = cls(_Call(op)), op._schema.arguments
        named = {form.name: form for form in forms}
        made.call.positional = [made._slot(v, f) for v, f in zip(args, forms, strict=False)]
        made.call.keywords = {name: made._slot(v, named[name]) for name, v in kwargs.items()}
        return made

    def _slot(self, value: Any, form: Any) -> Any:
        if isinstance(value, list | tuple):
            return [self._slot(v, form) for v in value]
        if isinstance(value, torch.device):
            return torch.device("cpu")
        if not isinstance(value, torch.Tensor):
            return value
        number = next((n for n, t in enumerate(self.tensors) if t is value), len(self.tensors))
        if number == len(self.tensors):
            self.tensors.append(value)
        if form.alias_info is not None and form.alias_info.is_write:
            self.written.add(number)
        if form.is_out:
            self.call.outs.append(number)
        return _Slot(number, form.is_out)


@frozen
class _Slot:
    """The place of a tensor among an operation's arguments; a tensor may be an input and an `out`."""

    number: int
    is_out: bool


def _filled(value: Any, views: Sequence[torch.Tensor], outs: Mapping[int, torch.Tensor]) -> Any:
    if isinstance(value, _Slot):
        return outs[value.number] if value.is_out else views[value.number]
    if isinstance(value, list):
        return [_filled(v, views, outs) for v in value]
    if isinstance(value, dict):
        return {n: _filled(v, views, outs) for n, v in value.items()}
    return value
