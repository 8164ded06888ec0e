"""Inputs with the real shapes of a piece, and random values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from intarsia.interfaces import CompileRequest, IntInfo, TensorInfo
from intarsia.sizes import size_function

LARGEST = 2048
"""A symbol without a hint gets the top of its range, or this where the range goes on."""


class CannotMake(Exception):
    """There are no inputs to be had: the reason is its text."""


def sizes(request: CompileRequest) -> dict[str, int]:
    """Return the size of every symbol: its hint, else the top of its range, up to `LARGEST`."""
    return {
        name: request.hints.get(name, min(high, max(low, LARGEST)))
        for name, (low, high) in request.box.items()
    }


def random_inputs(request: CompileRequest, symbols: Mapping[str, int]) -> list[Any]:
    """Return values for a piece's inputs: normal floats, and integers and bools of 0 and 1.

    Weights are scaled by the root of their last size, so that results stay finite. Tensors that may share
    memory share it.

    Raises:
        CannotMake: an input has a dtype or an expression for its size that is not known here.
    """
    generator = torch.Generator().manual_seed(0)
    storages: dict[int, torch.Tensor] = {}
    made: list[Any] = []
    for info in request.signature.inputs:
        if isinstance(info, IntInfo):
            made.append(_number(info.expression, symbols))
            continue
        device = torch.device(info.device_type)
        if request.device is not None and info.device_type != "cpu":
            device = torch.device(info.device_type, request.device)
        made.append(_tensor(info, symbols, device, generator, storages))
    return made


def _tensor(
    info: TensorInfo, symbols: Mapping[str, int], device: torch.device, generator: torch.Generator,
    storages: dict[int, torch.Tensor],
) -> torch.Tensor:  # fmt: skip
    shape = [_number(n, symbols) for n in info.shape]
    stride = [_number(n, symbols) for n in info.stride]
    offset = _number(info.storage_offset, symbols)
    last = 0 if 0 in shape else sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    count = offset + last + 1
    dtype = getattr(torch, info.dtype)
    shared = None if info.alias_class is None else storages.get(info.alias_class)
    if shared is None or shared.dtype != dtype or shared.numel() < count:
        if shared is not None:
            raise CannotMake("inputs share memory in a way that has no plain copy")
        scale = 1.0
        if info.kind == "weight" and len(shape) > 1:
            scale = 1 / math.sqrt(max(shape[-1], 1))
        shared = _values(count, dtype, generator, scale).to(device)
        if info.alias_class is not None:
            storages[info.alias_class] = shared
    return shared.as_strided(shape, stride, offset)


def _values(
    count: int, dtype: torch.dtype, generator: torch.Generator, scale: float
) -> torch.Tensor:
    if dtype.is_complex:
        return (torch.randn(count, generator=generator, dtype=torch.complex64) * scale).to(dtype)
    if dtype.is_floating_point:
        return (torch.randn(count, generator=generator) * scale).to(dtype)
    return torch.randint(0, 2, (count,), generator=generator).to(dtype)


def _number(value: int | str, symbols: Mapping[str, int]) -> int:
    if isinstance(value, int):
        return value
    try:
        return size_function(value, symbols)(symbols)
    except Exception as error:
        raise CannotMake(f"the size {value} has no value here: {error}") from error
