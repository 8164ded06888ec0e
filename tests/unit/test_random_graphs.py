"""Random programs, cut at random places: the pieces put together give what the program gives.

A program is Python source over tensors of shape [k*n, c] and [k*n]: elementwise work, matmuls, views,
writes (to results, views, arguments and a weight), cat, chunk, shapes as values, and opaque ops.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, note, reject, settings
from hypothesis import strategies as st
from torch import Tensor

import intarsia
from tests import models  # noqa: F401 - registers the opaque ops
from tests.checks import no_fallbacks, piece_records
from tests.models import assert_same, clone, randn

RULES = (
    "torch.sigmoid", "intarsia_tests::square", "intarsia_tests::add_into", "intarsia_tests::topk2",
    "intarsia_tests::scale.default", "torch.cat", ".add_", ".mul_", ".sum", ".chunk", "torch.tanh",
    "operator.sub", ".view", "torch.full", "torch.reshape",
)  # fmt: skip
WIDTH = 4


@dataclass
class Program:
    """A program as it grows: its lines, and the shape (k, c) of each value; c is 0 for [k*n]."""

    lines: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[int, int]] = field(
        default_factory=lambda: {"x": (1, WIDTH), "y": (1, WIDTH), "b": (1, 0)}
    )

    def new(self, expression: str, shape: tuple[int, int]) -> str:
        """Add a line that makes a value."""
        name = f"v{len(self.shapes)}"
        self.lines.append(f"{name} = {expression}")
        self.shapes[name] = shape
        return name

    def source(self, outputs: list[str]) -> str:
        """Return the function."""
        body = "\n    ".join(["n = x.shape[0]", *self.lines, f"return ({', '.join(outputs)},)"])
        return f"def program(x, y, b, w):\n    {body}\n"


Step = Callable[[Program, Any], None]


def pick(program: Program, draw: Any, shape: tuple[int, int] | None = None) -> str:
    """Draw a value, of one shape if given."""
    known = [name for name, s in program.shapes.items() if shape in (None, s)]
    return str(draw(st.sampled_from(known)))


def unary(program: Program, draw: Any) -> None:
    a = pick(program, draw)
    form = draw(
        st.sampled_from(
            ["torch.sin({})", "torch.tanh({})", "{}.cos()", "torch.sigmoid({})", "-{}", "{}.abs()",
             "{}.clone()", "{}.contiguous()", "torch.relu({})"]
        )
    )  # fmt: skip
    program.new(form.format(a), program.shapes[a])


def number(program: Program, draw: Any) -> None:
    a = pick(program, draw)
    form = draw(
        st.sampled_from(
            [
                "{} * 0.5",
                "{} + 1",
                "{} - n",
                "{} / (n + 1)",
                "{0}.clamp(min=-1)",
                "{0} * {0}.size(0)",
            ]
        )
    )
    program.new(f"torch.tanh({form.format(a)})", program.shapes[a])


def binary(program: Program, draw: Any) -> None:
    a = pick(program, draw)
    b = pick(program, draw, program.shapes[a])
    form = draw(st.sampled_from(["{} + {}", "{} * {}", "{} - {}", "torch.maximum({}, {})"]))
    program.new(f"({form.format(a, b)}).clamp(-9, 9)", program.shapes[a])


def matmul(program: Program, draw: Any) -> None:
    a = pick(program, draw)
    rows, width = program.shapes[a]
    if width == WIDTH:
        program.new(f"torch.tanh({a} @ w)", (rows, width))
    elif width:
        program.new(f"{a} @ torch.tanh({a}.t() @ {a})", (rows, width))


def view(program: Program, draw: Any) -> None:
    a = pick(program, draw)
    rows, width = program.shapes[a]
    if not width and rows % WIDTH == 0:
        program.new(f"{a}.reshape(n * {rows // WIDTH}, {WIDTH})", (rows // WIDTH, WIDTH))
    elif not width:
        program.new(f"{a}.unsqueeze(0).squeeze(0)", (rows, 0))
    else:
        kind = draw(st.sampled_from(["flat", "columns", "column", "strided", "whole"]))
        if kind == "flat":
            program.new(f"{a}.contiguous().view(-1)", (rows * width, 0))
        elif kind == "columns" and width > 1:
            program.new(f"{a}[:, 1:]", (rows, width - 1))
        elif kind == "column":
            program.new(f"{a}[:, {draw(st.integers(0, width - 1))}]", (rows, 0))
        elif kind == "strided":
            program.new(f"{a}.t().contiguous().t()", (rows, width))
        else:
            program.new(f"{a}[:]", (rows, width))


def shapes(program: Program, draw: Any) -> None:
    a = pick(program, draw)
    shape = program.shapes[a]
    b = pick(program, draw, shape)
    form = draw(
        st.sampled_from(
            ["torch.reshape({}, {}.shape)", "torch.full({1}.shape, 0.25) + {0}",
             "torch.broadcast_to({}.sum(0), {}.shape)", "torch.zeros(size={1}.shape) - {0}",
             "{}.reshape({}.size())", "{0} + {1}.new_ones({1}.shape[:1] + tuple({1}.shape[1:]))"]
        )
    )  # fmt: skip
    program.new(f"({form.format(a, b)}).clamp(-9, 9)", shape)


def join(program: Program, draw: Any) -> None:
    a = pick(program, draw)
    rows, width = program.shapes[a]
    same = [n for n, (r, w) in program.shapes.items() if w == width and r + rows <= 16]
    if same:
        b = draw(st.sampled_from(same))
        program.new(f"torch.cat([{a}, {b}])", (rows + program.shapes[b][0], width))


def divide(program: Program, draw: Any) -> None:
    a = pick(program, draw)
    rows, width = program.shapes[a]
    if width >= 2 and width % 2 == 0:
        which = draw(st.sampled_from(["chunk(2, 1)", f"split({width // 2}, dim=1)"]))
        index = draw(st.integers(0, 1))
        program.new(f"{a}.{which}[{index}]", (rows, width // 2))
    elif rows % 2 == 0:
        program.new(f"{a}.chunk(2)[{draw(st.integers(0, 1))}]", (rows // 2, width))


def in_place(program: Program, draw: Any) -> None:
    a = pick(program, draw)
    b = pick(program, draw, program.shapes[a])
    form = draw(
        st.sampled_from(
            ["{}.add_({})", "{}.mul_(0.5)", "{}.sigmoid_()", "{}[0] = 0.75", "{}.copy_({})",
             "torch.ops.intarsia_tests.add_into({}, {})", "torch.ops.intarsia_tests.add_into({}, {})",
             "w.add_(0.125)", "torch.nn.functional.relu({}, inplace=True)"]
        )
    )  # fmt: skip
    program.lines.append(form.format(a, b))


def reduction(program: Program, draw: Any) -> None:
    a = pick(program, draw)
    rows, width = program.shapes[a]
    if width:
        form = draw(st.sampled_from(["{}.sum(1)", "{}.mean(dim=1)", "{}.max(dim=1).values"]))
        program.new(form.format(a), (rows, 0))
    else:
        program.new(f"{a} - {a}.mean()", (rows, 0))


def opaque(program: Program, draw: Any) -> None:
    a = pick(program, draw)
    rows, width = program.shapes[a]
    kind = draw(st.sampled_from(["square", "square", "scale", "topk2"]))
    if kind == "topk2" and width >= 2:
        name = program.new(f"torch.ops.intarsia_tests.topk2({a}, 2)", (0, 0))
        del program.shapes[name]
        program.shapes[f"{name}_0"] = (rows, 2)
        program.lines.append(f"{name}_0 = {name}[0] + {name}[1]")
    elif kind == "scale":
        by = draw(st.sampled_from([0.5, -0.5]))
        program.new(f"torch.ops.intarsia_tests.scale({a}, {by})", (rows, width))
    else:
        program.new(f"torch.ops.intarsia_tests.square({a}.clamp(-3, 3))", (rows, width))


STEPS: tuple[Step, ...] = (
    unary, unary, number, binary, binary, matmul, view, view, shapes, join, divide, in_place,
    in_place, reduction, opaque, opaque, opaque,
)  # fmt: skip


@st.composite
def programs(draw: Any) -> tuple[str, tuple[str, ...]]:
    """Return the source of a program and the rules to cut it with."""
    program = Program()
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=5, max_size=20)):
        step(program, draw)
    names = list(program.shapes)
    outputs = draw(st.lists(st.sampled_from(names), min_size=0, max_size=3))
    rules = draw(st.lists(st.sampled_from(RULES), min_size=1, max_size=5, unique=True))
    return program.source([*outputs, names[-1]]), tuple(rules)


def build(source: str) -> Callable[..., tuple[Tensor, ...]]:
    """Return the program as a function whose source lines can be found."""
    name = f"<random program {hash(source)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    scope: dict[str, Any] = {"torch": torch}
    exec(compile(source, name, "exec"), scope)
    function: Callable[..., tuple[Tensor, ...]] = scope["program"]
    return function


def arguments(n: int, seed: int) -> tuple[Tensor, ...]:
    """Return x, y, b and w."""
    x, y = randn(n, WIDTH, seed=seed), randn(n, WIDTH, seed=seed + 1)
    return x, y, randn(n, seed=seed + 2), randn(WIDTH, WIDTH, seed=seed + 3)


def in_eager(program: Callable[..., Any], call: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Run a program; None where torch itself refuses it (writes to overlapping memory)."""
    try:
        with torch.no_grad():
            return program(*call)
    except RuntimeError:
        return None


DYNAMIC = {"x": {0: "n"}, "y": {0: "n"}, "b": {0: "n"}}


def check(source: str, rules: tuple[str, ...], toys: ModuleType) -> None:
    """Compile a program, compare it with eager at several sizes and look at what crossed the cuts."""
    note(source)
    note(f"split_at = {list(rules)}")
    program = build(source)
    if in_eager(program, arguments(6, 0)) is None:
        reject()
    torch._dynamo.reset()
    toys.REQUESTS.clear()
    compiled = intarsia.compile(
        program,
        args=arguments(6, 0),
        dynamic=DYNAMIC,
        compilers=["recorder"],
        split_at=list(rules),
        check="always",
    )
    for n in (6, 2, 9):
        call = arguments(n, n)
        other = clone(call)
        expected = in_eager(program, other)
        assert expected is not None
        actual = compiled(*call)
        assert_same(actual, expected)
        assert_same(call, other, where="arguments")
    check_pieces(compiled, toys)


def check_pieces(compiled: Any, toys: ModuleType) -> None:
    """Assert that the report adds up, and that only tensors and ints cross a cut."""
    report = compiled.report
    assert no_fallbacks(report)
    assert len(piece_records(report)) == report.pieces
    assert report.distinct <= report.compiled_pieces <= report.pieces
    splitting = report.pieces - report.compiled_pieces
    assert splitting <= report.compiled_pieces + 1, "two splitting pieces have nothing between them"
    assert len(toys.REQUESTS) == report.compiler_calls
    for request in toys.REQUESTS:
        request.graph.graph.lint()
        for value in request.fake_inputs:
            assert isinstance(value, Tensor | torch.SymInt | int)
            assert not isinstance(value, bool)
        (output,) = request.graph.graph.find_nodes(op="output")
        assert isinstance(output.args[0], tuple)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(program=programs())
def test_a_random_program_gives_the_same_in_pieces(
    program: tuple[str, tuple[str, ...]], toys: ModuleType
) -> None:
    check(*program, toys)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@settings(
    max_examples=10_000,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(program=programs())
def test_ten_thousand_random_programs_give_the_same_in_pieces(
    program: tuple[str, tuple[str, ...]], toys: ModuleType
) -> None:
    check(*program, toys)
