"""Compares a package with the piece it was made of, run eagerly on random inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from intarsia import torch_compat
from intarsia.errors import CompileRejected
from intarsia.interfaces import CompileRequest, IntInfo, PieceSignature, TensorInfo
from intarsia_inductor.calls import refuse

LARGEST = 1 << 28
"""Bytes of inputs above which a piece is not run to prove its package."""

ALIKE: Mapping[torch.dtype, float] = {
    torch.float64: 1e-9, torch.complex128: 1e-9, torch.float32: 1e-4, torch.complex64: 1e-4,
    torch.float16: 1e-2, torch.bfloat16: 5e-2,
}  # fmt: skip
"""How far a value may be off, in parts of the largest value of its tensor; others must be equal."""

Trial = Callable[[list[Any]], tuple[list[Any], list[Any]]]
"""Runs a package once: takes inputs; returns them as they are afterwards, and the outputs."""
Sizes = Mapping[str, int]


def here(function: Callable[..., Sequence[Any]]) -> Trial:
    """Return the trial that runs a package in this process."""

    def run(inputs: list[Any]) -> tuple[list[Any], list[Any]]:
        with torch.no_grad():
            boxed = getattr(function, "boxed_call", False)
            return inputs, list(function(list(inputs)) if boxed else function(*inputs))

    return run


def prove(trial: Trial, module: fx.GraphModule, request: CompileRequest, foreign: bool) -> str:
    """Run both at a small and a larger size of the box; returns a note on what was compared.

    A piece that calls operators outside torch is not run: they may wait for other processes, or count
    their calls.

    Raises:
        CompileRejected: the package differs.
    """
    signature = request.signature
    if foreign:
        if _shared(signature):
            raise refuse(
                "its outputs may share memory, and operators outside torch are not tried out"
            )
        return "package, not compared: it calls operators outside torch"
    trials = _trials(signature, request.hints)
    compared = [_compare(trial, module, request, sizes) for sizes in trials]
    if not any(compared):
        return (
            f"package, not compared: {'eager raises on random inputs' if trials else 'too large'}"
        )
    return "package, compared with eager"


def _shared(signature: PieceSignature) -> bool:
    tensors = [info for info in signature.outputs if isinstance(info, TensorInfo)]
    return any(info.alias_class is not None for info in tensors)


def _trials(signature: PieceSignature, hints: Sizes) -> list[dict[str, int]]:
    """Return the lowest sizes of the box, and others that differ from symbol to symbol."""
    low = {n: lo for n, (lo, _) in signature.box.items()}
    other = {n: min(hi, lo + 3 + 2 * k) for k, (n, (lo, hi)) in enumerate(signature.box.items())}
    wanted = [{**low, **hints}] if hints else [low] if low == other else [low, other]
    return [sizes for sizes in wanted if _bytes(signature, sizes) <= LARGEST]


def _compare(trial: Trial, module: fx.GraphModule, request: CompileRequest, sizes: Sizes) -> bool:
    """Compare at some sizes; returns whether eager took one of the inputs.

    Raises:
        CompileRejected: the package differs.
    """
    signature, kind, index = request.signature, request.device_type, request.device
    shown = ", ".join(f"{name} = {size}" for name, size in sizes.items()) or "its one size"
    for largest in (2, 1):  # random indices may be too large for what they index; then they are 0

        def inputs(largest: int = largest) -> list[Any]:
            return random_inputs(signature, kind, index, sizes, largest)

        try:
            theirs, expected = _eager(module, inputs(), 0)
            again, filled = _eager(module, inputs(), 1)
        except Exception:
            continue
        try:
            ours, actual = trial(inputs())
        except CompileRejected:
            raise
        except Exception as error:
            raise refuse(f"at {shown} its package fails: {error}") from error
        reason = _difference(actual, expected, ours, theirs, filled, again)
        if reason:
            raise refuse(f"at {shown} {reason}")
        return True
    return False


def _eager(module: fx.GraphModule, inputs: list[Any], fill: int) -> tuple[list[Any], list[Any]]:
    """Run a piece eagerly with memory that nobody wrote holding a number; returns inputs and outputs."""
    with torch.no_grad(), torch_compat.empty_memory_filled(fill):
        return inputs, list(fx.Interpreter(module).run(*inputs))


def _difference(
    actual: Sequence[Any], expected: Sequence[Any], ours: Sequence[Any], theirs: Sequence[Any],
    filled: Sequence[Any], again: Sequence[Any],
) -> str:  # fmt: skip
    """Say how results and written inputs differ from eager's, where both of eager's runs agree."""
    if len(actual) != len(expected):
        return f"its package returns {len(actual)} values instead of {len(expected)}"
    for index, (value, wanted) in enumerate(zip(actual, expected, strict=True)):
        reason = _unlike(value, wanted, filled[index])
        reason = reason or _shares_otherwise(value, wanted, ours, theirs)
        if reason:
            return f"output {index} of its package {reason}"
    for index, (value, wanted) in enumerate(zip(ours, theirs, strict=True)):
        reason = _unlike(value, wanted, again[index])
        if reason:
            return f"its package leaves input {index} that {reason}"
    return ""


def _unlike(ours: Any, theirs: Any, again: Any) -> str:
    if not isinstance(theirs, torch.Tensor):
        return "" if int(ours) == int(theirs) else f"is {ours} instead of {theirs}"
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return (
            f"is {ours.dtype} {tuple(ours.shape)} instead of {theirs.dtype} {tuple(theirs.shape)}"
        )
    if not theirs.numel():
        return ""
    if _strides(ours) != _strides(theirs):
        return f"has the strides {ours.stride()} instead of {theirs.stride()}"
    if theirs.is_floating_point() and theirs.dtype.itemsize == 1:  # 8-bit floats do not compare
        ours, theirs, again = ours.half(), theirs.half(), again.half()
    defined = (theirs == again) | ((theirs != theirs) & (again != again))
    return _far(ours[defined], theirs[defined])


def _strides(value: torch.Tensor) -> list[int]:
    return [step for size, step in zip(value.shape, value.stride(), strict=True) if size > 1]


def _far(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    part = ALIKE.get(theirs.dtype)
    if part is None:
        return "" if torch.equal(ours, theirs) else "has other values than eager's"
    wide = torch.complex128 if theirs.is_complex() else torch.float64
    ours, theirs = ours.to(wide), theirs.to(wide)
    usual = theirs[torch.isfinite(theirs)].abs()
    scale = max(1.0, float(usual.max()) if usual.numel() else 1.0)
    if torch.allclose(ours, theirs, rtol=0.0, atol=part * scale, equal_nan=True):
        return ""
    return f"is up to {float((ours - theirs).abs().max()):.3g} off eager's"


def _shares_otherwise(ours: Any, theirs: Any, own: Sequence[Any], other: Sequence[Any]) -> str:
    """Say how an output shares memory with the inputs other than eager's does."""
    if not isinstance(theirs, torch.Tensor) or not theirs.numel():
        return ""
    for index, (mine, yours) in enumerate(zip(own, other, strict=True)):
        if not isinstance(yours, torch.Tensor) or not yours.numel():
            continue
        shared, wanted = _memory(ours) == _memory(mine), _memory(theirs) == _memory(yours)
        if shared != wanted:
            return f"{'shares' if shared else 'does not share'} memory with input {index}"
    return ""


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


# ---------------------------------------------------------------------------------- random inputs


def random_inputs(
    signature: PieceSignature, device_type: str, index: int | None, sizes: Sizes, largest: int = 2
) -> list[Any]:
    """Return inputs of a piece's layouts and shared memory; the same on every call.

    Integers are below `largest`, since they are often indices.
    """
    generator = torch.Generator().manual_seed(0)
    device = torch.device(device_type) if index is None else torch.device(device_type, index)
    extents: dict[Any, int] = {}
    for index, info in enumerate(signature.inputs):
        if isinstance(info, TensorInfo):
            key = _storage(index, info)
            extents[key] = max(extents.get(key, 0), _extent(info, sizes))
    memory: dict[Any, torch.Tensor] = {}
    made: list[Any] = []
    for index, info in enumerate(signature.inputs):
        if isinstance(info, IntInfo):
            made.append(number(info.expression, sizes))
            continue
        key = _storage(index, info)
        if key not in memory:
            memory[key] = _random(extents[key], info.dtype, generator, largest).to(device)
        made.append(_view(memory[key], info, sizes))
    return made


def _storage(index: int, info: TensorInfo) -> Any:
    return index if info.alias_class is None else ("shared", info.alias_class, info.dtype)


def _view(memory: torch.Tensor, info: TensorInfo, sizes: Sizes) -> torch.Tensor:
    shape = [number(size, sizes) for size in info.shape]
    stride = [number(step, sizes) for step in info.stride]
    return memory.as_strided(shape, stride, number(info.storage_offset, sizes))


def _extent(info: TensorInfo, sizes: Sizes) -> int:
    steps = zip(info.shape, info.stride, strict=True)
    reach = sum(max(0, number(s, sizes) - 1) * number(step, sizes) for s, step in steps)
    return reach + 1 + number(info.storage_offset, sizes)


def _bytes(signature: PieceSignature, sizes: Sizes) -> int:
    tensors = [info for info in signature.inputs if isinstance(info, TensorInfo)]
    return sum(_extent(i, sizes) * getattr(torch, i.dtype).itemsize for i in tensors)


def _random(count: int, dtype: str, generator: torch.Generator, largest: int) -> torch.Tensor:
    kind: torch.dtype = getattr(torch, dtype)
    if kind.is_complex:
        return torch.randn(count, dtype=kind, generator=generator)
    if kind.is_floating_point:
        return torch.randn(count, generator=generator).to(kind)
    return torch.randint(0, largest, (count,), generator=generator).to(kind)


def number(size: int | str, sizes: Sizes) -> int:
    """Return a size expression's value."""
    if isinstance(size, int):
        return size
    if size in sizes:
        return sizes[size]
    names = torch_compat.free_names(size)
    source = torch_compat.size_source(size, {name: name for name in names})
    return int(eval(source, {"math": math, **{name: sizes[name] for name in names}}))
