"""Where tensors lie in memory: which overlap, which share a storage, and copies that lie as theirs do."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen


def overlap(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Say whether the bytes from the first to the last of two tensors overlap."""
    if left is right or right.layout != torch.strided or left.layout != torch.strided:
        return left is right
    first, last = byte_range(left)
    start, end = byte_range(right)
    return start < last and first < end and start != 0  # 0: no memory at all, as on "meta"


def byte_range(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the addresses of a strided tensor's first byte and after its last one."""
    try:
        start = tensor.data_ptr()
    except RuntimeError:  # a subclass around other tensors
        return 0, 0
    if tensor.is_contiguous():
        return start, start + tensor.nbytes
    if not tensor.numel():
        return start, start
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()


def overlapping(written: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    """Say whether one of the written tensors overlaps another one of them, or one of the others."""
    if len(written) == 1 and not others:
        return False
    ranges = [(*byte_range(t), True) for t in written]
    ranges += [(*byte_range(t), False) for t in others if t.layout is torch.strided]
    ranges.sort()
    end_of_any = end_of_written = 0
    for start, end, is_written in ranges:
        if start == end or not start:
            continue
        if start < end_of_written or (is_written and start < end_of_any):
            return True
        end_of_any = max(end_of_any, end)
        if is_written:
            end_of_written = max(end_of_written, end)
    return False


@frozen
class Memory:
    """The memory that some tensors take: separate ranges in order."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor]) -> Memory:
        """Return the memory of tensors."""
        starts: list[int] = []
        ends: list[int] = []
        for start, end in sorted(byte_range(t) for t in tensors if t.layout is torch.strided):
            if start == end or not start:
                continue
            if ends and start <= ends[-1]:
                ends[-1] = max(ends[-1], end)
            else:
                starts.append(start)
                ends.append(end)
        return cls(tuple(starts), tuple(ends))

    def holds(self, tensor: torch.Tensor) -> bool:
        """Say whether a tensor overlaps with it."""
        start, end = byte_range(tensor)
        place = bisect_right(self.ends, start)
        return place < len(self.starts) and self.starts[place] < end and start != end


def start_of(tensor: torch.Tensor) -> int:
    """Return the address of a tensor's storage; 0 where it has none of the plain kind."""
    return tensor.untyped_storage().data_ptr() if is_plain(tensor) else 0


def is_plain(tensor: torch.Tensor) -> bool:
    """Say whether a tensor is nothing but strided memory."""
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def copy_values(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy a tensor to another of its form, also where several elements are at one place."""
    if repeats(target) and target.stride() == source.stride():
        target, source = _span(target), _span(source)
    target.copy_(source)


def _span(tensor: torch.Tensor) -> torch.Tensor:
    """Return the memory from a tensor's first element to its last."""
    count = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((count,), (1,), tensor.storage_offset())


def repeats(tensor: torch.Tensor) -> bool:
    """Say whether several elements may be at one place, so that nothing can be copied there."""
    end = 1
    for size, step in sorted(zip(tensor.shape, tensor.stride(), strict=True), key=lambda d: d[1]):
        if size > 1:
            if step < end:
                return True
            end = step * (size - 1) + end
    return False


def over(storage: torch.UntypedStorage, like: torch.Tensor) -> torch.Tensor:
    """Return a tensor over a storage that lies in it as another does in its own."""
    made = torch.empty(0, dtype=like.dtype, device=like.device)
    return made.set_(storage, like.storage_offset(), like.shape, like.stride())


def copied(values: Sequence[Any], written: Sequence[int]) -> list[Any]:
    """Return values of which those that are written to, and what shares their memory, are copies.

    Copies share memory with each other as the originals do. What is no plain tensor stays as it is.
    """
    tensors = [values[i] for i in written if isinstance(values[i], torch.Tensor)]
    storages = {start: _storage_copy(t) for t in tensors if (start := start_of(t))}
    found: list[Any] = []
    for value in values:
        storage = storages.get(start_of(value)) if isinstance(value, torch.Tensor) else None
        found.append(value if storage is None else over(storage, value))
    return found


def _storage_copy(tensor: torch.Tensor) -> torch.UntypedStorage:
    # By a tensor: torch cannot make a bare storage on a device that is written in Python, and crashes.
    flat = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
    return flat.clone().untyped_storage()


def in_original(value: Any, copies: Sequence[Any], originals: Sequence[Any]) -> Any:
    """Return what lies in an original as a value does in the copy of it; None: it is in no copy."""
    start = start_of(value) if isinstance(value, torch.Tensor) else 0
    for copy, original in zip(copies, originals, strict=True):
        if not start or copy is original or not isinstance(copy, torch.Tensor):
            continue
        if start_of(copy) == start:
            if value.dtype != original.dtype:
                return over(original.untyped_storage(), value)
            return original.as_strided(value.shape, value.stride(), value.storage_offset())
    return None
