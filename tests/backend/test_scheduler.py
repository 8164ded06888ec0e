"""The scheduler: the cache before the compilers, one compile among many processes, workers where they pay."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import intarsia
from intarsia.cold import ColdCompile
from intarsia.compiling import making
from intarsia.compiling.scheduler import Scheduler
from intarsia.compiling.tasks import Task
from intarsia.compiling.workers import workers
from intarsia.config import load_config
from intarsia.interfaces import CompileResult
from intarsia.job import Job
from tests.faults.sabotage import Model, compilers, needs_linux, warnings

pytestmark = [pytest.mark.timeout(240), pytest.mark.usefixtures("saboteur"), needs_linux]


class Shelf:
    """A cache of pieces in memory, which several schedulers may share."""

    def __init__(self) -> None:
        self.kept: dict[Any, tuple[bytes, Any]] = {}
        self.said: list[str] = []
        self.claims: dict[Any, threading.Lock] = {}
        self._lock = threading.Lock()

    def find(self, task: Any, spec: Any, made: Any, signature: Any) -> Any:
        """Load a piece."""
        self.said.append("find")
        kept = self.kept.get(self.key(task, spec))
        if kept is None:
            return None
        return CompileResult(made.compiler.load(kept[0], signature, None), *kept)

    def keep(self, task: Any, spec: Any, result: Any) -> None:
        """Keep a piece."""
        self.said.append("keep")
        assert self.claims[self.key(task, spec)].locked()
        assert self.key(task, spec) not in self.kept, "compiled twice"
        self.kept[self.key(task, spec)] = (result.artifact, result.needs)

    @contextlib.contextmanager
    def claim(self, task: Any, spec: Any, wait: float | None = None) -> Iterator[bool]:
        """Lead, or wait for who does."""
        self.said.append(f"claim {wait}")
        with self._lock:
            lock = self.claims.setdefault(self.key(task, spec), threading.Lock())
        leads = lock.acquire(blocking=wait != 0)
        try:
            yield leads
        finally:
            if leads:
                lock.release()

    def key(self, task: Any, spec: Any) -> Any:
        """Return what equal pieces share."""
        return (task.canonical.digest, str(task.canonical.box(task.box)), spec.name)

    @property
    def is_free(self) -> bool:
        """Whether nobody leads."""
        return not any(lock.locked() for lock in self.claims.values())


def planned(pieces: int, how: str = "", once: object = "", **settings: Any) -> Any:
    """Return a function that makes a scheduler for a model, and the tasks."""
    torch.manual_seed(0)
    chosen = {"compilers": ["saboteur", "eager"], "workers": 0, **settings}
    resolved = load_config(
        None, split_at=["torch.sigmoid"], options={"saboteur": {"how": how, "once": str(once)}},
        **chosen,
    )  # fmt: skip
    job = Job(Model(pieces), (torch.randn(3, 8),), {}, {"x": {0: "n"}}, resolved, None, ())
    cold = ColdCompile(job)
    graph = cold._capture({})
    split = cold.pipeline.split(graph, {})
    boxes = cold.pipeline.boxes(graph, None)
    tasks = [task for box, _ in boxes for task in cold.pipeline.tasks(split, box)]

    def scheduler(shelf: Any, **more: Any) -> Scheduler:
        return Scheduler(job.host, job.resolved, job.events, "cpu", None, pieces=shelf, **more)

    return scheduler, tasks


def runs(outcome: Any, task: Task) -> None:
    """Check that what was compiled runs as the piece does."""
    torch.manual_seed(1)
    shapes = [[5 if isinstance(s, str) else s for s in i.shape] for i in task.canonical.inputs]
    inputs = [torch.randn(shape) for shape in shapes]
    with torch.no_grad():
        expected = torch.fx.Interpreter(task.piece.module).run(*inputs)
        torch.testing.assert_close(tuple(outcome.result.run(inputs)), tuple(expected))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_piece_is_looked_up_claimed_looked_up_compiled_and_kept(workers: int) -> None:
    scheduler, (task,) = planned(1, workers=workers)
    shelf = Shelf()
    cold = scheduler(shelf)
    (outcome,) = cold.run([task])
    assert shelf.said == ["find", "claim 0", "find", "keep"]
    assert (cold.calls, cold.hits) == (1, 0)
    assert [a.outcome for a in outcome.attempts] == ["compiled"]
    runs(outcome, task)
    assert shelf.is_free


def test_a_hit_asks_nobody_and_builds_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, tasks = planned(2)
    shelf = Shelf()
    scheduler(shelf).run(tasks)
    shelf.said.clear()
    monkeypatch.setattr(making.Maker, "open", None)
    warm = scheduler(shelf)
    outcomes = warm.run(tasks)
    assert shelf.said == ["find", "find"]
    assert (warm.calls, warm.hits, warm.fallbacks) == (0, 2, 0)
    assert [[a.outcome for a in o.attempts] for o in outcomes] == [["cached"], ["cached"]]
    for outcome, task in zip(outcomes, tasks, strict=True):
        runs(outcome, task)


def test_without_a_cache_nothing_is_claimed() -> None:
    scheduler, tasks = planned(2)
    made = scheduler(None, wants_artifacts=False)
    outcomes = made.run(tasks)
    assert (made.calls, made.hits) == (2, 0)
    assert all(o.result.artifact is None for o in outcomes)


def test_what_another_process_compiles_is_waited_for_last() -> None:
    scheduler, tasks = planned(3)
    shelf, made = Shelf(), None
    made = scheduler(shelf)
    first = max(tasks, key=lambda t: len(t.piece.nodes))
    spec = made.host.compiler("saboteur")
    key = shelf.key(first, spec)
    shelf.claims[key] = threading.Lock()
    shelf.claims[key].acquire()  # another process leads
    done = threading.Thread(target=made.run, args=(tasks,))
    done.start()
    while shelf.said.count("keep") < 2:  # the other two are done meanwhile
        assert done.is_alive()
    (artifact, *_), *_ = shelf.kept.values()
    other = scheduler(None)
    (outcome,) = other.run([first])
    shelf.kept[key] = (outcome.result.artifact, outcome.result.needs)
    shelf.claims[key].release()
    done.join(30)
    assert not done.is_alive()
    assert (made.calls, made.hits) == (2, 1)
    assert shelf.said[-2:] == ["claim None", "find"]
    assert artifact


@pytest.mark.parametrize("count", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_schedulers_that_share_a_cache_compile_each_piece_once(count: int, tmp_path: Path) -> None:
    once = tmp_path / "once"
    shelf = Shelf()
    schedulers = []
    for _ in range(3):
        made, tasks = planned(6, once=once, workers=count)
        schedulers.append((made(shelf), tasks))
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda pair: pair[0].run(pair[1]), schedulers))
    assert len(once.read_text().splitlines()) == 6
    assert sum(s.calls for s, _ in schedulers) == 6
    assert sum(s.hits for s, _ in schedulers) == 12
    assert shelf.is_free


def test_a_claim_is_let_go_where_a_compiler_fails() -> None:
    scheduler, (task,) = planned(1, "raise")
    shelf = Shelf()
    made = scheduler(shelf)
    (outcome,) = made.run([task])
    assert [a.outcome for a in outcome.attempts] == ["failed", "compiled"]
    assert shelf.is_free
    assert [key[-1] for key in shelf.kept] == ["eager"]
    assert made.calls == 2


@pytest.mark.parametrize("count", [0, 1])
def test_an_interrupted_compile_lets_go_of_everything(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, tasks = planned(2, workers=count)
    shelf = Shelf()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shelf, "keep", interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            scheduler(shelf).run(tasks)
    assert shelf.is_free, caught.traceback  # which keeps alive what was not let go
    assert len(scheduler(None).run(tasks)) == 2


def test_this_process_compiles_too_where_workers_are_for_speed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(making, "usable_cores", lambda: 2)
    shelf, once = Shelf(), tmp_path / "once"
    with workers.warm(1):
        workers.compiling(1).submit(os.getpid).result()
        scheduler, tasks = planned(9, "slow", once, workers=None)
        made = scheduler(shelf)
        outcomes = made.run(tasks)
    pids = [line.split()[0] for line in once.read_text().splitlines()]
    assert len(pids) == 9 == made.calls
    assert set(pids) > {str(os.getpid())}
    assert len(set(pids)) == 2
    for outcome, task in zip(outcomes, tasks, strict=True):
        runs(outcome, task)


def test_few_tasks_start_no_worker_and_light_ones_never_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(making, "usable_cores", lambda: 8)
    workers.close()
    scheduler, tasks = planned(4, workers=None)
    scheduler(None).run(tasks)
    assert workers.live() == 0
    for setting in (None, 2):
        scheduler, tasks = planned(12, workers=setting, compilers=["eager"])
        scheduler(None).run(tasks)
        assert workers.live() == 0


def test_a_worker_that_was_started_in_another_environment_is_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    once = tmp_path / "once"
    monkeypatch.setenv("SABOTEUR_MODE", "old")
    with workers.warm(1):
        first = workers.compiling(1).submit(os.getpid).result()
        monkeypatch.setenv("SABOTEUR_MODE", "new")
        scheduler, tasks = planned(2, once=once, workers=1)
        made = scheduler(None)
        made.run(tasks)
    pids = {int(line.split()[0]) for line in once.read_text().splitlines()}
    assert len(pids) == 1
    assert not pids & {first, os.getpid()}
    assert made.fallbacks == 0
    assert not warnings(caplog, "")


def test_a_worker_that_would_compile_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    once = tmp_path / "once"
    mine = f"only in {os.getpid()}"
    monkeypatch.setenv("SABOTEUR_FACTOR", mine)  # not declared, and yet a factor
    scheduler, tasks = planned(2, once=once, workers=1)
    made = scheduler(None)
    made.run(tasks)
    assert {line.split()[0] for line in once.read_text().splitlines()} == {str(os.getpid())}
    assert made.fallbacks == 0
    (line,) = warnings(caplog, "a worker would make something else")
    assert f"compiler saboteur mode is 'not here', not '{mine}'" in line
    workers.close()  # nobody else wants one with that variable


def test_a_compiler_that_leaves_no_artifact_compiles_here() -> None:
    scheduler, (task,) = planned(1, "dumb", workers=1)
    (outcome,) = scheduler(None).run([task])
    assert outcome.compiler == "saboteur"
    runs(outcome, task)


def test_a_worker_compiles_for_as_many_threads_as_this_process_has() -> None:
    from intarsia.compiling.ambient import ambient_state, take_on

    state = {**ambient_state(), "threads": 3, "matmul": "high", "deterministic": True}
    before = ambient_state()
    try:
        take_on(state)
        assert ambient_state() == state
    finally:
        take_on(before)
    assert ambient_state() == before


def test_torch_compile_compiles_in_workers(tmp_path: Path) -> None:
    once = tmp_path / "once"
    options = {
        "compilers": ["saboteur"], "split_at": ["torch.sigmoid"], "workers": 1, "strict": True,
        "options": {"saboteur": {"once": str(once)}},
    }  # fmt: skip
    model, x = Model(1), torch.randn(3, 8)
    made = torch.compile(model, backend="intarsia", options=options)
    with torch.no_grad():
        torch.testing.assert_close(made(x), model(x))
    assert str(os.getpid()) not in once.read_text().split()
    assert len(once.read_text().splitlines()) == 1


def test_an_executor_of_the_user_fills_the_cache(tmp_path: Path) -> None:
    shelf, once = Shelf(), tmp_path / "once"
    with ThreadPoolExecutor(2) as executor:
        scheduler, tasks = planned(3, once=once, executor=executor)
        made = scheduler(shelf)
        outcomes = made.run(tasks)
    assert len(shelf.kept) == 3 == made.calls
    assert shelf.is_free
    for outcome, task in zip(outcomes, tasks, strict=True):
        runs(outcome, task)


def test_the_report_has_what_came_of_each_attempt() -> None:
    model, x = Model(1), torch.randn(3, 8)
    made = intarsia.compile(model, (x,), compilers=["eager"], split_at=["torch.sigmoid"])
    assert compilers(made) == [["eager compiled"]]


class Methods(torch.nn.Module):
    """A piece that calls methods of values that it computes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        return (x + 1).view(-1).sin().reshape(x.shape) * 2


@pytest.mark.timeout(120)
def test_a_worker_keeps_a_piece_that_calls_methods(tmp_path: Any) -> None:
    compiled = intarsia.compile(
        Methods(), (torch.randn(3, 8),), compilers=["inductor"], strict=True, workers=1,
        artifact="quick", cache=str(tmp_path),
    )  # fmt: skip
    x = torch.randn(3, 8)
    torch.testing.assert_close(compiled(x), compiled.module(x))
    (box,) = compiled._engine.dispatcher.boxes
    assert all(function.artifact for function in box.functions.values())
