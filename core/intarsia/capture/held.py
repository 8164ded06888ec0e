"""Objects that a model holds or sees beside its call's arguments: what tracing writes to them.

A write to such an object (a counter of a cache, a list of a global) is Python, so the graph does not have
it. It is found by running the frame's own Python around the graph once, undone, and refused by name.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import torch
from attrs import define, field

from intarsia.capture.frozen import label_of, outside_arguments, source_values
from intarsia.capture.structure import is_scalar
from intarsia.torch_compat import FrameCapture

_Places = dict[Any, Any]


@define
class HeldObjects:
    """Shallow copies of the plain objects that tracing read outside the arguments.

    Attributes:
        labels: id of an object -> how the model reaches it.
    """

    objects: list[Any] = field(factory=list)
    before: list[_Places] = field(factory=list)
    labels: list[str] = field(factory=list)

    def written(self) -> list[str]:
        """Return what has changed since, as a reader would write it."""
        return [
            f"{label}{step}" for value, before, label in self._each()
            for step in _differences(value, before)
        ]  # fmt: skip

    def restore(self) -> None:
        """Put every object back as it was."""
        for value, before, _ in self._each():
            if any(_differences(value, before)):
                _put_back(value, before)

    def _each(self) -> Iterator[tuple[Any, _Places, str]]:
        return iter(zip(self.objects, self.before, self.labels, strict=True))


def held_objects(frame: FrameCapture) -> HeldObjects:
    """Return the objects that tracing read, as they are now."""
    made = HeldObjects()
    seen = _of_modules(frame)
    for source, value in source_values(frame):
        if id(value) in seen or not outside_arguments(source, frame):
            continue
        places = _places(value)
        if places is not None:
            seen.add(id(value))
            made.objects.append(value)
            made.before.append(places)
            made.labels.append(label_of(source, frame.root_name))
    return made


def _of_modules(frame: FrameCapture) -> set[int]:
    """Return the ids of what the model's modules keep their state in: the caller looks after it."""
    roots = [r for r in (frame.root, frame.traced_root) if isinstance(r, torch.nn.Module)]
    return {
        id(table) for root in roots for module in root.modules()
        for table in (vars(module), module._buffers, module._parameters, module._modules)
    }  # fmt: skip


def _places(value: Any) -> _Places | None:
    """Return the parts of an object that can be written to, or None where nobody writes."""
    if isinstance(value, torch.nn.Module | torch.Tensor | type | types.FunctionType):
        return None  # modules are looked after by the caller
    if isinstance(value, types.CellType):
        return _cell(value)
    if type(value) is list:
        return dict(enumerate(value))
    if type(value) is dict:
        return dict(value)
    if isinstance(value, set):
        return dict.fromkeys(value)
    return dict(vars(value)) if hasattr(value, "__dict__") and not is_scalar(value) else None


def _cell(cell: types.CellType) -> _Places:
    try:
        return {"cell_contents": cell.cell_contents}
    except ValueError:
        return {}


def _differences(value: Any, before: _Places) -> list[str]:
    now = _places(value) or {}
    changed = [k for k in now if k not in before or not _same(before[k], now[k])]
    gone = [k for k in before if k not in now]
    is_object = not isinstance(value, list | dict | set)
    return [f".{k}" if is_object else f"[{k!r}]" for k in (*changed, *gone)]


def _same(old: Any, new: Any) -> bool:
    return old is new or (is_scalar(new) and type(old) is type(new) and bool(old == new))


def _put_back(value: Any, before: _Places) -> None:
    if isinstance(value, types.CellType):
        value.cell_contents = before["cell_contents"]
    elif isinstance(value, list):
        value[:] = before.values()
    elif isinstance(value, dict | set):
        value.clear()
        value.update(before)
    else:
        vars(value).clear()
        vars(value).update(before)
