"""The passes "remove-noops" and "coalesce-slices"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import intarsia


class Model(torch.nn.Module):
    def __init__(self, run: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.run = run
        self.register_buffer("held", torch.zeros(6))

    def forward(self, x: Tensor) -> Any:
        """Run it."""
        return self.run(x)


def compiled(run: Callable[[Tensor], Any], compiler: str = "eager") -> Any:
    """Compile a function of [n, 6] with both passes."""
    return intarsia.compile(
        Model(run), (torch.randn(3, 6),), dynamic={"x": {0: "n"}}, compilers=[compiler], cache=False,
        passes={"enable": ["coalesce-slices", "remove-noops"]}, strict=True,
    )  # fmt: skip


def count(call: Any, name: str) -> int:
    """Return how often a pass matched."""
    return next((t.matches for t in call.report.passes if t.name == name), 0)


def same(call: Any, run: Callable[[Tensor], Any]) -> None:
    """Compare with eager at several sizes."""
    for n in (1, 2, 5):
        x = torch.randn(n, 6)
        torch.testing.assert_close(call(x), run(x))


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
@pytest.mark.parametrize(
    ("run", "matches"),
    [
        (lambda x: (x + 1).view(x.shape) * 2, 1),
        (lambda x: (x + 1).reshape(-1, 6) * 2, 1),
        (lambda x: (x + 1)[:, :] * 2, 2),
        (lambda x: (x + 1)[:, 0:6] * 2, 1),
        (lambda x: (x + 1).permute(0, 1) * 2, 1),
        (lambda x: (x + 1).clone() * 2, 1),
        (lambda x: (x + 1).t().t() * 2, 0),
        (lambda x: (x + 1).narrow(1, 0, 5) * 2, 0),
        (lambda x: (x + 1).view(-1, 3) * 2, 0),
        (lambda x: (x + 1).to(torch.float64) * 2, 0),
    ],
)
def test_operators_that_do_nothing_go(run: Any, matches: int, compiler: str) -> None:
    call = compiled(run, compiler)
    assert count(call, "remove-noops") >= min(matches, 1)
    if not matches:
        assert count(call, "remove-noops") == 0
    same(call, run)


def test_results_stay_tensors_of_their_own() -> None:
    def run(x: Tensor) -> Any:
        y = x + 1
        return x.clone(), y.clone(), y

    call = compiled(run)
    x = torch.randn(2, 6)
    one, two, three = call(x)
    assert count(call, "remove-noops") == 0
    one.zero_()
    two.zero_()
    torch.testing.assert_close(three, x + 1)
    assert x.abs().sum() > 0


def test_a_copy_stays_where_something_is_written() -> None:
    def run(x: Tensor) -> Tensor:
        y = x + 1
        z = y.clone()
        y.mul_(3)
        return z + y

    same(compiled(run), run)


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_slices_that_cover_a_tensor_become_a_split(compiler: str) -> None:
    def run(x: Tensor) -> Tensor:
        y = x * 2
        a, b, c, again = y[:, :2], y[:, 2:5], y[:, 5:], y[:, -1:]
        return a.sum(1) + b.sum(1) * c.sum(1) + again.sum(1)

    call = compiled(run, compiler)
    assert count(call, "coalesce-slices") == 4
    same(call, run)


@pytest.mark.parametrize(
    "run",
    [
        lambda x: x[:, :2].sum(1) + x[:, 3:].sum(1),
        lambda x: x[:, :4].sum(1) + x[:, 2:].sum(1),
        lambda x: x[:, ::2].sum(1) + x[:, 1::2].sum(1),
        lambda x: x[:1].sum() + x[1:].sum(),
    ],
    ids=["gap", "overlap", "step", "dynamic"],
)
def test_other_slices_stay(run: Any) -> None:
    call = compiled(run)
    assert count(call, "coalesce-slices") == 0
    same(call, run)
