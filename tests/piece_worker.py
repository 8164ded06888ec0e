"""Compiles pieces that came as bytes, in a spawned process, and runs them."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from intarsia.host import Host
from intarsia.interfaces import CompileRequest, IntInfo, TensorInfo, ValueInfo
from intarsia.references import resolve_reference
from tests import models  # noqa: F401 - registers the opaque ops in the spawned process

Outcome = tuple[list[Any], list[Any]]
"""What a piece returned, and its inputs afterwards."""


def compile_and_run(data: bytes, compiler: str, inputs: bytes) -> bytes:
    """Restore a request, compile it and run it once. Called in the spawned process."""
    spec = Host().compiler(compiler)
    request = CompileRequest.from_bytes(data)
    host = Host()
    made = resolve_reference(spec.factory)(host.options(spec, {}), None).compile(request)
    return packed(run(lambda *values: made.run(values), unpacked(inputs)))


def packed(value: Any) -> bytes:
    """Return values as bytes that keep which tensors share memory; plain pickle does not."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def unpacked(data: bytes) -> Any:
    """Restore what `packed` wrote."""
    return torch.load(io.BytesIO(data), weights_only=False)


def run(function: Any, inputs: list[Any]) -> Outcome:
    """Call a piece without grad."""
    with torch.no_grad():
        outputs = list(function(*inputs))
    return outputs, inputs


def defined(request: CompileRequest, outcome: Outcome) -> Outcome:
    """Leave out the outputs that a piece only allocates, for a later piece to fill."""
    outputs, inputs = outcome
    (output,) = request.graph.graph.find_nodes(op="output")
    kept = [getattr(n.target, "__name__", "") != "empty_like" for n in output.args[0]]
    return [value for value, keep in zip(outputs, kept, strict=True) if keep], inputs


def random_inputs(request: CompileRequest, seed: int) -> list[Any]:
    """Return random inputs that fit a request's signature: its strides and shared memory too."""
    sizes: dict[str, int] = {name: min(high, low + 4) for name, (low, high) in request.box.items()}
    torch.manual_seed(seed)
    infos = request.signature.inputs
    needed: dict[Any, int] = defaultdict(int)
    for index, info in enumerate(infos):
        if isinstance(info, TensorInfo):
            key = _memory(index, info)
            needed[key] = max(needed[key], _extent(info, sizes))
    memory: dict[Any, Tensor] = {}
    return [_input(index, info, sizes, needed, memory) for index, info in enumerate(infos)]


def _memory(index: int, info: TensorInfo) -> Any:
    return ("own", index) if info.alias_class is None else ("shared", info.alias_class, info.dtype)


def _extent(info: TensorInfo, sizes: Mapping[str, int]) -> int:
    steps = zip(info.shape, info.stride, strict=True)
    reach = sum((_number(size, sizes) - 1) * _number(stride, sizes) for size, stride in steps)
    return reach + 1 + _number(info.storage_offset, sizes)


def _input(
    index: int,
    info: ValueInfo,
    sizes: Mapping[str, int],
    needed: Mapping[Any, int],
    memory: dict[Any, Tensor],
) -> Any:
    if isinstance(info, IntInfo):
        return _number(info.expression, sizes)
    key = _memory(index, info)
    if key not in memory:
        memory[key] = _random(needed[key], getattr(torch, info.dtype.removeprefix("torch.")))
    shape = [_number(size, sizes) for size in info.shape]
    stride = [_number(step, sizes) for step in info.stride]
    return memory[key].as_strided(shape, stride, _number(info.storage_offset, sizes))


def _random(count: int, dtype: torch.dtype) -> Tensor:
    if dtype is torch.bool:
        return torch.rand(count) > 0.5
    if not dtype.is_floating_point:
        return torch.randint(0, 4, (count,), dtype=dtype)  # small: often an index
    return torch.randn(count).to(dtype)


def _number(value: int | str, sizes: Mapping[str, int]) -> int:
    return value if isinstance(value, int) else int(eval(value, {}, dict(sizes)))
