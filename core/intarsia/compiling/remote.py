"""Where a compile may go besides this process: the worker pool, or an executor that the user gave."""

from __future__ import annotations

import os
import sys
from concurrent.futures import Executor, Future
from typing import Any, Protocol

from attrs import frozen

from intarsia import torch_compat
from intarsia.compiling.pool import WorkerFuture, WorkerPool
from intarsia.compiling.tasks import Task, bakes
from intarsia.compiling.worker_jobs import compile_job
from intarsia.host import Host
from intarsia.interfaces import CompilerSpec

Answer = Future[dict[str, Any]]


class Remote(Protocol):
    """Takes requests as bytes; the future's value is what `compile_in_worker` returns."""

    @property
    def isolates(self) -> bool:
        """Whether it is a process of ours on this machine: what fails there would fail here as well."""

    def takes(self, task: Task, spec: CompilerSpec) -> bool:
        """Say whether a task of a compiler may go there."""

    def send(self, task: Task, spec: CompilerSpec, data: bytes, settings: dict[str, Any]) -> Answer:
        """Have it compiled."""


def can_travel(task: Task, spec: CompilerSpec) -> bool:
    """Say whether a task has a form that another process can read, and its compiler works there."""
    return bool(spec.capabilities.workers and task.canonical.digest and not bakes(spec))


def worth_a_worker(task: Task, spec: CompilerSpec, host: Host) -> bool:
    """Say whether a worker of ours could compile a task, and not in no time."""
    if spec.capabilities.light or not can_travel(task, spec):
        return False
    if host.provider(spec).distribution == "code":  # a plugin given as an object is only here
        return False
    return not _needs_main(task)


def _needs_main(task: Task) -> bool:
    """Say whether a piece calls what the user's main module defines, which workers do not import."""
    from intarsia.compiling.transport import needs_of

    return any(need == "module:__main__" for need in needs_of(task.piece.module))


@frozen
class OwnWorkers:
    """The worker pool."""

    pool: WorkerPool
    host: Host
    deadline: float
    isolates: bool = True

    def takes(self, task: Task, spec: CompilerSpec) -> bool:
        """Leave out what is compiled in no time, and what only this process has."""
        return worth_a_worker(task, spec, self.host)

    def send(self, task: Task, spec: CompilerSpec, data: bytes, settings: dict[str, Any]) -> Answer:
        """Have it compiled by a worker, within the deadline."""
        variables = {name: os.environ.get(name) for name in spec.environment}
        return self.pool.start(
            compile_job, data, spec.name, settings, job_deadline=self.deadline,
            job_name=f"{task.name} by {spec.name}", job_place=(list(sys.path), variables),
        )  # fmt: skip


@frozen
class UsersExecutor:
    """The setting `executor`."""

    executor: Executor
    isolates: bool = False

    def takes(self, task: Task, spec: CompilerSpec) -> bool:
        """Leave out what a thread would wait for ever with: torch.compile's lock is ours until it is done."""
        from concurrent.futures import ProcessPoolExecutor

        if not can_travel(task, spec):
            return False
        elsewhere = isinstance(self.executor, ProcessPoolExecutor) or getattr(
            self.executor, "other_processes", False
        )
        return elsewhere or not torch_compat.holds_tracing_lock()

    def send(self, task: Task, spec: CompilerSpec, data: bytes, settings: dict[str, Any]) -> Answer:
        """Have it compiled there."""
        from intarsia.compiling.transport import compile_in_worker

        return self.executor.submit(compile_in_worker, data, spec.name, settings)


def give_up(future: Answer) -> None:
    """Stop what was sent, where it runs too if that is possible."""
    if isinstance(future, WorkerFuture):
        future.stop()
    else:
        future.cancel()
