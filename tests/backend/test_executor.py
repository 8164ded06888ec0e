"""Compile tasks on an executor: the same result, wherever the compiler ran."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest
import torch

import intarsia


class Model(torch.nn.Module):
    """Two equal linear pieces around a splitting op, and a third."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run both."""
        return torch.relu(self.second(torch.sigmoid(self.first(x))))


@pytest.fixture(params=["threads", pytest.param("processes", marks=pytest.mark.slow)])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """A pool that compiles: threads, or spawned processes."""
    if request.param == "threads":
        with ThreadPoolExecutor(2) as pool:
            yield pool
        return
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def compiled(executor: Executor, **settings: Any) -> Any:
    """Compile the model on an executor."""
    model, x = Model(), torch.randn(3, 8)
    made = intarsia.compile(
        model, args=(x,), dynamic={"x": {0: "n"}}, split_at=["torch.sigmoid"], executor=executor,
        compilers=["eager"], **settings,
    )  # fmt: skip
    for n in (1, 3, 9):
        y = torch.randn(n, 8)
        with torch.no_grad():
            torch.testing.assert_close(made(y), model(y))
    return made


def test_pieces_compiled_on_an_executor_give_eagers_results(executor: Executor) -> None:
    made = compiled(executor, strict=True)
    assert made.report.pieces == 3
    assert made.report.fallbacks == 0


class Broken(Executor):
    """An executor whose workers always die."""

    def submit(self, *_args: Any, **_kwargs: Any) -> Any:
        """Return a future that failed."""
        from concurrent.futures import Future
        from concurrent.futures.process import BrokenProcessPool

        future: Future[Any] = Future()
        future.set_exception(BrokenProcessPool("a worker died"))
        return future


def test_a_dead_executor_is_told_and_the_piece_compiles_here(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = compiled(Broken())
    assert made.report.compiled_pieces == 2
    lines = [r.getMessage() for r in caplog.records if r.name == "intarsia"]
    assert any("the executor failed" in line and "a worker died" in line for line in lines)
