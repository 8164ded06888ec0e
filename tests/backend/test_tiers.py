"""Packages in the background: put in as a whole, never after freeze, and gone on with by the next start."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import intarsia
from tests.processes import eventually

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("toys")]


class Model(torch.nn.Module):
    """Three distinct pieces around two splitting ops."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run them."""
        return torch.relu(self.second(torch.sigmoid(self.first(x)))).sigmoid() * 2


Start = Callable[..., Any]


@pytest.fixture
def start(tmp_path: Path, toys: ModuleType) -> Start:
    """Compile the model with the toy of two tiers, in the test's own cache."""
    torch.manual_seed(0)
    model = Model().eval()

    def compiled(
        artifact: str = "tiered", options: Any = (), compiler: str = "tiered", **settings: Any
    ) -> Any:
        chosen = {"folder": str(tmp_path), **dict(options)}
        return intarsia.compile(
            model, (torch.randn(3, 8),), dynamic={"x": {0: "n"}}, compilers=[compiler], name="m",
            split_at=["torch.sigmoid", ".sigmoid"], cache=str(tmp_path / "cache"), artifact=artifact,
            options={} if compiler == "eager" else {compiler: chosen}, **settings,
        )  # fmt: skip

    return compiled


def tiers(compiled: Any) -> set[str]:
    boxes = compiled._engine.dispatcher.boxes
    return {function.tier for box in boxes for function in box.functions.values()}


def right(compiled: Any) -> bool:
    for n in (1, 4):
        x = torch.randn(n, 8)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), compiled.module(x))
    return True


def test_packages_are_put_in_and_the_next_start_has_them(start: Start, tmp_path: Path) -> None:
    compiled = start(options={"seconds": 0.3})
    assert tiers(compiled) == {"quick"}
    assert right(compiled)
    assert compiled.wait_packages(60)
    assert tiers(compiled) == {"package"}
    assert right(compiled)
    assert compiled.report.counters["swap"] == 1
    priorities = (tmp_path / "niceness").read_text().split()
    assert len(priorities) == compiled.report.distinct == 3
    assert min(map(int, priorities)) > 0  # lower than ours
    again = start()
    assert tiers(again) == {"package"}
    assert (again.report.compiler_calls, again.report.bundle_reads) == (0, 1)
    assert again.wait_packages(0)
    assert right(again)
    assert len((tmp_path / "niceness").read_text().split()) == 3


def test_nothing_is_put_in_after_freeze_and_the_next_start_goes_on(start: Start) -> None:
    compiled = start(options={"seconds": 1.0})
    compiled.freeze()
    assert compiled.wait_packages(0)
    assert tiers(compiled) == {"quick"}
    again = start()
    assert again.report.compiler_calls == 0
    assert again.wait_packages(60)
    assert (tiers(compiled), tiers(again)) == ({"quick"}, {"package"})
    assert right(again)


def test_what_is_done_in_the_moment_of_freeze_comes_too_late(start: Start) -> None:
    compiled = start("quick")
    engine = compiled._engine
    boxes = engine.dispatcher.boxes
    compiled.freeze()
    assert not engine.swap({})
    assert engine.dispatcher.boxes is boxes
    other = start("quick")
    assert other._engine.swap({})
    assert other._engine.dispatcher.boxes is other._engine.uncovered.boxes


def test_a_conversion_is_noticed_after_packages_were_put_in(start: Start) -> None:
    compiled = start(options={"seconds": 0.2})
    assert right(compiled)
    assert compiled.wait_packages(60)
    assert tiers(compiled) == {"package"}
    assert right(compiled)
    compiled.module.second.half()
    with pytest.raises(intarsia.ContractError, match=r"second\.(weight|bias)"):
        compiled(torch.randn(4, 8))
    compiled.module.second.float()
    assert right(compiled)


def test_freeze_may_let_packages_in(start: Start) -> None:
    compiled = start(options={"seconds": 0.3})
    compiled.freeze(packages=True)
    assert compiled.wait_packages(60)
    assert tiers(compiled) == {"package"}


def test_deterministic_keeps_to_one_tier(start: Start, tmp_path: Path) -> None:
    first, again = start(deterministic=True), start(deterministic=True)
    assert first.wait_packages(0)
    assert tiers(first) == tiers(again) == {"quick"}
    assert not (tmp_path / "niceness").exists()


def test_asked_for_at_once_they_are_there_when_compile_returns(start: Start) -> None:
    compiled = start("package")
    assert tiers(compiled) == {"package"}
    assert right(compiled)


def test_what_cannot_be_packaged_stays_quick_says_so_and_is_not_tried_again(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "intarsia"):
        compiled = start(options={"refuse": True})
        assert compiled.wait_packages(60)
    (line,) = [r.getMessage() for r in caplog.records if "stay quick" in r.getMessage()]
    assert line.endswith("stay quick: no package of this")
    assert tiers(compiled) == {"quick"}
    assert start().wait_packages(60)
    assert len((tmp_path / "niceness").read_text().split()) == 3


def test_a_compiler_that_works_in_no_worker_stays_quick_and_says_so(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "intarsia"):
        compiled = start(compiler="homely")
    assert compiled.wait_packages(0)
    assert [r.getMessage().count("does not run in the workers") for r in caplog.records] == [1]
    assert tiers(compiled) == {"quick"}
    assert not (tmp_path / "niceness").exists()


def test_a_compiler_of_one_tier_is_found_where_packages_are_wanted(start: Start) -> None:
    settings: dict[str, Any] = {"compiler": "eager", "deterministic": True, "strict": True}
    first = start("package", **settings)
    assert first.report.compiler_calls == 3
    again = start("package", **settings, check="always")  # another plan of the same pieces
    assert (again.report.compiler_calls, again.report.hits) == (0, 3)
    assert right(again)


def test_a_worker_that_died_is_told_and_the_next_start_tries_again(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "intarsia"):
        compiled = start(options={"die": True})
        assert compiled.wait_packages(100)
    assert "got no package this time" in caplog.text
    assert tiers(compiled) == {"quick"}
    assert right(compiled)
    again = start()
    assert again.wait_packages(60)
    assert tiers(again) == {"package"}


def test_where_packages_cannot_be_loaded_none_is_made_and_one_line_says_so(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "intarsia"):
        compiled = start(options={"loads": False})
    assert compiled.wait_packages(0)
    assert [r.getMessage().count("nothing can be executed here") for r in caplog.records] == [1]
    assert not (tmp_path / "niceness").exists()
    assert tiers(compiled) == {"quick"}


def test_a_wait_ends_where_somebody_closes_the_workers(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from intarsia.compiling.workers import workers

    compiled = start(options={"seconds": 30.0})
    assert eventually((tmp_path / "niceness").exists, 60)  # one of them runs, two wait
    workers.close()
    assert compiled.wait_packages(20)
    assert tiers(compiled) == {"quick"}
    # Every short process ends so: that is nothing to warn of, and the next start goes on.
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    again = start()
    assert again.wait_packages(60)
    assert tiers(again) == {"package"}


def test_calls_and_rebinding_go_on_while_packages_are_put_in(start: Start) -> None:
    compiled = start(options={"seconds": 0.2})
    stop, errors = threading.Event(), []

    def call() -> None:
        x = torch.randn(5, 8)
        while not stop.is_set():
            try:
                with torch.no_grad():
                    torch.testing.assert_close(compiled(x), compiled.module(x))
            except Exception as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    while not compiled.wait_packages(0.01):
        compiled.rebind()
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert tiers(compiled) == {"package"}
    with torch.no_grad():
        compiled.module.first.weight = torch.nn.Parameter(torch.randn(8, 8))
    assert right(compiled)


def test_a_model_that_is_gone_is_let_go_and_its_packages_are_stopped(start: Start) -> None:
    compiled = start(options={"seconds": 30.0})
    packages, gone = compiled._engine.packages, weakref.ref(compiled._engine)
    assert not packages.wait(0)
    compiled.close()
    assert packages.wait(0)
    compiled = start(options={"seconds": 30.0})
    packages = compiled._engine.packages
    del compiled
    gc.collect()
    assert packages.wait(0)
    assert gone() is None
