"""Named dynamic dimensions: which dimension of which argument, and the sizes to trace with."""

from __future__ import annotations

import copy
import keyword
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import frozen

from intarsia.capture.structure import Path, structural_copy, walk
from intarsia.errors import CaptureError, ConfigError, nearest

Dynamic = Mapping[str, Mapping[int, str]]
"""Argument name or path -> {dimension: symbol name}."""


@frozen
class NamedDim:
    """Dimension `dim` of the tensor at `path` is the symbol `name`."""

    path: Path
    dim: int
    name: str


def named_dims(dynamic: Dynamic, arguments: Mapping[str, Any]) -> list[NamedDim]:
    """Find the dimensions that `dynamic` names among a call's arguments.

    Raises:
        ConfigError: no tensor goes by that name, or it has no such dimension.
    """
    tensors = {str(p): (p, v) for p, v in _tensors(arguments)}
    aliases = {p.steps[0][1]: key for key, (p, _) in tensors.items()
               if len(p.steps) == 1 and p.steps[0][0] == "[]"}  # fmt: skip
    found: list[NamedDim] = []
    for argument, dims in dynamic.items():
        key = argument if argument in tensors else aliases.get(argument, argument)
        if key not in tensors:
            raise ConfigError(
                f'dynamic names the argument "{argument}"',
                why="the example call passes no tensor there",
                next_step=nearest(argument, tensors),
                subject=argument,
            )
        path, tensor = tensors[key]
        for dim, name in dims.items():
            _check_name(argument, str(name))
            found.append(NamedDim(path, _checked_dim(argument, int(dim), tensor), str(name)))
    return found


def _tensors(arguments: Mapping[str, Any]) -> list[tuple[Path, torch.Tensor]]:
    return [
        (path, value)
        for root, argument in arguments.items()
        for path, value in walk(argument, Path(root))
        if isinstance(value, torch.Tensor)
    ]


def _check_name(argument: str, name: str) -> None:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ConfigError(
            f'dynamic gives a dimension of "{argument}" the name "{name}"',
            why="a symbol's name must be a Python identifier, since conditions are written with it",
            next_step='Use letters, digits and underscores: "batch_size".',
            subject=name,
        )


def _checked_dim(argument: str, dim: int, tensor: torch.Tensor) -> int:
    if not -tensor.dim() <= dim < tensor.dim():
        raise ConfigError(
            f'dynamic names dimension {dim} of "{argument}"',
            why=f"the example has {tensor.dim()} dimensions",
            subject=argument,
        )
    return dim % tensor.dim()


def choose_hints(
    dims: Sequence[NamedDim], arguments: Mapping[str, Any],
    ranges: Mapping[str, tuple[int, int | None]], fixed: Mapping[str, int],
) -> dict[str, int]:  # fmt: skip
    """Return the size to trace each symbol with: the example's, unless that would mislead.

    0 and 1 take branches that other sizes do not, and two symbols of one size look equal; such a
    symbol is traced with another size of its range.

    Raises:
        CaptureError: the example gives one symbol two sizes.
    """
    tensors = {str(p): v for p, v in _tensors(arguments)}
    example: dict[str, int] = {}
    for entry in dims:
        size = tensors[str(entry.path)].shape[entry.dim]
        if example.setdefault(entry.name, size) != size:
            raise CaptureError(
                f'the example call gives "{entry.name}" two sizes',
                why=f"{example[entry.name]} and, at dimension {entry.dim} of {entry.path}, {size}",
                next_step="Use different names, or an example in which they agree.",
                subject=entry.name,
            )
    taken: set[int] = set()
    hints: dict[str, int] = {}
    for name, size in example.items():
        hints[name] = fixed[name] if name in fixed else _hint(size, taken, ranges.get(name))
        taken.add(hints[name])
    return hints


def _hint(size: int, taken: set[int], bounds: tuple[int, int | None] | None) -> int:
    low, high = bounds or (0, None)
    top = (1 << 20) if high is None else high
    if size >= 2 and size not in taken and low <= size <= top:
        return size
    start = max(low, 2, min(size, top))
    candidates = list(range(start, min(top, start + 64) + 1))
    candidates += list(range(max(low, 2), start))[-64:]
    free = [c for c in candidates if c not in taken]
    return free[0] if free else max(low, min(top, size))


def resized(
    arguments: Mapping[str, Any], dims: Sequence[NamedDim], hints: Mapping[str, int]
) -> dict[str, Any]:
    """Return the arguments with each named dimension at its hint; the caller's own stay as they are.

    Only shapes matter to tracing, so a resized tensor is freshly made and holds zeros.
    """
    tensors = {str(p): v for p, v in _tensors(arguments)}
    wanted: dict[str, list[NamedDim]] = {}
    for entry in dims:
        wanted.setdefault(str(entry.path), []).append(entry)
    made: dict[str, Any] = dict(arguments)
    copied = False
    for key, entries in wanted.items():
        tensor = tensors[key]
        sizes = list(tensor.shape)
        for entry in entries:
            sizes[entry.dim] = hints[entry.name]
        if sizes == list(tensor.shape):
            continue
        if not copied:
            memo: dict[int, Any] = {}
            made = {name: structural_copy(value, memo) for name, value in arguments.items()}
            copied = True
        _put(made, entries[0].path, _like(tensor, sizes))
    return made


def _like(tensor: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    order = sorted(range(tensor.dim()), key=lambda d: (tensor.stride(d), -d), reverse=True)
    base = tensor.new_zeros([sizes[d] for d in order])
    inverse = [order.index(d) for d in range(tensor.dim())]
    return base.permute(inverse).requires_grad_(tensor.requires_grad)


def _put(arguments: dict[str, Any], path: Path, value: Any) -> None:
    if not path.steps:
        arguments[path.root] = value
        return
    holder: Any = arguments[path.root]
    if isinstance(holder, tuple):  # *args
        arguments[path.root] = _with_item(holder, path.steps, value)
        return
    for position, (kind, step) in enumerate(path.steps[:-1]):
        inner = getattr(holder, step) if kind == "." else holder[step]
        if isinstance(inner, tuple):
            replaced = _with_item(inner, path.steps[position + 1 :], value)
            _set(holder, kind, step, replaced)
            return
        holder = inner
    _set(holder, *path.steps[-1], value)


def _set(holder: Any, kind: str, step: Any, value: Any) -> None:
    if kind == ".":
        setattr(holder, step, value)
    else:
        holder[step] = value


def _with_item(holder: tuple[Any, ...], steps: Sequence[Any], value: Any) -> tuple[Any, ...]:
    index = steps[0][1]
    parts = list(holder)
    if len(steps) == 1:
        parts[index] = value
    else:
        inner = {"inner": copy.copy(parts[index])}
        _put(inner, Path("inner", tuple(steps[1:])), value)
        parts[index] = inner["inner"]
    return type(holder)(*parts) if hasattr(holder, "_fields") else tuple(parts)
