"""Runs the compile tasks of one compile: look up, claim, compile here or in a worker, keep."""

from __future__ import annotations

import collections
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from attrs import define, field

from intarsia.compiling.instances import Instance, built_for
from intarsia.compiling.routes import fitting
from intarsia.compiling.tasks import (
    Journal,
    Outcome,
    PieceCache,
    Task,
    bakes,
    describe,
    journal_key,
)
from intarsia.config import ResolvedConfig
from intarsia.errors import CacheError, CompileFailed, CompileRejected, PassError
from intarsia.host import Host
from intarsia.interfaces import CompileResult, CompilerSpec, PieceSignature
from intarsia.report.events import EventStream
from intarsia.report.records import Attempt
from intarsia.runtime.first_call import FirstCall, crashed

if TYPE_CHECKING:
    from intarsia.compiling.making import Maker
    from intarsia.passes.plan import PassPlan

Key = tuple[Any, ...]


@define(eq=False)
class Asking:
    """A task at one compiler of its route."""

    task: Task
    spec: CompilerSpec
    made: Instance
    signature: PieceSignature
    cached: bool
    """Whether the cache may have it: not what has no key, nor what is baked into the artifact."""
    watch: FirstCall | None = None
    """The first call of what it makes; None for a light compiler."""


@define(eq=False)
class Work:
    """A distinct task on its way along its route.

    Attributes:
        asking: the compiler that it is at.
        claim: held while this process leads the compile of it.
        claimed: whether it is this process' turn to compile it.
        sent: the answer that a worker will give.
        requests: what was built for the compilers asked so far.
        passes_left_out: why no pass runs any more, or "".
    """

    task: Task
    attempts: list[Attempt] = field(factory=list)
    asking: Asking | None = None
    claim: contextlib.ExitStack = field(factory=contextlib.ExitStack)
    claimed: bool = False
    sent: Any = None
    requests: list[Any] = field(factory=list)
    passes_left_out: str = ""
    outcome: Outcome | None = None
    begun: float = field(factory=time.perf_counter)

    def let_go(self) -> None:
        """Let go of the claim, if it is held."""
        self.claim.close()
        self.claimed = False


@define
class Scheduler:
    """Runs the tasks of one compile.

    Attributes:
        pieces: the cache of compiled pieces, or None.
        journal: notes what is compiled in this process, or None.
        passes: the passes of the compile, or None.
        wants_artifacts: whether an artifact is wanted also where no cache keeps it: for a bundle.
        calls: how often a compiler was asked to compile.
        hits: how many tasks the cache had.
        fallbacks: how many tasks did not get the first compiler of their route.
        crashed: what is left out because it took down a process; only this machine knows.
    """

    host: Host
    resolved: ResolvedConfig
    events: EventStream
    device_type: str
    device: int | None
    pieces: PieceCache | None = None
    journal: Journal | None = None
    passes: PassPlan | None = None
    wants_artifacts: bool = True
    calls: int = 0
    hits: int = 0
    fallbacks: int = 0
    crashed: list[str] = field(factory=list)
    _done: dict[Key, Outcome] = field(factory=dict, alias="_done")

    def run(self, tasks: Sequence[Task]) -> list[Outcome]:
        """Compile every distinct task once; returns the outcome of each task, in order.

        Raises:
            CompileFailed: no compiler of a route could; or, with `strict`, the first one could not.
        """
        dedupe = self.resolved.config.dedupe
        distinct: dict[Key, Work] = {}
        for task in tasks:
            key = task.key(dedupe)
            if key not in self._done and key not in distinct:
                distinct[key] = Work(task)
        with self.events.phase("compile", len(distinct)) as step:
            self._run(list(distinct.values()), step)
        for key, work in distinct.items():
            assert work.outcome is not None
            self._done[key] = work.outcome
        return [self._done[task.key(dedupe)] for task in tasks]

    def _run(self, works: Sequence[Work], step: Callable[[str], None]) -> None:
        missed = [work for work in works if not self.look_up(work, step)]
        if not missed:
            return
        from intarsia.compiling.making import Maker  # only what is compiled needs it

        with Maker.open(self, missed) as maker, _released(missed, maker):
            _Rounds(self, maker, step).run(missed)

    # -- along the route

    def look_up(self, work: Work, step: Callable[[str], None]) -> bool:
        """Go to the first compiler that may be asked; says whether the cache had the piece from it.

        Raises:
            CompileFailed: there is no compiler left.
        """
        while work.outcome is None:
            if len(work.attempts) == len(work.task.choice.compilers):
                raise self._nobody(work)
            name = work.task.choice.compilers[len(work.attempts)]
            work.begun = time.perf_counter()
            try:
                work.asking = self._asking(work.task, self.host.compiler(name))
                self._find(work, step)
            except Exception as error:
                self.move_on(work, name, error)
                continue
            break
        return work.outcome is not None

    def _asking(self, task: Task, spec: CompilerSpec) -> Asking:
        own = task.canonical.box(task.box)
        fitting(spec, task.piece, task.canonical, all(low == high for low, high in own.values()))
        signature = task.canonical.signature(task.box, self.host.options(spec))
        cached = self.pieces is not None and bool(task.canonical.digest) and not bakes(spec)
        watch = self._watch(task, spec, signature)
        return Asking(task, spec, built_for(self.host, spec, self.device), signature, cached, watch)

    def _watch(self, task: Task, spec: CompilerSpec, signature: PieceSignature) -> FirstCall | None:
        """Return the first call of what a compiler makes, unless that is known to take processes down.

        Raises:
            CompileFailed: it is.
        """
        if spec.capabilities.light:
            return None
        options = json.dumps(signature.options, sort_keys=True, default=str)
        watch = FirstCall(
            journal_key(task, spec, "call", options), f"{task.name} by {spec.name}, called",
            self.journal,
        )  # fmt: skip
        crash = None if self.journal is None else self.journal.culprit(watch.key)
        if crash is not None:
            self.crashed.append(f"what {spec.name} made of {task.name}")
            raise CompileFailed(
                f"{spec.name} is not asked for {task.name}", why=crashed(crash.pid),
                next_step="To try it again, run: intarsia cache crashes --forget", subject=task.name,
            )  # fmt: skip
        return watch

    def _find(self, work: Work, step: Callable[[str], None]) -> bool:
        """Take a piece from the cache; says whether it was there."""
        at = work.asking
        assert at is not None
        if not at.cached or self.pieces is None:
            return False
        result = self.pieces.find(at.task, at.spec, at.made, at.signature)
        if result is None:
            return False
        self.hits += 1
        self.finish(work, result, "cached", step)
        return True

    def claimed(self, work: Work, wait: float | None, step: Callable[[str], None]) -> bool:
        """Claim a piece and look again, since another process may have made it.

        Says whether it is this process' turn to compile, or the cache had it; not where `wait` is 0 and
        another process leads.
        """
        at = work.asking
        assert at is not None
        if work.claimed or not at.cached or self.pieces is None:
            return True
        claim = self.pieces.claim(at.task, at.spec, wait)
        leads = work.claim.enter_context(claim)
        if not leads and wait == 0:
            work.let_go()
            return False
        work.claimed = True
        self._find(work, step)
        return True

    def finish(
        self, work: Work, result: CompileResult, how: str, step: Callable[[str], None],
        seconds: float | None = None,
    ) -> None:  # fmt: skip
        """Give a task its outcome, and let go of its claim."""
        at = work.asking
        assert at is not None
        keeps = how == "compiled" and at.cached and result.artifact is not None
        if keeps and self.pieces is not None:
            self.pieces.keep(at.task, at.spec, result)
        work.let_go()
        spent = time.perf_counter() - work.begun if seconds is None else seconds
        work.attempts.append(Attempt(at.spec.name, how, result.note, spent))
        baked = work.task.weights if bakes(at.spec) else None
        work.outcome = Outcome(result, at.spec.name, at.made, tuple(work.attempts), baked, at.watch)
        self._report(work, how, step)

    def _report(self, work: Work, how: str, step: Callable[[str], None]) -> None:
        assert work.outcome is not None
        compiler, name = work.outcome.compiler, work.task.name
        self.fallbacks += work.outcome.fell_back
        kind = "compile" if how == "compiled" else "cached"
        text = f"{name} by {compiler}" + (" from the cache" if how == "cached" else "")
        self.events.send(kind, phase="compile", message=text,
                         data={"piece": name, "compiler": compiler})  # fmt: skip
        step(text)

    def move_on(self, work: Work, compiler: str, error: Exception) -> None:
        """Note that a compiler did not do it; the next one is asked.

        Raises:
            CompileFailed: `strict` is on.
            CacheError: an entry is bad, and `strict` is on; that is no failure of a compiler.
        """
        work.let_go()
        if isinstance(error, CacheError):
            raise error
        if isinstance(error, CompileRejected):
            outcome, reason = "rejected", str(error) if error.why else error.what
        else:
            outcome, reason = "failed", f"{type(error).__name__}: {error}"
        attempt = Attempt(compiler, outcome, reason, time.perf_counter() - work.begun)
        work.attempts.append(attempt)
        work.asking = None
        self._tell(work.task, attempt, error)

    def _tell(self, task: Task, attempt: Attempt, error: Exception) -> None:
        text = f"{attempt.compiler} {attempt.outcome} {task.name}: {attempt.reason}"
        if self.resolved.config.strict:
            if isinstance(error, PassError):
                raise error  # it says what is wrong; the compiler is not
            raise CompileFailed(
                f'compiler "{attempt.compiler}" {attempt.outcome} {describe(task)}',
                why=attempt.reason,
                next_step="strict is on, so no other compiler was asked.",
                subject=task.name,
            ) from error
        if attempt.outcome == "failed":
            self.events.warn(text, kind="fallback", piece=task.name, compiler=attempt.compiler)
        else:
            self.events.send("fallback", phase="compile", message=text,
                             data={"piece": task.name, "compiler": attempt.compiler})  # fmt: skip

    def _nobody(self, work: Work) -> CompileFailed:
        asked = {a.compiler for a in work.attempts}
        reasons = "; ".join(f"{a.compiler}: {a.reason}" for a in work.attempts)
        hint = "" if "eager" in asked else 'Add "eager" to its compilers, or run: intarsia doctor'
        return CompileFailed(
            f"no compiler accepted {describe(work.task)}", why=reasons, next_step=hint,
            subject=work.task.name,
        )  # fmt: skip


@contextlib.contextmanager
def _released(works: Sequence[Work], maker: Maker) -> Iterator[None]:
    """Let go of every claim and stop what still runs for us, also after an error or Ctrl-C."""
    try:
        yield
    finally:
        for work in works:
            maker.give_up(work)
            work.let_go()


@define
class _Rounds:
    """The order in which missed tasks are done.

    First all that no other process is compiling, side by side where there are workers; then one by one
    those that others were compiling, or whose first compiler did not do it. A process waits for another
    one only while it leads nothing itself, so two of them never wait for each other.
    """

    scheduler: Scheduler
    maker: Maker
    step: Callable[[str], None]
    later: collections.deque[Work] = field(factory=collections.deque)

    def run(self, works: Sequence[Work]) -> None:
        """Do them all."""
        sent: list[Work] = []
        here: collections.deque[Work] = collections.deque()
        for work in sorted(works, key=lambda w: -len(w.task.piece.nodes)):
            if not self.maker.goes_out(work):
                here.append(work)
            elif self._is_ours(work):
                sent.append(work) if self.maker.send(work) else here.append(work)
        self._together(sent, here)
        while self.later:
            self._alone(self.later.popleft())

    def _together(self, sent: list[Work], here: collections.deque[Work]) -> None:
        """Do those that were sent, as they are done, and meanwhile the others here."""
        while sent or here:
            work = self.maker.first_done(sent)
            if work is None and here:
                mine = here.popleft()
                if self._is_ours(mine):
                    self._complete(mine)
                continue
            work = work or self.maker.taken_back(sent) or self.maker.wait(sent)
            sent.remove(work)
            self._complete(work)

    def _alone(self, work: Work) -> None:
        if work.asking is None and self.scheduler.look_up(work, self.step):
            return
        self.scheduler.claimed(work, None, self.step)
        if work.outcome is None:
            self._complete(work)

    def _is_ours(self, work: Work) -> bool:
        """Say whether it is to be compiled here and now; it is done later where others are at it."""
        if not self.scheduler.claimed(work, 0, self.step):
            self.later.append(work)
            return False
        return work.outcome is None

    def _complete(self, work: Work) -> None:
        """Get the result of the compiler that a task is at; if it has none, the next one's turn is later."""
        at = work.asking
        assert at is not None
        try:
            result, seconds = self.maker.result(work)
        except Exception as error:
            self.scheduler.move_on(work, at.spec.name, error)
            self.later.append(work)
            return
        self.scheduler.finish(work, result, "compiled", self.step, seconds)
