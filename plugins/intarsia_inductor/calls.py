"""How a package is called: which of a piece's inputs it takes, and what of its outputs it makes.

A package takes tensors and returns tensors. The sizes among a piece's inputs are read off the tensors'
shapes inside the package, or handed over as tensors of one number where no shape shows them. An output that
is an input, the same value twice, or a size is not the package's business either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from attrs import frozen

from intarsia.errors import CompileRejected

Run = Callable[[list[Any]], list[Any]]


@frozen
class PackageCall:
    """A package's call as plain data.

    Attributes:
        count: how many inputs the piece has.
        takes: the inputs that are handed over, in order.
        numbers: those of them that are sizes.
        outputs: for each output of the piece Python source over `i0`, `i1`... (the piece's inputs) and
            `made` (what the package returned).
        serial: whether only one thread may be inside at a time.
    """

    count: int
    takes: tuple[int, ...]
    numbers: tuple[int, ...]
    outputs: tuple[str, ...]
    serial: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return {
            "count": self.count, "takes": list(self.takes), "numbers": list(self.numbers),
            "outputs": list(self.outputs), "serial": self.serial,
        }  # fmt: skip

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> PackageCall:
        """Rebuild it from `to_dict`'s data."""
        return PackageCall(
            data["count"], tuple(data["takes"]), tuple(data["numbers"]), tuple(data["outputs"]),
            data["serial"],
        )  # fmt: skip

    @property
    def is_plain(self) -> bool:
        """Say whether the package takes the piece's own inputs and returns its own outputs."""
        made = tuple(f"made[{i}]" for i in range(len(self.outputs)))
        return (
            self.takes == tuple(range(self.count))
            and not self.numbers
            and self.outputs == made
            and not self.serial
        )

    def bind(self, run: Run, lock: AbstractContextManager[Any]) -> Callable[..., Sequence[Any]]:
        """Return the piece's callable around the package's own call.

        It is one generated function without `*args`: 50 ns above the package, or nothing where the
        package takes just what the piece does.
        """
        if self.is_plain:
            return boxed(run)
        names = [f"i{n}" for n in range(self.count)]
        taken = [f"number(i{n})" if n in self.numbers else f"i{n}" for n in self.takes]
        call = f"made = run([{', '.join(taken)}])"
        result = f"return ({''.join(f'{o}, ' for o in self.outputs)})"
        if self.outputs == tuple(f"made[{i}]" for i in range(len(self.outputs))):
            result = "return made"
        lines = ["with lock:", f"    {call}"] if self.serial else [call]
        source = f"def piece({', '.join(names)}):\n    " + "\n    ".join([*lines, result])
        space: dict[str, Any] = {"run": run, "lock": lock, "number": _number, "math": math}
        exec(compile(source, "<package>", "exec"), space)
        made: Callable[..., Sequence[Any]] = space["piece"]
        return made


def _number(value: int) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.int64)


def boxed(function: Callable[[list[Any]], Sequence[Any]]) -> Callable[..., Sequence[Any]]:
    """Return a call that takes one list, marked as such."""
    import functools

    made: Any = functools.partial(function)  # a bound method takes no attributes; this costs 30 ns
    made.boxed_call = True
    return made


def partitioned(function: Callable[[list[Any]], Sequence[Any]]) -> Callable[..., Sequence[Any]]:
    """Return a `PartitionedCall` for generated code that Inductor has cut.

    The code is a method of an object that holds the partitions; another one of its class runs the same code
    with others in their place.

    Raises:
        CompileRejected: Inductor has not cut it.
    """
    runner: Any = getattr(function, "__self__", None)
    if not getattr(runner, "partitions", None):
        raise CompileRejected(
            "Inductor has not cut the graph: it has none of the operators on a GPU"
        )
    # Torch takes the partitions off its own object when the graph that it compiled is collected.
    kind, partitions = type(runner), list(runner.partitions)
    made: Any = boxed(aligned(kind(partitions).call))
    made.partitions = tuple(partitions)
    made.with_partitions = lambda parts: kind(list(parts)).call
    return made


_ALIGNMENT = 16


def aligned(function: Callable[[list[Any]], Sequence[Any]]) -> Callable[[list[Any]], Sequence[Any]]:
    """Return a call that copies inputs that are not aligned, as Inductor's kernels expect them to be.

    Inductor does this itself, except for code that it cuts for somebody else.
    """

    def call(inputs: list[Any]) -> Sequence[Any]:
        moved = [
            (i, v) for i, v in enumerate(inputs)
            if isinstance(v, torch.Tensor) and v.data_ptr() % _ALIGNMENT
        ]  # fmt: skip
        if not moved:
            return function(inputs)
        copies = {i: v.clone() for i, v in moved}
        before = {i: copy._version for i, copy in copies.items()}
        inputs[:] = [copies.get(i, v) for i, v in enumerate(inputs)]
        made = function(inputs)
        for i, original in moved:
            if copies[i]._version != before[i] or not torch.equal(copies[i], original):
                original.copy_(copies[i])
        return made

    return call


def refuse(reason: str) -> CompileRejected:
    """Return the refusal of a package, which leaves the piece with its quick artifact."""
    return CompileRejected(f"stays quick: {reason}")
