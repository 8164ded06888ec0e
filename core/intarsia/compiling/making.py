"""How a missed task gets compiled: in this process, by the worker pool, or on the user's executor."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from typing import Any

from attrs import define, evolve, field

from intarsia.cache.journal import Crash
from intarsia.compiling.planner import Plan, plan, usable_cores
from intarsia.compiling.remote import OwnWorkers, Remote, UsersExecutor, give_up, worth_a_worker
from intarsia.compiling.scheduler import Asking, Scheduler, Work
from intarsia.compiling.soundness import compile_soundly
from intarsia.compiling.tasks import Task, bakes, journal_key
from intarsia.compiling.transport import make_request, next_request
from intarsia.compiling.worker_jobs import Unfit, settings_for
from intarsia.compiling.worker_process import NoWorker, WorkerDied, WorkerTimeout
from intarsia.compiling.workers import workers
from intarsia.errors import CompileFailed, CompileRejected
from intarsia.interfaces import CompileRequest, CompileResult, PassRun

Made = tuple[CompileResult, float | None]
"""A compiled piece, and the seconds that it took in another process."""


def made_plan(scheduler: Scheduler, works: Sequence[Work]) -> Plan:
    """Return who compiles what the cache did not have."""
    if (
        os.name != "posix"
    ):  # workers are sessions of their own, so that all they started ends with them
        return Plan(0)
    asked = [work.asking for work in works if work.asking is not None]
    tasks = sum(worth_a_worker(at.task, at.spec, scheduler.host) for at in asked)
    setting = scheduler.resolved.config.workers
    return plan(tasks, setting, cores=usable_cores(), live=workers.live())


@define
class Maker:
    """Gets the tasks of one compile compiled.

    Attributes:
        plan: who compiles.
        remote: where tasks may go besides this process, or None.
    """

    scheduler: Scheduler
    plan: Plan = Plan(0)
    remote: Remote | None = None
    told: set[str] = field(factory=set)
    _settings_of: dict[str, dict[str, Any]] = field(factory=dict, init=False)

    @classmethod
    @contextlib.contextmanager
    def open(cls, scheduler: Scheduler, works: Sequence[Work]) -> Iterator[Maker]:
        """Decide who compiles, and hold the workers while they are needed."""
        config = scheduler.resolved.config
        if config.executor is not None:
            yield cls(scheduler, Plan(0, here=False), UsersExecutor(config.executor))
            return
        maker = cls(scheduler, made_plan(scheduler, works))
        if maker.plan.workers:
            maker.remote = maker.own_workers(maker.plan.workers)
        with workers.held():
            yield maker

    def own_workers(self, count: int) -> OwnWorkers:
        """Return the worker pool with room for so many workers."""
        config = self.scheduler.resolved.config
        pool = workers.compiling(count, bounded=config.workers is None)
        return OwnWorkers(pool, self.scheduler.host, config.compile_timeout)

    # -- elsewhere

    def goes_out(self, work: Work) -> bool:
        """Say whether a task is to leave this process."""
        at = _at(work)
        return self.remote is not None and self.remote.takes(at.task, at.spec)

    def send(self, work: Work) -> bool:
        """Send a task to where it is to be compiled; says whether it has a form that travels."""
        assert self.remote is not None
        at = _at(work)
        try:
            data = self._request_to_send(at).to_bytes()
        except CompileFailed as error:
            self._tell(at, f"{error}; it is compiled in this process")
            return False
        try:
            work.sent = self.remote.send(at.task, at.spec, data, self._settings(at))
        except Exception as error:  # of the user's executor, or the workers were closed meanwhile
            self._tell_of(self.remote, at, error)
            return False
        return True

    def _settings(self, at: Asking) -> dict[str, Any]:
        own = self.scheduler
        if at.spec.name not in self._settings_of:
            made = settings_for(at.spec, own.host, own.device, own.resolved)
            self._settings_of[at.spec.name] = made
        return self._settings_of[at.spec.name]

    def _request_to_send(self, at: Asking) -> CompileRequest:
        # Without fake inputs: they do not travel, the other process makes its own.
        return CompileRequest(
            graph=at.task.piece.module, fake_inputs=(), signature=at.signature,
            device_type=self.scheduler.device_type, device=self.scheduler.device, name=at.task.name,
            kind=at.task.piece.kind, key=at.task.canonical.digest, hints=dict(at.task.hints),
            **self._passes(at.task, self.scheduler.resolved.config.compile_timeout),
        )  # fmt: skip

    def _passes(self, task: Task, deadline: float | None = None) -> dict[str, Any]:
        plan = self.scheduler.passes
        return {} if plan is None else plan.for_request(task.box, deadline)

    def first_done(self, sent: Sequence[Work]) -> Work | None:
        """Return a task whose answer is there, or None."""
        return next((work for work in sent if work.sent.done()), None)

    def taken_back(self, sent: Sequence[Work]) -> Work | None:
        """Take back a task that no worker has begun, if this process compiles too."""
        if not self.plan.here:
            return None
        for work in sent:
            if work.sent.cancel():
                work.sent = None
                return work
        return None

    def wait(self, sent: Sequence[Work]) -> Work:
        """Wait for an answer."""
        done, _ = wait([work.sent for work in sent], return_when=FIRST_COMPLETED)
        return next(work for work in sent if work.sent in done)

    def give_up(self, work: Work) -> None:
        """Stop a task that nobody will ask for any more."""
        if work.sent is not None and not work.sent.done():
            give_up(work.sent)

    # -- the result

    def result(self, work: Work) -> Made:
        """Return what the compiler that a task is at makes of it.

        Raises:
            CompileRejected: it declines.
            Exception: whatever it raises, or what became of its workers.
        """
        self.scheduler.calls += 1
        if work.sent is None and not self.plan.here and self.goes_out(work):
            self.send(work)
        if work.sent is not None:
            return self._answer(work)
        return self._here(work), None

    def _answer(self, work: Work) -> Made:
        at, sent = _at(work), work.sent
        work.sent = None
        try:
            answer = sent.result()
        except CompileRejected:
            raise
        except Exception as error:
            if isinstance(error, WorkerTimeout | WorkerDied) and "in a pass, at" in error.why:
                work.passes_left_out = f"a worker did not survive it: {error.what}: {error.why}"
            self._raise_if_final(at, error)
            return self._here(work), None
        return self._loaded(work, answer)

    def _raise_if_final(self, at: Asking, error: Exception) -> None:
        """Raise what a compiler did in a worker of ours; otherwise say why it is compiled here."""
        assert self.remote is not None
        isolated = self.remote.isolates or isinstance(error, WorkerDied | WorkerTimeout)
        if isolated and not isinstance(error, Unfit | NoWorker):
            raise error
        self._tell_of(self.remote, at, error)

    def _tell_of(self, remote: Remote, at: Asking, error: Exception) -> None:
        what = "the workers" if remote.isolates else "the executor"
        self._tell(at, f"{what} failed ({type(error).__name__}: {error}); compiled in this process "
                       "instead")  # fmt: skip

    def _loaded(self, work: Work, answer: dict[str, Any]) -> Made:
        at = _at(work)
        if answer["artifact"] is None:
            return self._here(work), None
        try:
            return self._from(at, answer), answer["seconds"]
        except Exception as error:
            self._tell(at, f"what a worker compiled cannot be loaded ({type(error).__name__}: {error}); "
                           "compiled in this process instead")  # fmt: skip
            return self._here(work), None

    def _from(self, at: Asking, answer: dict[str, Any]) -> CompileResult:
        function = at.made.compiler.load(answer["artifact"], at.signature, self.scheduler.device)
        runs = tuple(PassRun(**run) for run in answer["passes"])
        needs = tuple(answer["needs"])
        return CompileResult(function, answer["artifact"], needs, answer["note"], passes=runs)

    def _tell(self, at: Asking, text: str) -> None:
        """Warn; what is told of one task already is only an event for the others."""
        message = f"{at.task.name}: {text}"
        data = {"piece": at.task.name, "compiler": at.spec.name}
        if text in self.told:
            self.scheduler.events.send("fallback", phase="compile", message=message, data=data)
        else:
            self.told.add(text)
            self.scheduler.events.warn(message, kind="fallback", **data)

    # -- here

    def _here(self, work: Work) -> CompileResult:
        at = _at(work)
        journal = self.scheduler.journal
        if journal is None or at.spec.capabilities.light:
            return self._compiled(work)
        key = journal_key(at.task, at.spec)
        crash = journal.culprit(key)
        if crash is not None:
            return self._isolated(work, crash)
        what = f"{at.task.name}, compiled by {at.spec.name}"
        with journal.running(key, what), _crash_stacks():
            return self._compiled(work)

    def _isolated(self, work: Work, crash: Crash) -> CompileResult:
        """Compile in a worker what took down a process; it stays so until the journal forgets it."""
        at = _at(work)
        config = self.scheduler.resolved.config
        culprit = f"it took down a process that compiled it ({crash.pid})"
        if config.workers != 0 and worth_a_worker(at.task, at.spec, self.scheduler.host):
            self._tell(at, f"{culprit}, so {at.spec.name} compiles it in a worker")
            return Maker(self.scheduler, remote=self.own_workers(1)).only_remote(work)
        raise CompileFailed(
            f"{at.spec.name} is not asked for {at.task.name} in this process", why=culprit,
            next_step="Let it have a worker (the setting workers), or run: intarsia cache crashes --forget",
            subject=at.task.name,
        )  # fmt: skip

    def only_remote(self, work: Work) -> CompileResult:
        """Compile in a worker and nowhere else.

        Raises:
            CompileFailed: it does not travel, or leaves no artifact.
        """
        at, remote = _at(work), self.remote
        assert remote is not None
        sent = remote.send(
            at.task, at.spec, self._request_to_send(at).to_bytes(), self._settings(at)
        )
        try:
            answer = sent.result()
        finally:
            give_up(sent)
        if answer["artifact"] is None:
            raise CompileFailed(f"{at.spec.name} leaves no artifact of {at.task.name}")
        return self._from(at, answer)

    def _compiled(self, work: Work) -> CompileResult:
        at = _at(work)
        request = self._request(work)
        with at.made.turn(at.spec):
            result = compile_soundly(at.made.compiler, request)
        return evolve(result, passes=(*result.passes, *self._left_out(work)))

    def _left_out(self, work: Work) -> list[PassRun]:
        """Return how the passes went that did not run any more."""
        if not work.passes_left_out:
            return []
        return [PassRun(spec.name, None, 0.0, spec.stage, work.passes_left_out)
                for spec in self._passes(work.task).get("passes", ())]  # fmt: skip

    def _request(self, work: Work) -> CompileRequest:
        """Return a request with fake inputs, which shares what was lowered for the compiler before."""
        at, task = _at(work), work.task
        weights = task.weights if bakes(at.spec) else None
        request = None
        if work.requests and not work.passes_left_out:
            request = next_request(task.piece.module, work.requests[-1], at.signature, weights)
        if request is None:
            request = make_request(
                task.piece.module, at.signature, device_type=self.scheduler.device_type,
                device=self.scheduler.device, name=task.name, kind=task.piece.kind,
                key=task.canonical.digest, hints=task.hints, weights=weights,
                **({} if work.passes_left_out else self._passes(task)),
            )  # fmt: skip
        request = evolve(request, wants_artifact=at.cached or self.scheduler.wants_artifacts)
        work.requests.append(request)
        return request


def _at(work: Work) -> Asking:
    assert work.asking is not None
    return work.asking


@contextlib.contextmanager
def _crash_stacks() -> Iterator[None]:
    """Have Python print its stacks if native code crashes in the block, where nobody else has asked so."""
    if faulthandler.is_enabled():
        yield
        return
    try:
        assert sys.__stderr__ is not None
        faulthandler.enable(sys.__stderr__)
    except (AssertionError, ValueError, OSError, RuntimeError):
        yield  # there is no stderr that a crash could print to
        return
    try:
        yield
    finally:
        faulthandler.disable()
