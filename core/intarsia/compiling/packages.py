"""Packages: the artifacts that load and run fast, made in the background and put in together.

A compile leaves a task for every distinct piece whose compiler has the tier "package". The tasks run in a
worker of low priority; when the last one has ended, the model gets new bound plans with all packages that
were made. What cannot be packaged stays as it is, and says why.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any

from attrs import define, evolve, field, frozen

from intarsia.cache.cache import Cache
from intarsia.cache.entry import Entry, Unusable
from intarsia.compiling.instances import built_for
from intarsia.compiling.kept import KIND, loaded_piece
from intarsia.config import ResolvedConfig
from intarsia.errors import CompileRejected, IntarsiaError
from intarsia.host import Host
from intarsia.interfaces import CompileResult, Decision, PieceSignature
from intarsia.report.events import EventStream
from intarsia.runtime.bound import PieceFunction

if TYPE_CHECKING:
    from intarsia.compiling.pool import WorkerFuture


@frozen
class PackageTask:
    """A piece of which a package is wanted.

    Attributes:
        function: the number of the piece among those of its plan.
        request: the compile request, as bytes, which asks for the package.
        factors: the factors of its key in the cache.
    """

    function: int
    name: str
    compiler: str
    request: bytes
    signature: PieceSignature
    factors: Mapping[str, str]


@define(eq=False)
class Packages:
    """The packages of one compiled model, on their way.

    Attributes:
        swap: puts packages in the place of pieces, by number; says whether they may be.
        keep: keeps the plan with the packages.
    """

    tasks: Sequence[PackageTask]
    host: Host
    resolved: ResolvedConfig
    device: int | None
    cache: Cache | None
    events: EventStream
    swap: Callable[[Mapping[int, PieceFunction]], bool]
    keep: Callable[[Mapping[int, PieceFunction]], None]
    made: dict[int, PieceFunction] = field(factory=dict, init=False)
    refused: dict[str, str] = field(factory=dict, init=False)
    failed: dict[str, str] = field(factory=dict, init=False)
    unloadable: dict[str, str] = field(factory=dict, init=False)
    stopped: list[str] = field(factory=list, init=False)
    cancelled: bool = field(default=False, init=False)
    _futures: list[WorkerFuture] = field(factory=list, init=False)
    _count: int = field(default=0, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)
    _ended: threading.Event = field(factory=threading.Event, init=False)

    def start(self, *, background: bool = True) -> None:
        """Start to make what the cache does not have; with `background`, at low priority."""
        missing = [task for task in self.tasks if self._loads(task) and not self._cached(task)]
        if not missing:
            self._settle()
            return
        from intarsia.compiling.worker_jobs import compile_job, settings_for
        from intarsia.compiling.workers import workers

        pool = workers.background() if background else workers.compiling(1)
        for task in missing:
            spec = self.host.compiler(task.compiler)
            settings = settings_for(spec, self.host, self.device, self.resolved)
            future = pool.start(
                compile_job, task.request, task.compiler, settings,
                job_name=f"the package of {task.name}",
                job_deadline=self.resolved.config.compile_timeout,
            )  # fmt: skip
            self._futures.append(future)
        for task, sent in zip(missing, list(self._futures), strict=True):
            sent.add_done_callback(functools.partial(self._done, task))

    def wait(self, timeout: float | None) -> bool:
        """Wait until every task has ended; says whether that was within `timeout` seconds."""
        return self._ended.wait(timeout)

    def cancel(self) -> None:
        """Stop what is not done; the next start goes on with it."""
        self.cancelled = True
        for future in self._futures:
            future.stop()
        self._ended.set()

    # -- one task

    def _loads(self, task: PackageTask) -> bool:
        """Say whether a package of a task's compiler could be loaded here; if not, it is not made."""
        made = built_for(self.host, self.host.compiler(task.compiler), self.device)
        loads = getattr(made.compiler, "loads", None)
        answer = Decision(True) if loads is None else loads("package")
        if not answer:
            self.unloadable[task.name] = answer.reason
        return bool(answer)

    def _cached(self, task: PackageTask) -> bool:
        """Take a package from the cache; also where it is there and cannot be used here, none is made."""
        if self.cache is None:
            return False
        made = built_for(self.host, self.host.compiler(task.compiler), self.device)

        def use(entry: Entry) -> CompileResult:
            try:
                return loaded_piece(entry, made, task.signature, self.device)
            except Unusable as error:
                self.unloadable[task.name] = str(error)
                raise

        found = self.cache.load(KIND, task.factors, use)
        if found is not None:
            self.made[task.function] = self._function(task, found)
        return found is not None or task.name in self.unloadable

    def _function(self, task: PackageTask, made: CompileResult) -> PieceFunction:
        instance = built_for(self.host, self.host.compiler(task.compiler), self.device)
        bind = getattr(instance.compiler, "bind", None)
        return PieceFunction(made.callable, task.compiler, bind, {}, made.artifact, tuple(made.needs),
                             made.note, "package")  # fmt: skip

    def _done(self, task: PackageTask, future: Future[Any]) -> None:
        if self.cancelled:
            return
        try:
            self._take(task, future.result())
        except CancelledError:  # the workers were closed, as they are when the process ends
            self.stopped.append(task.name)
        except CompileRejected as error:
            self.refused[task.name] = str(error) if error.why else error.what
        except Exception as error:  # of the worker, or of a compiler
            self.failed[task.name] = f"{type(error).__name__}: {error}"
        with self._lock:
            self._count += 1
            ended = self._count
        self.events.send("package", phase="package", done=ended, total=len(self.tasks),
                         message=f"{task.name} by {task.compiler}")  # fmt: skip
        if ended == len(self._futures):
            self._settle()

    def _take(self, task: PackageTask, answer: Mapping[str, Any]) -> None:
        artifact = answer["artifact"]
        if artifact is None:
            raise CompileRejected("its compiler made no package")
        spec = self.host.compiler(task.compiler)
        made = built_for(self.host, spec, self.device)
        signature = evolve(task.signature, options=self.host.options(spec))
        function = made.compiler.load(artifact, signature, self.device)
        result = CompileResult(
            function, artifact, tuple(answer["needs"]), answer["note"], "package"
        )
        self.made[task.function] = self._function(task, result)
        if self.cache is not None:
            meta = {"needs": list(result.needs), "note": result.note, "name": task.name}
            self.cache.save(KIND, task.factors, artifact, meta=meta)

    # -- all of them

    def _settle(self) -> None:
        """Put the packages in, and keep the plan with them unless a later start may do better."""
        begun = time.monotonic()
        tell_quick(self.events, _by_reason({**self.unloadable, **self.refused}))
        tell_quick(self.events, _by_reason(self.failed), "got no package this time")
        try:
            if not self.cancelled:
                swapped = bool(self.made) and self.swap(self.made)
                if not (self.failed or self.unloadable or self.stopped):
                    self.keep(self.made)  # also without any: the next start need not try again
                left = f"; {len(self.stopped)} are left to the next start" if self.stopped else ""
                what = "are in use" if swapped else "are kept for the next start"
                self.events.send("packages", phase="package", done=len(self.made),
                                 total=len(self.tasks), message=f"{len(self.made)} packages {what}{left}",
                                 data={"seconds": time.monotonic() - begun})  # fmt: skip
        except IntarsiaError as error:
            self.events.warn(f"the packages are not used: {error}")
        finally:
            self._ended.set()


def tell_quick(
    events: EventStream, reasons: Mapping[str, Sequence[str]], what: str = "stay quick"
) -> None:
    """Say why pieces have no package: one line for each reason, with the names of its pieces."""
    for reason, names in reasons.items():
        events.warn(f"{', '.join(names)} {what}: {reason}", kind="package", pieces=list(names))


def _by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        found.setdefault(reason, []).append(name)
    return found
