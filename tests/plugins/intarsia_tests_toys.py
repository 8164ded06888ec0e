"""A plugin with toy compilers. The fixture `toys` puts its distribution on the path.

- recorder: runs pieces as they are and keeps every request it was given.
- pointwise: takes sigmoid, mul and add and nothing else; for split-by-support.
- static-only: takes no dynamic shapes, and checks that it gets none.
- raiser: fails with an error of its own.
- binder: has `bind`, and keeps what it was called with.
- liar: returns something else than was recorded; the option `lie` says what.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from intarsia.errors import CompileRejected
from intarsia.interfaces import (
    Capabilities,
    CompileRequest,
    CompileResult,
    CompilerSpec,
    Decision,
    Option,
    OpView,
)

intarsia_api_version = (1, 0)

REQUESTS: list[CompileRequest] = []
"""What the toy compilers were given since the fixture cleared it."""

RUNS: list[tuple[str, dict[str, tuple[int, int]]]] = []
"""The name and box of every piece that a toy ran since the fixture cleared it."""

BINDS: list[dict[int, Any]] = []
"""The weights that the binder's `bind` was given since the fixture cleared it."""

_POINTWISE = {
    "torch.sigmoid", "aten::sigmoid.default", ".sigmoid",
    "operator.mul", "operator.add", "torch.mul", "torch.add",
    "aten::mul.Tensor", "aten::add.Tensor",
}  # fmt: skip


def pointwise_supports(op: OpView) -> Decision:
    """Take sigmoid, mul and add."""
    return Decision(op.name in _POINTWISE, f"{op.name} is not pointwise")


class Toy:
    """Runs the graph as it is."""

    def compile(self, request: CompileRequest) -> CompileResult:
        REQUESTS.append(request)
        self.check(request)
        name, box, forward = request.name, dict(request.box), request.graph.forward

        def run(*inputs: Any) -> Any:
            RUNS.append((name, box))
            return forward(*inputs)

        return CompileResult(run)

    def check(self, request: CompileRequest) -> None:
        pass

    def load(self, artifact: bytes, signature: Any, device: int | None) -> Any:
        raise NotImplementedError("toys leave no artifacts")

    def factors(self) -> None:
        return None

    def supports(self, op: OpView) -> Decision:
        return Decision(True)


class Pointwise(Toy):
    """Refuses a piece with anything but pointwise operations."""

    def check(self, request: CompileRequest) -> None:
        for node in request.graph.graph.nodes:
            name = getattr(node.target, "__name__", str(node.target))
            if node.op.startswith("call_") and name not in ("sigmoid", "mul", "add", "getitem"):
                raise CompileRejected(f"{name} is not pointwise")

    def supports(self, op: OpView) -> Decision:
        return pointwise_supports(op)


class StaticOnly(Toy):
    """Checks that every size it sees is a number."""

    def check(self, request: CompileRequest) -> None:
        assert all(low == high for low, high in request.box.values()), request.box
        for info in request.signature.inputs:
            sizes = getattr(info, "shape", None) or (getattr(info, "expression", 0),)
            assert all(isinstance(size, int) for size in sizes), info


class Raiser(Toy):
    """Fails."""

    def check(self, request: CompileRequest) -> None:
        raise RuntimeError(f"the raiser does not like {request.name}")


class Binder(Toy):
    """Counts how often each piece instance is bound, and runs what it bound."""

    def bind(self, function: Any, weights: Mapping[int, Any]) -> Any:
        BINDS.append(dict(weights))
        kept = dict(weights)

        def run(*inputs: Any) -> Any:
            for index, weight in kept.items():
                assert inputs[index] is weight, "a piece is called with what it was bound to"
            return function(*inputs)

        return run


class Liar(Toy):
    """Runs the piece and changes its first result."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.lie = options["lie"]

    def compile(self, request: CompileRequest) -> CompileResult:
        forward, lie = request.graph.forward, self.lie

        def run(*inputs: Any) -> Any:
            first, *rest = forward(*inputs)
            return LIES[lie](first, rest, inputs)

        return CompileResult(run)


LIES: dict[str, Any] = {
    "dtype": lambda first, rest, inputs: (first.double(), *rest),
    "shape": lambda first, rest, inputs: (first[:, :1], *rest),
    "rank": lambda first, rest, inputs: (first[None], *rest),
    "stride": lambda first, rest, inputs: (first.t().contiguous().t(), *rest),
    "arity": lambda first, rest, inputs: (first, *rest, first),
    "bare": lambda first, rest, inputs: first,
    "none": lambda first, rest, inputs: (None, *rest),
    "alias": lambda first, rest, inputs: (inputs[0], *rest),
}

_EVERYTHING = Capabilities(dynamic_shapes=True, mutation=True, custom_ops=True, workers=False)


def _spec(name: str, cls: type[Toy], capabilities: Capabilities = _EVERYTHING) -> CompilerSpec:
    return CompilerSpec(
        name=name,
        version="1",
        factory=lambda options, device: cls(options) if options else cls(),  # type: ignore[call-arg]
        options={"lie": Option("dtype", str)} if cls is Liar else {},
        supports=pointwise_supports if cls is Pointwise else None,
        capabilities=capabilities,
    )


def intarsia_compilers() -> list[CompilerSpec]:
    """Bring the toys."""
    return [
        _spec("recorder", Toy),
        _spec("pointwise", Pointwise),
        _spec("raiser", Raiser),
        _spec("binder", Binder),
        _spec("liar", Liar),
        _spec(
            "static-only", StaticOnly, Capabilities(mutation=True, custom_ops=True, workers=False)
        ),
    ]
