"""`verify`: the first calls of each piece against eager, and the quarantine of what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import intarsia
from intarsia.config import load_config
from intarsia.host import Host
from intarsia.interfaces import Capabilities, CompileResult, CompilerSpec
from intarsia.runtime.verify import difference
from intarsia_eager.adaptor import EagerCompiler


class Wrong(EagerCompiler):
    """Compiles right, but for what the test says."""

    bad: Any = None
    boxed = False
    calls = 0

    def compile(self, request: Any) -> CompileResult:
        """Compile a piece, and spoil its results where the test wants it."""
        made = super().compile(request)
        bad, where = type(self).bad, (request.name.rpartition("_")[2], dict(request.box))

        def run(*inputs: Any) -> Sequence[Any]:
            type(self).calls += 1
            results = made.callable(*inputs)
            return bad(where, results, inputs) if bad is not None else results

        function: Any = (lambda inputs: run(*inputs)) if type(self).boxed else run
        if type(self).boxed:
            function.boxed_call = True
        return CompileResult(function, None, ())

    def factors(self) -> Mapping[str, str] | None:
        return None


class Plugin:
    intarsia_api_version = (1, 0)
    __name__ = "wrong"

    def intarsia_compilers(self) -> list[CompilerSpec]:
        """Bring the compiler."""
        able = Capabilities(dynamic_shapes=True, mutation=True, custom_ops=True, workers=False)
        return [CompilerSpec("wrong", "1", Wrong, capabilities=able)]


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))
        self.register_buffer("total", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        for layer in self.layers:
            x = torch.sigmoid(layer(x) * 2)
        self.total.add_(x.sum(0))
        return x + self.total


@pytest.fixture(autouse=True)
def _right(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("bad", None), ("boxed", False), ("calls", 0)):
        monkeypatch.setattr(Wrong, name, value)


def compiled(model: Model, **settings: Any) -> Any:
    chosen = {"verify": 2, "boxes": {"n": [4, 16]}, **settings}
    resolved = load_config(None, environ={}, compilers=["wrong", "eager"], split_at=["torch.sigmoid"],
                           cache=False, **chosen)  # fmt: skip
    return intarsia.compile(
        model, (torch.randn(2, 8),), dynamic={"x": {0: "n"}}, config=resolved,
        host=Host(resolved, extra_plugins=[Plugin()]),
    )  # fmt: skip


def pair() -> tuple[Model, Model]:
    torch.manual_seed(0)
    one, other = Model().requires_grad_(False), Model().requires_grad_(False)
    other.load_state_dict(one.state_dict())
    return one, other


def same(call: Any, model: Model, reference: Model, *sizes: int) -> None:
    for n in sizes:
        x = torch.randn(n, 8)
        torch.testing.assert_close(call(x), reference(x))
        torch.testing.assert_close(model.total, reference.total)


@pytest.mark.parametrize("boxed", [False, True])
def test_what_is_right_is_compared_so_often_and_then_runs_alone(boxed: bool) -> None:
    Wrong.boxed = boxed
    model, reference = pair()
    call = compiled(model, uncovered="error")
    same(call, model, reference, 2, 3, 2, 8, 9, 8)
    assert "quarantine" not in call.report.counters
    assert not any(box.verification for box in call._engine.dispatcher.boxes)
    assert Wrong.calls == 6 * 4
    same(call, model, reference, 2, 8)


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize("piece", ["0", "2", "4", "6"])
def test_a_wrong_number_is_caught_at_the_first_call(piece: str, boxed: bool) -> None:
    def bad(where: Any, results: Any, inputs: Any) -> Any:
        return [r * 1.01 for r in results] if where[0] == piece else results

    Wrong.bad, Wrong.boxed = bad, boxed
    model, reference = pair()
    call = compiled(model, dedupe=False)
    same(call, model, reference, 2, 3, 2, 8, 2)
    assert call.report.counters["quarantine"] == 2  # one for each box
    (reason, *_) = call.report.reasons
    assert f"piece_{piece}" in reason
    assert "wrong differs from eager in output 0" in reason
    assert "0.01" in reason


def test_equal_pieces_go_together() -> None:
    Wrong.bad = lambda where, results, inputs: [r + 1 for r in results]
    model, reference = pair()
    call = compiled(model, boxes={})
    same(call, model, reference, 2, 3)
    before = Wrong.calls
    same(call, model, reference, 4, 5)
    assert Wrong.calls == before


def test_only_the_box_that_differs_is_quarantined() -> None:
    def bad(where: Any, results: Any, inputs: Any) -> Any:
        return [r + 1 for r in results] if where[1]["n"] == (5, 16) else results

    Wrong.bad = bad
    model, reference = pair()
    call = compiled(model)
    same(call, model, reference, 2, 8, 2, 8, 2, 8)
    before = Wrong.calls
    same(call, model, reference, 8)
    assert Wrong.calls == before
    same(call, model, reference, 2)
    assert Wrong.calls == before + 4


@pytest.mark.parametrize(
    ("spoil", "shown"),
    [
        (lambda r: torch.full_like(r, float("nan")), "no finite numbers"),
        (lambda r: r.double(), "float64"),
        (lambda r: r[:1], r"\(1, 8\)"),
    ],
)
def test_other_defects_are_named(spoil: Any, shown: str) -> None:
    Wrong.bad = lambda where, results, inputs: [spoil(r) for r in results]
    model, reference = pair()
    call = compiled(model, check="none")
    same(call, model, reference, 2, 3)
    assert any(__import__("re").search(shown, reason) for reason in call.report.reasons)


def test_a_wrong_write_is_caught_and_mended() -> None:
    def bad(where: Any, results: Any, inputs: Any) -> Any:
        for value in inputs:
            if isinstance(value, Tensor) and value.shape == (8,) and where[0] == "6":
                value.add_(5)
        return results

    Wrong.bad = bad
    model, reference = pair()
    call = compiled(model, dedupe=False)
    same(call, model, reference, 2, 3, 2)
    assert "quarantine" in call.report.counters


def test_through_torch_compile() -> None:
    Wrong.bad = lambda where, results, inputs: [r * 1.5 for r in results]
    model, reference = pair()
    settings = {"compilers": ["wrong", "eager"], "verify": 1, "cache": False}
    host = Host(load_config(None, environ={}, **settings), extra_plugins=[Plugin()])
    call = torch.compile(model, backend="intarsia", options={**settings, "host": host})
    with torch.no_grad():
        same(call, model, reference, 2, 2)
    assert intarsia.reports()[-1].counters["quarantine"]


@pytest.mark.parametrize(
    ("found", "expected", "right"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0001]), True),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.1]), False),
        (torch.tensor([float("nan"), 1.0]), torch.tensor([float("nan"), 1.0]), True),
        (torch.tensor([float("inf"), 1.0]), torch.tensor([float("nan"), 1.0]), False),
        (torch.tensor([1.0, 1.0]), torch.tensor([float("inf"), 1.0]), False),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), False),
        (torch.tensor([True]), torch.tensor([True]), True),
        (torch.empty(0, 3), torch.empty(0, 3), True),
        (torch.zeros(2), torch.zeros(2), True),
        (torch.tensor([1 + 1j]), torch.tensor([1 - 1j]), False),
        (3, 3, True),
        (3, 4, False),
        (3, 3.0, False),
    ],
)
def test_what_counts_as_a_difference(found: Any, expected: Any, right: bool) -> None:
    error, reason = difference(found, expected)
    assert (not error and not reason) == right


@pytest.mark.parametrize(("spoilt", "count"), [(0, 1), (1, 0), (2, 1)])
def test_memory_that_a_piece_only_allocates_is_not_compared(spoilt: int, count: int) -> None:
    class Filled(torch.nn.Module):
        """An operator between the pieces writes to what the first one allocates."""

        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            out = torch.empty_like(y).view(-1, 8)
            done = torch.empty_like(y)
            done.copy_(y)
            torch.sigmoid(y, out=out)
            return out + done

    def bad(where: Any, results: Sequence[Any], inputs: Sequence[Any]) -> Sequence[Any]:
        if where[0] == "0":
            results[spoilt].fill_(99)  # of y, out, done: what is in `out` by now, nobody knows
        return results

    Wrong.bad = staticmethod(bad)
    call = compiled(Filled())
    x = torch.randn(4, 8)
    torch.testing.assert_close(call(x), x.mul(2).sigmoid() + x * 2)
    assert call.report.counters.get("quarantine", 0) == count
