"""The device's order of work: what is launched runs at once, or is recorded.

As in a stream capture of a real device, a recorded launch does not run: nothing is written, and its results
have their memory and no values yet. The device needs their form before, so the toy computes them on the side
and throws the values away.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from attrs import define, field, frozen

from intarsia_toynpu.memory import MEMORY, Pool, empty, extent, host_view

Compute = Callable[[list[torch.Tensor]], Sequence[Any]]
"""A kernel: from the host's views of tensors to results on the host, in which views of the inputs and the
inputs themselves may be."""


class CaptureError(RuntimeError):
    """A launch that cannot be recorded, or a recording that cannot begin."""


@frozen
class Command:
    """One recorded launch: a kernel, the addresses that it reads and writes, and where its results go."""

    compute: Compute
    inputs: Sequence[torch.Tensor]
    results: Sequence[tuple[int, torch.Tensor]]

    def run(self) -> None:
        """Run it again on the same addresses."""
        made = self.compute(list(self.inputs))
        for number, place in self.results:
            place.copy_(made[number])


@define(eq=False)
class Capture:
    """A recording that has begun: the commands so far, and the pool for their results."""

    pool: Pool
    commands: list[Command] = field(factory=list)


class _Local(threading.local):
    capture: Capture | None = None


_local = _Local()


def capture() -> Capture | None:
    """Return this thread's unfinished recording, or None."""
    return _local.capture


def set_capture(value: Capture | None) -> None:
    """Begin or end to record this thread's launches."""
    _local.capture = value


def refuse_in_capture(what: str) -> None:
    """Refuse what waits for the device or reads its memory while launches are recorded.

    Raises:
        CaptureError: this thread records.
    """
    if _local.capture is not None:
        raise CaptureError(f"{what} cannot be recorded: it would wait for the device")


def new_tensor(shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor without values; in a recording its memory is the pool's."""
    recording = _local.capture
    made = empty(shape, stride, dtype, MEMORY if recording is None else recording.pool)
    if recording is not None:
        _spoil(host_view(made))
    return made


def launch(
    compute: Compute, inputs: Sequence[torch.Tensor], written: Collection[int] = ()
) -> list[Any]:
    """Run a kernel on tensors of the device, or record it; returns its results, on the device.

    A result that is an input is that input; one that lies in an input's memory is a view of it.

    Args:
        compute: the kernel.
        inputs: tensors on the device; a tensor of the host among them is a constant.
        written: which inputs the kernel writes to.
    """
    views = [host_view(t) if t.device.type != "cpu" else t for t in inputs]
    recording = _local.capture
    if recording is None:
        return _placed(compute(list(views)), views, inputs, MEMORY)
    scratch = [_copied(v) if i in written else v for i, v in enumerate(views)]
    made = compute(list(scratch))
    results = _placed(made, scratch, inputs, recording.pool)
    owned = [
        (number, host_view(result))
        for number, result in enumerate(results)
        if isinstance(result, torch.Tensor) and not _lies_in(made[number], scratch)
    ]
    for _, place in owned:
        _spoil(place)
    recording.commands.append(Command(compute, views, owned))
    return results


def _placed(
    made: Sequence[Any], views: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], pool: Pool
) -> list[Any]:
    """Return results on the device: inputs, views of inputs, and what is copied to new memory."""
    results: list[Any] = []
    shared: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for value in made:
        if not isinstance(value, torch.Tensor):
            results.append(value)
            continue
        same = next((n for n, view in enumerate(views) if value is view), None)
        base = _lies_in(value, views) if same is None else None
        if same is not None:
            results.append(inputs[same])
        elif base is not None:
            results.append(_view(value, views[base[0]], inputs[base[0]]))
        else:
            results.append(_copied_in(value, pool, shared))
    return results


def _copied_in(
    value: torch.Tensor, pool: Pool, shared: dict[int, tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """Copy a result to the device; results that share memory share it there too."""
    start = value.untyped_storage().data_ptr()
    if start in shared:
        first, placed = shared[start]
        return _view(value, first, placed)
    placed = empty(value.shape, value.stride(), value.dtype, pool)
    host_view(placed).copy_(value)
    if value.numel() and value.untyped_storage().nbytes() == value.nbytes:
        shared[start] = (value, placed)
    return placed


def _view(value: torch.Tensor, host: torch.Tensor, device: torch.Tensor) -> torch.Tensor:
    """Return the view of a device tensor that a value is of its host view."""
    moved = value.data_ptr() - host.data_ptr()
    if value.dtype != device.dtype:
        device, moved = device.view(value.dtype), moved + 0
    offset = device.storage_offset() + moved // value.element_size()
    return device.as_strided(value.shape, value.stride(), offset)


def _lies_in(value: Any, views: Sequence[torch.Tensor]) -> tuple[int] | None:
    """Return which view's memory a value lies in; None: in none of them."""
    start = value.untyped_storage().data_ptr()
    if not start or not value.numel():
        return None
    for number, view in enumerate(views):
        if view.untyped_storage().data_ptr() == start:
            return (number,)
    return None


def _copied(view: torch.Tensor) -> torch.Tensor:
    """Return a copy with the same strides, in which elements that share memory share it too."""
    flat = view.as_strided((extent(view.shape, view.stride()),), (1,))
    return flat.clone().as_strided(view.shape, view.stride())


def _spoil(view: torch.Tensor) -> None:
    """Fill the results of a recorded launch with what is no number, or 0 where every value is one."""
    view.fill_(float("nan") if view.is_floating_point() or view.is_complex() else 0)
