"""Calls outside every box: general, pad, eager or error, always counted and never silent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import define

from intarsia.boxes_text import describe_box
from intarsia.capture.call import Call
from intarsia.capture.graph import Graph, Parameter
from intarsia.errors import ConfigError, ContractError
from intarsia.report.events import EventStream
from intarsia.runtime.bound import BoundBox, Forward
from intarsia.runtime.contract import TensorContract


@define
class Uncovered:
    """Decides what runs for sizes that no box holds.

    Attributes:
        policy: "general", "pad", "eager" or "error". A general compilation is a box itself, so what
            comes here under "general" is outside what the contract allows, or has a size 0.
        parameters: the model's own; their values follow the tensors among a forward's arguments.
        eager: runs the model eagerly on a forward's arguments.
        tensors: the contracts of the tensors that come first among a forward's arguments.
    """

    policy: str
    name: str
    parameters: Sequence[Parameter]
    tensors: Sequence[TensorContract]
    symbols: tuple[str, ...]
    boxes: Sequence[BoundBox]
    padded: tuple[str, ...]
    events: EventStream
    eager: Forward

    def __call__(self, values: Mapping[str, int]) -> Forward:
        """Return the forward for sizes outside every box.

        Raises:
            ContractError: the policy is "error", or it is "pad" and no box is large enough.
        """
        shown = ", ".join(f"{n} = {v}" for n, v in values.items())
        count = self.events.count("uncovered", shown)
        if self.policy == "error":
            raise self._error(shown)
        if self.policy == "pad":
            found = self._nearest(values)
            if found is None:
                raise self._error(shown)
            return self.padding(found[0].forward, found[1], values)
        if count == 1:
            self.events.warn(
                f"a call with {shown} is outside every box and runs eagerly (uncovered = "
                f'"{self.policy}"); further ones are only counted',
                kind="uncovered", sizes=dict(values),
            )  # fmt: skip
        return self.eager

    def _error(self, shown: str) -> ContractError:
        boxes = ", ".join(describe_box(b.planned.box) for b in self.boxes)
        return ContractError(
            f"a call of {self.name} with {shown} is outside every compiled box",
            why=f'the boxes are {boxes}, and uncovered = "{self.policy}"',
            next_step="Add a box or size for it, or choose another policy for uncovered.",
            subject=shown,
        )

    # -- pad

    def _nearest(self, values: Mapping[str, int]) -> tuple[BoundBox, dict[str, int]] | None:
        best: tuple[int, BoundBox, dict[str, int]] | None = None
        for box in self.boxes:
            target = self._target(box, values)
            if target is None:
                continue
            cost = sum(target.values()) - sum(values.values())
            if best is None or cost < best[0]:
                best = (cost, box, target)
        return None if best is None else (best[1], best[2])

    def _target(self, box: BoundBox, values: Mapping[str, int]) -> dict[str, int] | None:
        target: dict[str, int] = {}
        for name, (low, high) in box.planned.box.items():
            size = max(values[name], low) if name in self.padded else values[name]
            if not low <= size <= high:
                return None
            target[name] = size
        return target

    def padding(
        self, forward: Forward, target: Mapping[str, int], values: Mapping[str, int]
    ) -> Forward:
        """Return what runs a call of some sizes through a forward for larger ones, and cuts its result."""
        count = len(self.tensors)
        wanted = [
            [(d, target[s]) for d, s in enumerate(c.shape) if s in self.padded]
            for c in self.tensors
        ]

        def padded(*arguments: Any) -> Any:
            tensors = [_grown(t, dims) for t, dims in zip(arguments[:count], wanted, strict=True)]
            roots = arguments[count : count + len(self.parameters)]
            sizes = [target[s] for s in self.symbols]
            real = [values[s] for s in self.symbols]
            return forward(*tensors, *roots, *sizes, *real)

        self.events.count("padded")
        return padded


def _grown(tensor: torch.Tensor, dims: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Return a tensor with zeros added at the end of some dimensions."""
    shape = list(tensor.shape)
    for dim, size in dims:
        shape[dim] = size
    if shape == list(tensor.shape):
        return tensor
    grown = tensor.new_zeros(shape)
    grown[tuple(slice(0, n) for n in tensor.shape)].copy_(tensor)
    return grown


def eager_forward(model: Any, parameters: Sequence[Parameter], tensors: int) -> Forward:
    """Return a forward that calls the model itself with the call's own arguments."""

    def run(*arguments: Any) -> Any:
        roots = arguments[tensors : tensors + len(parameters)]
        values = {p.name: v for p, v in zip(parameters, roots, strict=True)}
        args, kwargs = Call(tuple(parameters), values).split()
        return model(*args, **kwargs)

    return run


def check_pad(
    graph: Graph, padded: Sequence[str], declared: Sequence[str], sizes_of: Callable[[Any], Any],
    mutates: bool,
) -> None:  # fmt: skip
    """Refuse padding where it cannot be right.

    Raises:
        ConfigError: no symbol's rows are declared independent, the model writes to something, or an
            output has a size that is computed from a padded symbol.
    """
    if not declared:
        raise ConfigError(
            'uncovered = "pad" needs to know whose rows may be padded',
            why="no symbol's rows are declared independent of each other",
            next_step='Name the symbols: rows_independent = ["tokens"].',
            subject="rows_independent",
        )
    if mutates:
        raise ConfigError(
            'uncovered = "pad" is not possible for this model',
            why="it writes to an argument or buffer, and the added rows would be written too",
            next_step="Choose another policy for uncovered.",
            subject="uncovered",
        )
    for value in sizes_of(graph):
        for size in value:
            if isinstance(size, str) and size not in padded and _mentions(size, padded):
                raise ConfigError(
                    'uncovered = "pad" is not possible for this model',
                    why=f"an output has the size {size}, which cannot be cut back",
                    next_step="Choose another policy for uncovered.",
                    subject="uncovered",
                )


def _mentions(size: str, names: Sequence[str]) -> bool:
    from intarsia.torch_compat import free_names

    return bool(set(free_names(size)) & set(names))
