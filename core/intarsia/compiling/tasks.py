"""Compile tasks: one for each distinct (piece, box), each with its chain of compilers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any

import torch
from attrs import define, field, frozen

from intarsia import torch_compat
from intarsia.compiling.instances import Instance, built_for
from intarsia.compiling.routes import RouteChoice, fitting
from intarsia.compiling.soundness import compile_soundly
from intarsia.compiling.transport import compile_in_worker, make_request, next_request
from intarsia.config import ResolvedConfig
from intarsia.errors import CompileFailed, CompileRejected
from intarsia.host import Host
from intarsia.interfaces import Box, CompileRequest, CompileResult, CompilerSpec
from intarsia.report.events import EventStream
from intarsia.report.records import Attempt
from intarsia.split.canonical import CanonicalPiece
from intarsia.split.partition import Piece


@frozen
class Task:
    """One piece and one box, and the compilers to ask in order.

    Attributes:
        weights: input index -> tensor, for a compiler that bakes them in; None if none of them does.
    """

    piece: Piece
    canonical: CanonicalPiece
    box: Box
    choice: RouteChoice
    name: str
    hints: Mapping[str, int] = field(factory=dict)
    weights: Mapping[int, torch.Tensor] | None = field(default=None, eq=False, repr=False)

    def key(self, dedupe: bool) -> tuple[Any, ...]:
        """Return what equal tasks share."""
        own = tuple(sorted(self.canonical.box(self.box).items()))
        if not dedupe or not self.canonical.digest:
            return (self.name, own)
        hints = tuple(self.hints.get(name) for name in self.canonical.symbols)
        baked = tuple((i, id(w)) for i, w in sorted((self.weights or {}).items()))
        return (self.canonical.digest, own, self.choice.compilers, hints, baked)


@frozen
class Outcome:
    """What came of a task.

    Attributes:
        result: the compiled piece.
        compiler: the name of who compiled it.
        instance: the compiler itself, for `bind`.
        attempts: everybody who was asked.
        baked: the weights that are part of what was compiled, by input index; None: they stay inputs.
    """

    result: CompileResult
    compiler: str
    instance: Instance
    attempts: tuple[Attempt, ...]
    baked: Mapping[int, torch.Tensor] | None = field(default=None, eq=False, repr=False)

    @property
    def fell_back(self) -> bool:
        """Say whether somebody else was asked first."""
        return len(self.attempts) > 1


@define
class Scheduler:
    """Runs the tasks of one compile.

    Attributes:
        calls: how often a compiler was asked to compile.
    """

    host: Host
    resolved: ResolvedConfig
    events: EventStream
    device_type: str
    device: int | None
    calls: int = 0
    fallbacks: int = 0
    _done: dict[tuple[Any, ...], Outcome] = field(factory=dict, alias="_done")

    def run(self, tasks: Sequence[Task]) -> list[Outcome]:
        """Compile every distinct task once; returns the outcome of each task, in order.

        Raises:
            CompileFailed: no compiler of a route could; or, with `strict`, the first one could not.
        """
        dedupe = self.resolved.config.dedupe
        distinct: dict[tuple[Any, ...], Task] = {}
        for task in tasks:
            key = task.key(dedupe)
            if key not in self._done:
                distinct.setdefault(key, task)
        executor: Executor | None = self.resolved.config.executor
        with self.events.phase("compile", len(distinct)) as step:
            if executor is None:
                for key, task in distinct.items():
                    self._done[key] = self._compile(task, self._here)
                    step(f"{task.name} by {self._done[key].compiler}")
            else:
                self._run_on(executor, distinct, step)
        return [self._done[task.key(dedupe)] for task in tasks]

    # -- one task

    def _compile(self, task: Task, ask: Callable[..., CompileResult]) -> Outcome:
        attempts: list[Attempt] = []
        requests: list[CompileRequest] = []
        for name in task.choice.compilers:
            begun = time.perf_counter()
            spec = self.host.compiler(name)
            try:
                result, made = self._attempt(task, spec, ask, requests)
            except CompileRejected as error:
                reason = error.what if not error.why else str(error)
                attempts.append(Attempt(name, "rejected", reason, time.perf_counter() - begun))
                self._moved_on(task, attempts[-1], error)
                continue
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                attempts.append(Attempt(name, "failed", reason, time.perf_counter() - begun))
                self._moved_on(task, attempts[-1], error)
                continue
            attempts.append(Attempt(name, "compiled", result.note, time.perf_counter() - begun))
            outcome = Outcome(result, name, made, tuple(attempts), requests[-1].weights)
            self._report(task, outcome)
            return outcome
        raise self._nobody(task, attempts)

    def _attempt(
        self, task: Task, spec: CompilerSpec, ask: Callable[..., CompileResult],
        earlier: list[CompileRequest],
    ) -> tuple[CompileResult, Instance]:  # fmt: skip
        own = task.canonical.box(task.box)
        is_point = all(low == high for low, high in own.values())
        fitting(spec, task.piece, task.canonical, is_point)
        options = self.host.options(spec)
        made = built_for(self.host, spec, self.device)
        signature = task.canonical.signature(task.box, options)
        weights = task.weights if bakes(spec) else None
        request = None
        if earlier:
            request = next_request(task.piece.module, earlier[-1], signature, weights)
        if request is None:
            request = make_request(
                task.piece.module, signature, device_type=self.device_type, device=self.device,
                name=task.name, kind=task.piece.kind, key=task.canonical.digest,
                wants_artifact=True, hints=task.hints, weights=weights,
            )  # fmt: skip
        earlier.append(request)
        self.calls += 1
        return ask(spec, made, request), made

    @staticmethod
    def _here(spec: CompilerSpec, made: Instance, request: CompileRequest) -> CompileResult:
        with made.turn(spec):
            return compile_soundly(made.compiler, request)

    def _moved_on(self, task: Task, attempt: Attempt, error: Exception) -> None:
        text = f"{attempt.compiler} {attempt.outcome} {task.name}: {attempt.reason}"
        if self.resolved.config.strict:
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

    def _report(self, task: Task, outcome: Outcome) -> None:
        self.fallbacks += outcome.fell_back
        self.events.send("compile", phase="compile", message=f"{task.name} by {outcome.compiler}",
                         data={"piece": task.name, "compiler": outcome.compiler})  # fmt: skip

    def _nobody(self, task: Task, attempts: Sequence[Attempt]) -> CompileFailed:
        asked = {a.compiler for a in attempts}
        reasons = "; ".join(f"{a.compiler}: {a.reason}" for a in attempts)
        hint = "" if "eager" in asked else 'Add "eager" to its compilers, or run: intarsia doctor'
        return CompileFailed(
            f"no compiler accepted {describe(task)}", why=reasons, next_step=hint, subject=task.name
        )

    # -- many tasks on an executor

    def _run_on(
        self, executor: Executor, tasks: Mapping[tuple[Any, ...], Task], step: Callable[[str], None]
    ) -> None:
        """Give every task's first compiler to the executor at once; what fails there goes on here."""
        waiting: dict[tuple[Any, ...], Future[dict[str, Any]] | None] = {}
        for key, task in tasks.items():
            waiting[key] = self._submit(executor, task)
        for key, task in tasks.items():
            future = waiting[key]

            def ask(
                spec: CompilerSpec, made: Instance, request: CompileRequest,
                future: Future[dict[str, Any]] | None = future, first: str = task.choice.compilers[0],
            ) -> CompileResult:  # fmt: skip
                if future is None or spec.name != first:
                    return self._here(spec, made, request)
                return self._from_worker(spec, made, request, future)

            self._done[key] = self._compile(task, ask)
            step(f"{task.name} by {self._done[key].compiler}")

    def _submit(self, executor: Executor, task: Task) -> Future[dict[str, Any]] | None:
        spec = self.host.compiler(task.choice.compilers[0])
        own = task.canonical.box(task.box)
        try:
            fitting(spec, task.piece, task.canonical, all(lo == hi for lo, hi in own.values()))
        except CompileRejected:
            return None  # said again, and reported, when the task's own turn comes
        if not spec.capabilities.workers or not task.canonical.digest or bakes(spec):
            return None
        if torch_compat.holds_tracing_lock() and not isinstance(executor, ProcessPoolExecutor):
            return (
                None  # torch.compile's lock is ours until it is done: a thread would wait for ever
            )
        request = make_request(
            task.piece.module, task.canonical.signature(task.box, self.host.options(spec)),
            device_type=self.device_type, device=self.device, name=task.name, kind=task.piece.kind,
            key=task.canonical.digest, hints=task.hints,
        )  # fmt: skip
        try:
            data = request.to_bytes()
        except CompileFailed as error:
            self.events.warn(
                f"{error}; it is compiled in this process", kind="fallback", piece=task.name,
                compiler=spec.name,
            )  # fmt: skip
            return None
        return executor.submit(compile_in_worker, data, spec.name, self._worker_settings())

    def _worker_settings(self) -> dict[str, Any]:
        plugins = self.resolved.config.plugins
        chosen: dict[str, Any] = {
            "block": list(plugins.block), "prefer": dict(plugins.prefer), "autoload": plugins.autoload,
        }  # fmt: skip
        if plugins.allow is not None:
            chosen["allow"] = list(plugins.allow)
        return {"options": dict(self.resolved.config.options), "plugins": chosen}

    def _from_worker(
        self, spec: CompilerSpec, made: Instance, request: CompileRequest,
        future: Future[dict[str, Any]],
    ) -> CompileResult:  # fmt: skip
        try:
            answer = future.result()
        except CompileRejected:
            raise
        except Exception as error:  # the worker died, or lacks something that this process has
            self.events.warn(
                f"{request.name}: the executor failed ({type(error).__name__}: {error}); "
                "compiled in this process instead",
                kind="fallback", piece=request.name, compiler=spec.name,
            )  # fmt: skip
            return self._here(spec, made, request)
        return self._loaded(spec, made, request, answer)

    def _loaded(
        self, spec: CompilerSpec, made: Instance, request: CompileRequest, answer: Mapping[str, Any]
    ) -> CompileResult:
        artifact = answer["artifact"]
        if artifact is None:
            return self._here(spec, made, request)
        function = made.compiler.load(artifact, request.signature, request.device)
        return CompileResult(function, artifact, tuple(answer["needs"]), answer["note"])


def bakes(spec: CompilerSpec) -> bool:
    """Say whether a compiler makes the weights part of what it compiles."""
    return spec.capabilities.weights == "bake"


def describe(task: Task) -> str:
    """Return a task for messages: "model.piece_3 (41 nodes) for {tokens: 1..8}"."""
    from intarsia.boxes_text import describe_box

    return f"{task.name} ({len(task.piece.nodes)} nodes) for {describe_box(task.box)}"
