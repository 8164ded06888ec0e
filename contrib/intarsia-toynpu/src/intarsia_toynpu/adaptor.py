"""The compiler "toynpu": from a graph of ATen's operations to a program of the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import evolve
from torch import fx

from intarsia.errors import CompileRejected
from intarsia.interfaces import CompileRequest, CompileResult, Decision, OpView, PieceSignature
from intarsia_toynpu import instructions
from intarsia_toynpu.program import INSTRUCTION_SET, Instruction, Program, encode, scalar_opcode


class NpuCompiler:
    """The `Compiler` of the device."""

    def __init__(self, options: Mapping[str, Any], device: int | None) -> None:
        self.precision: str = options["matmul_precision"]
        self.program_memory: int = options["program_memory"]
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f'matmul_precision is "float32" or "bfloat16", not {self.precision!r}')

    def compile(self, request: CompileRequest) -> CompileResult:
        """Return the piece as a program.

        Raises:
            CompileRejected: the device has no instruction for an operation, or the program is too long.
        """
        graph: fx.GraphModule = request.lower("aten-functional")
        program = assemble(graph, self.precision)
        count = len(program.instructions)
        if count > self.program_memory:
            raise CompileRejected(
                f"the program has {count} instructions, and program_memory is {self.program_memory}"
            )
        return CompileResult(program, program.to_bytes(), note=f"{count} instructions")

    def load(
        self, artifact: bytes, signature: PieceSignature, device: int | None
    ) -> Callable[..., Sequence[Any]]:
        """Return the program of an artifact.

        Raises:
            ValueError: it is for another instruction set, or takes another number of inputs.
        """
        program = Program.from_bytes(artifact)
        takes, gives = len(signature.inputs), len(signature.outputs)
        if (program.inputs, len(program.outputs)) != (takes, gives):
            raise ValueError(
                f"it takes {program.inputs} inputs and returns {len(program.outputs)} outputs; the piece "
                f"has {takes} and {gives}"
            )
        return program

    def factors(self) -> Mapping[str, str]:
        """Return the instruction set; the options are in the key without it."""
        return {"instruction-set": INSTRUCTION_SET}

    def supports(self, op: OpView) -> Decision:
        """Say whether the device has an instruction for an operation."""
        return instructions.supports(op)


def assemble(module: fx.GraphModule, precision: str = "float32") -> Program:
    """Return a graph of ATen's operations as a program.

    Raises:
        CompileRejected: naming the first node that the device has no instruction for.
    """
    registers: dict[fx.Node, int] = {}
    written: list[Instruction] = []
    outputs: tuple[Any, ...] = ()

    def register(value: Any) -> int | None:
        return registers.get(value) if isinstance(value, fx.Node) else None

    for node in module.graph.nodes:
        if node.op == "placeholder":
            registers[node] = len(registers)
        elif node.op == "output":
            outputs = tuple(_encoded(node, v, register) for v in node.args[0])
        else:
            opcode = _opcode(node)
            operands = tuple(_encoded(node, v, register) for v in node.args)
            keywords = {n: _encoded(node, v, register) for n, v in node.kwargs.items()}
            registers[node] = len(registers)
            written.append(Instruction(opcode, registers[node], operands, keywords))
    inputs = sum(node.op == "placeholder" for node in module.graph.nodes)
    return Program(
        inputs,
        len(registers),
        tuple(_with_frees(written, registers, module.graph)),
        outputs,
        precision,
    )


def _opcode(node: fx.Node) -> str:
    if node.op != "call_function":
        raise CompileRejected(f"toynpu has no instruction for a {node.op} ({node.target})")
    scalar = scalar_opcode(node.target)
    if scalar is not None:
        return scalar
    name: str = str(getattr(node.target, "_schema", None) and node.target.name())  # type: ignore[union-attr]
    if "." not in name:
        name += ".default"
    if not instructions.is_instruction(name):
        raise CompileRejected(f"toynpu has no instruction for {name}")
    return name.removesuffix(".default") if name.startswith("toynpu") else name


def _encoded(node: fx.Node, value: Any, register: Callable[[Any], int | None]) -> Any:
    try:
        return encode(value, register)
    except TypeError as error:
        raise CompileRejected(f"toynpu takes no operand like that of {node}: {error}") from error


def _with_frees(
    written: Sequence[Instruction], registers: Mapping[fx.Node, int], graph: fx.Graph
) -> list[Instruction]:
    """Return the instructions, each with the registers that nothing reads after it."""
    kept = {registers[n] for n in graph.output_node().all_input_nodes}
    last: dict[int, int] = {}
    for node, number in registers.items():
        users = [registers[user] for user in node.users if user in registers]
        last[number] = max(users, default=number)
    frees: dict[int, list[int]] = {}
    for number, at in last.items():
        if number not in kept:
            frees.setdefault(at, []).append(number)
    return [evolve(i, frees=tuple(frees.get(i.result, ()))) for i in written]
