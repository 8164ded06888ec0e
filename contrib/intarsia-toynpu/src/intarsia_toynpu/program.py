"""Programs of the device: straight-line code over registers, and plain data when it is kept.

A register holds a tensor, an int or a list of them. An instruction names an operation, its operands, and the
registers that are free after it. Sizes are ints in registers, so one program serves every size of its box.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import asdict, field, frozen

from intarsia_toynpu.ops import swiglu
from intarsia_toynpu.stream import launch

INSTRUCTION_SET = "1"

_SCALAR: Mapping[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "floordiv": operator.floordiv,
    "mod": operator.mod, "pow": operator.pow, "truediv": operator.truediv, "neg": operator.neg,
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt,
    "ge": operator.ge, "getitem": operator.getitem, "floor": math.floor, "ceil": math.ceil,
    "trunc": math.trunc, "sym_min": min, "sym_max": max, "sym_float": float, "sym_int": int,
    "sym_not": operator.not_,
}  # fmt: skip
"""What the scalar unit does with sizes."""

_MATRIX = ("addmm", "baddbmm", "bmm", "matmul", "mm")


@frozen
class Instruction:
    """One step of a program.

    Attributes:
        opcode: "scalar.add", "aten::mm.default", "toynpu::swiglu".
        result: the register that it writes.
        operands, keywords: plain data; registers and the like as `encode` writes them.
        frees: registers that nothing reads afterwards.
    """

    opcode: str
    result: int
    operands: tuple[Any, ...]
    keywords: Mapping[str, Any]
    frees: tuple[int, ...] = ()


@frozen
class Program:
    """A compiled piece.

    Attributes:
        inputs: how many inputs it takes, in the first registers.
        registers: how many registers it uses.
        instructions: in order.
        outputs: a register, or a constant, per output.
        matmul_precision: how the matrix unit reads float32.
    """

    inputs: int
    registers: int
    instructions: tuple[Instruction, ...]
    outputs: tuple[Any, ...]
    matmul_precision: str = "float32"
    _steps: tuple[Any, ...] = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        steps = tuple(
            (self._kernel(i.opcode), i.result, i.operands, i.keywords, i.frees)
            for i in self.instructions
        )
        object.__setattr__(self, "_steps", steps)

    def to_bytes(self) -> bytes:
        """Return the program as plain data."""
        data = asdict(self, filter=lambda attribute, _: attribute.name != "_steps")
        return json.dumps({"instruction-set": INSTRUCTION_SET, **data}).encode()

    @staticmethod
    def from_bytes(data: bytes) -> Program:
        """Return the program that `to_bytes` wrote.

        Raises:
            ValueError: it is none, or is written for another instruction set.
        """
        found = json.loads(data)
        if not isinstance(found, dict) or found.pop("instruction-set", None) != INSTRUCTION_SET:
            raise ValueError(f"not a program for toynpu's instruction set {INSTRUCTION_SET}")
        instructions = tuple(
            Instruction(**{**i, "operands": tuple(i["operands"]), "frees": tuple(i["frees"])})
            for i in found.pop("instructions")
        )
        return Program(instructions=instructions, outputs=tuple(found.pop("outputs")), **found)

    def __call__(self, *inputs: Any) -> list[Any]:
        """Launch the program."""
        tensors = [value for value in inputs if isinstance(value, torch.Tensor)]
        others = [None if isinstance(value, torch.Tensor) else value for value in inputs]

        def compute(views: list[torch.Tensor]) -> list[Any]:
            given = iter(views)
            return self.run([next(given) if v is None else v for v in others])

        return launch(compute, tensors)

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Run the instructions on the host's views of the inputs."""
        held: list[Any] = [*inputs, *([None] * (self.registers - len(inputs)))]
        with torch.no_grad():
            for kernel, result, operands, keywords, frees in self._steps:
                held[result] = kernel(
                    *[decode(v, held) for v in operands],
                    **{name: decode(v, held) for name, v in keywords.items()},
                )
                for register in frees:
                    held[register] = None
        return [decode(value, held) for value in self.outputs]

    def _kernel(self, opcode: str) -> Callable[..., Any]:
        if opcode.startswith("scalar."):
            return _SCALAR[opcode.removeprefix("scalar.")]
        if opcode == "toynpu::swiglu":
            return swiglu
        packet, _, overload = opcode.removeprefix("aten::").partition(".")
        found: Callable[..., Any] = getattr(getattr(torch.ops.aten, packet), overload)
        if self.matmul_precision == "bfloat16" and packet in _MATRIX:
            return _in_bfloat16(found)
        return found


def _in_bfloat16(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Return a matrix operation that reads float32 as bfloat16 and adds up in float32."""

    def run(*operands: Any, **keywords: Any) -> Any:
        # The last two are multiplied; what addmm adds keeps its precision.
        *added, left, right = operands
        rounded = (
            v.bfloat16().to(v.dtype) if v.dtype == torch.float32 else v for v in (left, right)
        )
        return kernel(*added, *rounded, **keywords)

    return run


def scalar_opcode(function: Any) -> str | None:
    """Return the scalar unit's opcode for a Python function, or None."""
    name = getattr(function, "__name__", "")
    return f"scalar.{name}" if name in _SCALAR else None


def encode(value: Any, register: Callable[[Any], int | None]) -> Any:
    """Return an operand as plain data.

    Args:
        value: an operand of a graph's node.
        register: returns the register of a node, None for what is none.

    Raises:
        TypeError: it has no plain form.
    """
    found = register(value)
    if found is not None:
        return {"register": found}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [encode(v, register) for v in value]
    if isinstance(value, torch.device):
        return {"device": "cpu"}  # inside a program everything is on the device
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, slice):
        return {"slice": [encode(v, register) for v in (value.start, value.stop, value.step)]}
    raise TypeError(f"{type(value).__name__} {value!r}")


def decode(value: Any, held: Sequence[Any]) -> Any:
    """Return an operand's value: `encode` the other way."""
    if isinstance(value, list):
        return [decode(v, held) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "register":
        return held[content]
    if kind == "slice":
        return slice(*decode(content, held))
    return torch.device(content) if kind == "device" else getattr(torch, content)
