"""The piece as an exported program, what goes into it and how its results lie in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from attrs import frozen

from intarsia.errors import CompileRejected
from intarsia.interfaces import CompileRequest, PieceSignature, TensorInfo

__all__ = ["Layout", "check_dtypes", "reason"]

Run = Callable[[list[torch.Tensor]], list[torch.Tensor]]
"""Takes the program's tensors, contiguous, and returns its results: contiguous, and new memory."""


def check_dtypes(request: CompileRequest, known: Collection[str]) -> None:
    """Refuse a piece whose inputs or results have a dtype that is not known.

    Raises:
        CompileRejected: naming it.
    """
    for value in (*request.signature.inputs, *request.signature.outputs):
        if isinstance(value, TensorInfo) and value.dtype not in known:
            raise CompileRejected(f"the dtype {value.dtype} is not supported")


def reason(error: BaseException) -> str:
    """Return what the first of a chain of errors says, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no reason given'}"


@frozen
class Layout:
    """What a program takes of a piece's inputs, and how the piece's results lie in memory.

    Attributes:
        taken: the inputs that the program takes, by position.
        symbols: symbol -> the input and dimension that it is the size of.
        strides: for each result its strides, numbers or expressions over the symbols; None: contiguous.
    """

    taken: tuple[int, ...]
    symbols: Mapping[str, tuple[int, int]]
    strides: tuple[tuple[int | str, ...] | None, ...]

    @classmethod
    def of(cls, request: CompileRequest) -> Layout:
        """Return the layout of a request's program.

        Raises:
            CompileRejected: a result is no tensor, shares memory with another tensor, or repeats elements.
        """
        signature = request.signature
        shared = {v.alias_class for v in signature.inputs if isinstance(v, TensorInfo)} - {None}
        strides: list[tuple[int | str, ...] | None] = []
        for number, value in enumerate(signature.outputs):
            if not isinstance(value, TensorInfo):
                raise CompileRejected(f"result {number} is a number")
            if value.alias_class is not None and value.alias_class in shared:
                raise CompileRejected(f"result {number} shares memory with another tensor")
            shared.add(value.alias_class)
            shared.discard(None)
            strides.append(_strides(number, value))
        taken = signature.exported_inputs(request.weights or ())
        return cls(taken, _symbols(signature), tuple(strides))

    def to_bytes(self, program: bytes) -> bytes:
        """Return an artifact: this, and the vendor's own bytes."""
        head = json.dumps(
            {"taken": self.taken, "symbols": self.symbols, "strides": self.strides}
        ).encode()
        return len(head).to_bytes(4, "little") + head + program

    @classmethod
    def from_bytes(cls, artifact: bytes, signature: PieceSignature) -> tuple[Layout, bytes]:
        """Return what `to_bytes` wrote.

        Raises:
            ValueError: it was written for another piece.
        """
        end = 4 + int.from_bytes(artifact[:4], "little")
        head: Mapping[str, Any] = json.loads(artifact[4:end])
        strides = tuple(None if one is None else tuple(one) for one in head["strides"])
        # Equal pieces share an artifact, and each has names of its own for its symbols.
        made = cls(
            tuple(head["taken"]), {k: (v[0], v[1]) for k, v in head["symbols"].items()}, strides
        )
        if made.taken != signature.exported_inputs() or len(strides) != len(signature.outputs):
            raise ValueError("the artifact is for a piece with other inputs or results")
        return made, artifact[end:]

    def bind(self, run: Run) -> Callable[..., Sequence[torch.Tensor]]:
        """Return the piece's callable."""
        taken = self.taken
        places = [None if one is None else _places(one) for one in self.strides]
        is_plain = not any(places)

        def call(*inputs: Any) -> Sequence[torch.Tensor]:
            results = run([inputs[i].detach().contiguous() for i in taken])
            if is_plain:
                return results
            sizes = {name: inputs[i].shape[dim] for name, (i, dim) in self.symbols.items()}
            return [
                x if place is None else _laid(x, [eval(code, _NOTHING, sizes) for code in place])
                for x, place in zip(results, places, strict=True)
            ]

        return call


_NOTHING: dict[str, Any] = {"__builtins__": {}}
_SAMPLES = (1009, 2003)
"""Sizes at which expressions are compared: primes, so that different expressions differ."""


def _symbols(signature: PieceSignature) -> dict[str, tuple[int, int]]:
    """Return where each symbol is to be read."""
    return {
        size: (i, dim)
        for i, value in reversed(list(enumerate(signature.inputs)))
        if isinstance(value, TensorInfo)
        for dim, size in enumerate(value.shape)
        if isinstance(size, str) and size.isidentifier()
    }


def _strides(number: int, value: TensorInfo) -> tuple[int | str, ...] | None:
    """Return a result's strides, or None where it is contiguous.

    Raises:
        CompileRejected: it repeats its elements, or a stride cannot be computed.
    """
    names = {name for x in (*value.shape, *value.stride) for name in _NAME.findall(str(x))}
    is_contiguous = True
    for sample in _SAMPLES:
        sizes = dict.fromkeys(names, sample)
        try:
            shape, stride = (
                [eval(str(x), _NOTHING, sizes) for x in part]
                for part in (value.shape, value.stride)
            )
        except Exception as error:
            raise CompileRejected(f"the strides of result {number} are {value.stride}") from error
        if any(step == 0 and size > 1 for size, step in zip(shape, stride, strict=True)):
            raise CompileRejected(f"result {number} repeats its elements")
        expected = 1
        for size, step in zip(reversed(shape), reversed(stride), strict=True):
            is_contiguous &= size == 1 or step == expected
            expected *= size
    return None if is_contiguous else value.stride


_NAME = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")


def _places(strides: Sequence[int | str]) -> list[Any]:
    return [compile(str(step), "<stride>", "eval") for step in strides]


def _laid(x: torch.Tensor, strides: Sequence[int]) -> torch.Tensor:
    """Return a contiguous tensor as one with other strides."""
    return torch.empty_strided(x.shape, strides, dtype=x.dtype).copy_(x)
