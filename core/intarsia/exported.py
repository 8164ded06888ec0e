"""What adaptors of compilers share that take exported programs: what goes in, and how results lie in memory.

layout = Layout.of(request)
program = request.lower("exported")
run = ...                          # the vendor's: a list of tensors in, a list of new tensors out
return CompileResult(layout.bind(run), layout.to_bytes(artifact), request.needs)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from attrs import frozen

from intarsia.errors import CompileRejected
from intarsia.interfaces import CompileRequest, Decision, OpView, PieceSignature, TensorInfo
from intarsia.sizes import Size, size_function

__all__ = ["Layout", "Run", "check_dtypes", "reason", "takes_aten"]

Run: TypeAlias = Callable[[list[torch.Tensor]], list[torch.Tensor]]
"""Takes the program's tensors, contiguous, and returns its results: contiguous, and new memory."""


def check_dtypes(request: CompileRequest, known: Collection[str]) -> None:
    """Refuse a piece whose inputs or results have a dtype that is not known.

    Raises:
        CompileRejected: naming it.
    """
    for value in (*request.signature.inputs, *request.signature.outputs):
        if isinstance(value, TensorInfo) and value.dtype not in known:
            raise CompileRejected(f"the dtype {value.dtype} is not supported")


def takes_aten(op: OpView) -> Decision:
    """Take every operation that is not outside ATen; whether it converts is known when it is tried."""
    if "::" in op.name and not op.name.startswith(("aten::", "prims::")):
        return Decision(False, "it is outside ATen")
    return Decision(True)


def reason(error: BaseException) -> str:
    """Return what the first of a chain of errors says, on one line: where it quotes a tool's, that error."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    quoted = [line[line.index("error: ") :] for line in lines if "error: " in line]
    told = [*quoted, *lines, "no reason given"][0]
    return f"{type(error).__name__}: {told[:300]}"


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
        shared = {v.alias_class for v in signature.inputs if isinstance(v, TensorInfo)}
        strides: list[tuple[int | str, ...] | None] = []
        for number, value in enumerate(signature.outputs):
            if not isinstance(value, TensorInfo):
                raise CompileRejected(f"result {number} is a number")
            if value.alias_class is not None and value.alias_class in shared:
                raise CompileRejected(f"result {number} shares memory with another tensor")
            shared.add(value.alias_class)
            strides.append(_strides(number, value, signature.box))
        taken = signature.exported_inputs(request.weights or ())
        return cls(taken, _symbols(signature), tuple(strides))

    def to_bytes(self, program: bytes) -> bytes:
        """Return an artifact: this, and the vendor's own bytes."""
        data = {"taken": self.taken, "symbols": self.symbols, "strides": self.strides}
        head = json.dumps(data).encode()
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
        # Equal pieces share an artifact, and each has names of its own for its symbols: these stay.
        symbols = {name: (at[0], at[1]) for name, at in head["symbols"].items()}
        made = cls(tuple(head["taken"]), symbols, strides)
        if made.taken != signature.exported_inputs() or len(strides) != len(signature.outputs):
            raise ValueError("the artifact is for a piece with other inputs or results")
        return made, artifact[end:]

    def bind(self, run: Run) -> Callable[..., Sequence[torch.Tensor]]:
        """Return the piece's callable."""
        taken, symbols = self.taken, self.symbols
        steps = [
            None if one is None else [size_function(step, symbols) for step in one]
            for one in self.strides
        ]

        def plain(*inputs: Any) -> Sequence[torch.Tensor]:
            return run([inputs[i].detach().contiguous() for i in taken])

        def laid(*inputs: Any) -> Sequence[torch.Tensor]:
            sizes = {name: inputs[i].shape[dim] for name, (i, dim) in symbols.items()}
            return [
                made if step is None else _laid(made, step, sizes)
                for made, step in zip(plain(*inputs), steps, strict=True)
            ]

        return laid if any(step is not None for step in steps) else plain


_SAMPLES = (1009, 2003)
"""Sizes at which expressions are compared: primes, so that different expressions differ."""


def _symbols(signature: PieceSignature) -> dict[str, tuple[int, int]]:
    """Return where each symbol is to be read."""
    return {
        size: (i, dim)
        for i, value in enumerate(signature.inputs) if isinstance(value, TensorInfo)
        for dim, size in enumerate(value.shape) if isinstance(size, str) and size.isidentifier()
    }  # fmt: skip


def _strides(
    number: int, value: TensorInfo, symbols: Collection[str]
) -> tuple[int | str, ...] | None:
    """Return a result's strides, or None where it is contiguous.

    Raises:
        CompileRejected: it repeats its elements, or has a size that only running the piece reveals.
    """
    is_contiguous = True
    for sample in _SAMPLES:
        values = dict.fromkeys(symbols, sample)
        try:
            shape, stride = (
                [size_function(x, symbols)(values) for x in part]
                for part in (value.shape, value.stride)
            )
        except KeyError as error:
            raise CompileRejected(
                f"result {number} has a size that is known when it ran"
            ) from error
        if any(step == 0 and size > 1 for size, step in zip(shape, stride, strict=True)):
            raise CompileRejected(f"result {number} repeats its elements")
        expected = 1
        for size, step in zip(reversed(shape), reversed(stride), strict=True):
            is_contiguous &= size == 1 or step == expected
            expected *= size
    return None if is_contiguous else value.stride


def _laid(x: torch.Tensor, steps: Sequence[Size], sizes: Mapping[str, int]) -> torch.Tensor:
    """Return a contiguous tensor as one with other strides."""
    strides = [step(sizes) for step in steps]
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)
