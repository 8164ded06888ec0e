"""Where kernels index with 32 bits, no artifact is called with a tensor that has too many elements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from attrs import define
from hypothesis import given
from hypothesis import strategies as st

from intarsia.boxes_text import UNBOUNDED
from intarsia.capture.graph import Graph
from intarsia.capture.trace import capture
from intarsia.compiling.boxes import PlannedBox
from intarsia.compiling.indexing import INDEXED, MOST_ELEMENTS, follows, indexable
from intarsia.compiling.soundness import compile_soundly
from intarsia.compiling.transport import make_request
from intarsia.errors import CompileRejected
from intarsia.interfaces import CompileRequest, CompileResult, PieceSignature, TensorInfo

BOTH = {"x": {0: "batch", 1: "length"}}


def wide(x: torch.Tensor) -> torch.Tensor:
    """An intermediate result is the largest tensor: 400 elements for each of the input's 100."""
    return x.repeat(1, 4).relu().sum(-1)


def deep(x: torch.Tensor) -> torch.Tensor:
    """The same over three dimensions."""
    return x.repeat(1, 1, 4).relu().sum(-1)


def graph_of(model: Callable[..., Any], x: torch.Tensor, dynamic: Mapping[str, Any]) -> Graph:
    return capture(model, (x,), {}, dynamic=dynamic, ranges={}, fixed={})


def general(*names: str) -> PlannedBox:
    return PlannedBox(dict.fromkeys(names, (1, UNBOUNDED)), "general")


def test_a_box_without_an_end_gets_one() -> None:
    graph = graph_of(wide, torch.randn(3, 100), {"x": {0: "rows"}})
    cut = indexable(graph, general("rows"), "cuda")
    assert cut.box == {"rows": (1, MOST_ELEMENTS // 400)}
    assert cut.test is None
    assert indexable(graph, general("rows"), "cpu") == general("rows")


@pytest.mark.parametrize(("low", "high"), [(1, 4096), (10**8, 10**9), (10**8, 10**8)])
def test_what_the_compiler_can_decide_stays(low: int, high: int) -> None:
    """All of the box can be indexed, or none of it."""
    graph = graph_of(wide, torch.randn(3, 100), {"x": {0: "rows"}})
    asked = PlannedBox({"rows": (low, high)}, "explicit")
    assert indexable(graph, asked, "cuda") == asked


GRAPH: list[Graph] = []


@given(st.integers(1, 2**34), st.integers(1, 2**34))
def test_several_sizes_are_bounded_together(batch: int, length: int) -> None:
    if not GRAPH:
        GRAPH.append(graph_of(deep, torch.randn(3, 5, 100), BOTH))
    cut = indexable(GRAPH[0], general("batch", "length"), "cuda")
    alone = MOST_ELEMENTS // 400
    assert cut.box == {"batch": (1, alone), "length": (1, alone)}
    assert cut.holds({"batch": batch, "length": length}) == (
        batch * length * 400 <= MOST_ELEMENTS and max(batch, length) <= alone
    )


@define
class Indexes:
    """A compiler that indexes tensors of `factor` times the input's elements with 32 bits."""

    factor: int
    most: int = INDEXED

    def compile(self, request: CompileRequest) -> CompileResult:
        """Note what it relies on, as Inductor does."""
        torch._check(request.fake_inputs[0].numel() * self.factor <= self.most)
        return CompileResult(lambda *given: given, None, (), "")


def request(device_type: str, **box: tuple[int, int]) -> CompileRequest:
    module = torch.fx.symbolic_trace(deep)
    module.graph.output_node().args = ((module.graph.output_node().args[0],),)
    x = TensorInfo("float32", ("batch", "length", 100), ("100*length", 100, 1), "cpu")
    y = TensorInfo("float32", ("batch", "length"), ("length", 1), "cpu")
    made = PieceSignature(inputs=(x,), outputs=(y,), box=box)
    return make_request(
        module, made, device_type=device_type, device=None, name="p", kind="compiled"
    )


OPEN = (1, MOST_ELEMENTS // 400)


@pytest.mark.parametrize(("factor", "most"), [(4, INDEXED), (1, INDEXED), (5, INDEXED)])
def test_a_compiler_may_rely_on_it(factor: int, most: int) -> None:
    compile_soundly(Indexes(factor, most), request("cuda", batch=OPEN, length=OPEN))


@pytest.mark.parametrize(
    ("factor", "most", "device_type"),
    [(6, INDEXED, "cuda"), (4, MOST_ELEMENTS - 1, "cuda"), (4, INDEXED, "cpu")],
)
def test_and_on_nothing_else(factor: int, most: int, device_type: str) -> None:
    with pytest.raises(CompileRejected, match="it relied on"):
        compile_soundly(Indexes(factor, most), request(device_type, batch=OPEN, length=OPEN))


def test_a_padded_row_follows_from_the_counts() -> None:
    """Inductor pads the mask of an attention: 8 * ceil(length / 8) for each row."""
    import sympy
    from torch.utils._sympy.functions import FloorDiv

    b, n = sympy.symbols("b n", integer=True, positive=True)
    padded = 8 * FloorDiv(n + 7, 8)
    condition = sympy.Le(b * n * padded + n, padded + INDEXED)
    counts, ranges = [97 * b * n, b * n**2], {b: (2, 8302127), n: (2, 28377)}
    assert follows(condition, counts, ranges)
    for batch, length in ((8302127, 2), (2, 28377), (20, 8900), (8302127, 8)):
        if all(c.subs({b: batch, n: length}) <= MOST_ELEMENTS for c in counts):
            assert condition.subs({b: batch, n: length}) == True  # noqa: E712 (sympy's own)
    assert not follows(condition, counts[:1], ranges)
    assert follows(sympy.Le(b * n, INDEXED), [b**2 * n, b * n], ranges)  # one is no help
    assert follows(sympy.Le(97 * b, INDEXED), counts, ranges)  # and n is lowest
    assert not follows(sympy.Le(sympy.Integer(3) * b, 99), counts, ranges)
    much = {b: (2, 1 << 40), n: (2, 28377)}  # padding, for short rows
    assert not follows(condition, counts[1:], much)
    assert not follows(sympy.Ge(b * n * padded, INDEXED), counts, ranges)
    assert not follows(sympy.Le(b * n - n**2, INDEXED), counts, ranges)
