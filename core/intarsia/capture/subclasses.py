"""Tensor subclasses: what there is inside of one, which its own dtype and shape do not tell."""

from __future__ import annotations

import json

import torch

from intarsia import torch_compat
from intarsia.dtypes import dtype_name

_PLAIN = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


def tensor_kind(value: torch.Tensor) -> str:
    """Return the class of a tensor and the metadata of the tensors inside; "" for a plain one."""
    if type(value) in _PLAIN or torch_compat.is_fake(value):
        return ""
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if not hasattr(value, "__tensor_flatten__"):
        return name
    names, context = value.__tensor_flatten__()
    inner = [[name, *_metadata(getattr(value, name))] for name in names]
    return json.dumps([name, inner, repr(context)])


def _metadata(inner: torch.Tensor) -> list[str]:
    strides = str(inner.stride()) if inner.layout is torch.strided else str(inner.layout)
    return [
        dtype_name(inner.dtype), str(tuple(inner.shape)), strides, inner.device.type, tensor_kind(inner)
    ]  # fmt: skip
