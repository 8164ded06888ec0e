"""Values of a plan as plain data, and back: operators, dtypes, classes, what the model itself holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from attrs import field, frozen
from torch import fx

from intarsia.capture.structure import Path
from intarsia.errors import IntarsiaError
from intarsia.runtime.source import Namespace
from intarsia.runtime.weights import Recorded
from intarsia.split.encode import CannotEncode, Encoded, decode_argument, encode_argument


@frozen
class Known:
    """Objects that a value may be by identity: parameter defaults.

    Attributes:
        by_id: id -> the plain form.
    """

    defaults: Mapping[str, Any] = field(factory=dict)

    def form_of(self, value: Any) -> Encoded | None:
        """Return the form of an object that is one of these, or None."""
        for name, default in self.defaults.items():
            if default is value:
                return ["default", name]
        return None


def encode(value: Any, known: Known | None = None) -> Encoded:
    """Return a value as plain data.

    Raises:
        CannotEncode: it has no plain form.
    """
    if isinstance(value, torch.Tensor):
        raise CannotEncode("a tensor constant has no plain form", subject="tensor")
    try:
        return encode_argument(value, _no_nodes)
    except CannotEncode:
        form = None if known is None else known.form_of(value)
        if form is None:
            raise
        return form


def _no_nodes(node: fx.Node) -> Encoded:
    raise CannotEncode(f"the node {node} is no value")


class NotHere(IntarsiaError):
    """Something that plain data names is not to be found in this process."""


def decode(data: Encoded, *, model: Any = None, defaults: Mapping[str, Any] | None = None) -> Any:
    """Return the value of plain data.

    Raises:
        NotHere: what it names is not to be found in this process.
    """
    try:
        return _decoded(data, model, defaults or {})
    except (ImportError, AttributeError) as error:
        raise NotHere(f"{data!r:.80} is not to be found", why=str(error)) from error


def _decoded(data: Encoded, model: Any, defaults: Mapping[str, Any]) -> Any:
    if isinstance(data, list) and data and data[0] == "default":
        return defaults[data[1]]
    if isinstance(data, list) and data and data[0] == "attribute":
        for part in data[1:]:
            model = getattr(model, part)
        return model
    if isinstance(data, list) and data and data[0] == "weight":
        owner, _, name = data[1].rpartition(".")
        return getattr(model.get_submodule(owner), name).detach()
    return decode_argument(data, {})


def space_to_data(space: Namespace, skip: frozenset[str], known: Known) -> dict[str, Encoded]:
    """Return the names of generated code with their values; `skip` are bound by whoever loads it.

    Raises:
        CannotEncode: a value has no plain form; the message has its name.
    """
    found: dict[str, Encoded] = {}
    for name, value in space.values.items():
        if name in skip:
            continue
        try:
            found[name] = space.origins.get(name) or encode(value, known)
        except CannotEncode as error:
            raise CannotEncode(
                f"{name} of the generated code has no plain form", why=str(error)
            ) from error
    return found


def path_to_data(path: Path) -> Encoded:
    """Return a path as plain data."""
    return [path.root, [[kind, encode(step)] for kind, step in path.steps]]


def path_from_data(data: Encoded) -> Path:
    """Return the path of plain data."""
    root, steps = data
    return Path(root, tuple((kind, decode(step)) for kind, step in steps))


def recorded_to_data(recorded: Recorded | None) -> Encoded:
    """Return a weight's metadata as plain data."""
    if recorded is None:
        return None
    stride = None if recorded.stride is None else list(recorded.stride)
    return [encode(recorded.dtype), list(recorded.shape), stride, encode(recorded.device),
            encode(recorded.layout)]  # fmt: skip


def recorded_from_data(data: Encoded) -> Recorded | None:
    """Return the metadata of plain data."""
    if data is None:
        return None
    dtype, shape, stride, place, layout = data
    return Recorded(
        decode(dtype), tuple(shape), None if stride is None else tuple(stride),
        decode(place), decode(layout),
    )  # fmt: skip
