"""Compiling without weights: a model whose tensors have shapes and dtypes and no memory.

A build machine makes the bundle that a fleet starts from. Capture looks at metadata alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from intarsia import torch_compat
from intarsia.errors import CaptureError

T = TypeVar("T")


def without_weights(make: Callable[[], T]) -> T:
    """Return what a function makes, with tensors that have no memory: nothing is allocated or read.

    Raises:
        CaptureError: the function looks at the values of its tensors.
    """
    try:
        with torch_compat.memoryless_mode():
            return make()
    except Exception as error:
        reason = error if error.__cause__ is None else error.__cause__
        if not torch_compat.is_about_data(reason):
            raise
        raise CaptureError(
            "the model cannot be made without weights",
            why=f"making it looks at the values of tensors: {reason}",
            next_step="Leave out --offline, or make the model without looking at values.",
        ) from error


def weightless(model: Any, device: str = "cpu") -> Any:
    """Return a model with its parameters and buffers on a device, as tensors that have no memory.

    Those on "meta", and those that `without_weights` made, count as being on that device.
    """
    if not isinstance(model, torch.nn.Module):
        return model
    mode = torch_compat.memoryless_mode()
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        tables: list[Any] = [module._parameters, module._buffers]
        for table in tables:
            for name, value in list(table.items()):
                if value is not None:
                    if id(value) not in made:
                        made[id(value)] = _like(value, mode, device)
                    table[name] = made[id(value)]  # tied weights stay tied
    return model


def _like(value: torch.Tensor, mode: Any, device: str) -> torch.Tensor:
    where = device if value.device.type == "meta" or torch_compat.is_fake(value) else value.device
    with mode:
        made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=where)
    if isinstance(value, torch.nn.Parameter):
        return torch.nn.Parameter(made, requires_grad=False)
    return made


def with_memory(value: Any, device: str = "cpu") -> Any:
    """Return arguments whose tensors have memory, with any values: capture never runs on them.

    Lists, tuples and dicts are walked; other objects are left as they are.
    """
    if isinstance(value, torch.Tensor):
        where = (
            device if value.device.type == "meta" or torch_compat.is_fake(value) else value.device
        )
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=where)
    if type(value) in (list, tuple):
        return type(value)(with_memory(item, device) for item in value)
    if isinstance(value, Mapping) and type(value) is dict:
        return {key: with_memory(item, device) for key, item in value.items()}
    return value
