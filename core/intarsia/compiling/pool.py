"""The worker pool: spawned compile workers behind the interface of `concurrent.futures.Executor`."""

from __future__ import annotations

import collections
import logging
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future
from typing import Any

from attrs import define, field

from intarsia.compiling.worker_process import (
    Call,
    Gone,
    NoWorker,
    Place,
    WorkerDied,
    WorkerProcess,
    pass_in,
)

log = logging.getLogger("intarsia")

_LINGER_SECONDS = 0.4
"""How long workers without a job stay when nobody holds the pool: a second after the last compile of a
process, no child of it is left."""

_START_SECONDS = 180.0
_TRIES = 2


class WorkerFuture(Future[Any]):
    """The future of a job in a worker, which can also be stopped while it runs."""

    _job: _Job

    def stop(self) -> None:
        """Take the job back, ending the worker that runs it; the result is then a CancelledError."""
        self._job.stopped = True
        if not self.cancel() and (process := self._job.process) is not None and not self.done():
            process.end()


@define(eq=False)
class _Job:
    payload: bytes
    name: str
    deadline: float | None
    place: Place | None = None
    future: WorkerFuture = field(factory=WorkerFuture)
    tries: int = 0
    stopped: bool = False
    process: WorkerProcess | None = None

    def __attrs_post_init__(self) -> None:
        self.future._job = self

    def begin(self) -> bool:
        """Say whether it is still wanted; it cannot be cancelled from then on."""
        return self.tries > 0 or self.future.set_running_or_notify_cancel()

    def fail(self, error: BaseException) -> None:
        self.future.set_exception(CancelledError() if self.stopped else error)


class Lease:
    """Keeps a pool's idle workers while somebody has more for them to do; a context manager."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """Let them go; a second time does nothing."""
        release, self._release = self._release, None
        if release is not None:
            release()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class WorkerPool(Executor):
    """Runs jobs in worker processes, which are started as jobs come and end when there are none.

    Each worker has a thread here that starts it, hands it jobs and sees how it ends. A job whose worker
    dies is tried once more in a new one; a job past its deadline is not, and its worker is ended. A job
    counts as running only when a worker is up and has it, so a caller can take back, with
    `future.cancel()`, what waits for a worker that is still importing.

    Args:
        limit: how many workers there may be; it may be set later.
        nice: how much lower than this process's their priority is.
        initializer: what each worker runs before its first job.
        may_grow: asked before a worker is started besides another one: whether there is room for it.
        linger: how many seconds idle workers stay when nobody holds the pool.
    """

    def __init__(
        self, limit: int, *, nice: int = 0, initializer: Callable[[], Any] | None = None,
        may_grow: Callable[[], bool] = lambda: True, linger: float = _LINGER_SECONDS,
    ) -> None:  # fmt: skip
        self.limit = limit
        self._nice = nice
        self._initializer: Call | None = initializer and (initializer, (), {})
        self.may_grow = may_grow
        self._linger = linger
        self._changed = threading.Condition()
        self._jobs: collections.deque[_Job] = collections.deque()
        self._threads: set[threading.Thread] = set()
        self._processes: set[WorkerProcess] = set()
        self._starting: set[WorkerProcess] = set()
        self._idle = 0
        self._leases = 0
        self._closed = False

    # -- for callers

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> WorkerFuture:
        """Run a function in a worker, without a deadline."""
        return self.start(fn, *args, **kwargs)

    def start(
        self, fn: Callable[..., Any], /, *args: Any, job_name: str = "",
        job_deadline: float | None = None, job_place: Place | None = None, **kwargs: Any,
    ) -> WorkerFuture:  # fmt: skip
        """Run a function in a worker.

        Args:
            fn, args, kwargs: the function, which a worker can import, and what it is called with.
            job_name: what messages call it.
            job_deadline: after how many seconds from its start it is ended; None: never.
            job_place: where its worker must have been started; one that was not is replaced.

        Raises:
            RuntimeError: the pool is closed.
        """
        payload = pickle.dumps((fn, args, kwargs))
        job = _Job(payload, job_name or getattr(fn, "__name__", "a job"), job_deadline, job_place)
        with self._changed:
            if self._closed:
                raise RuntimeError("the pool is closed")
            self._jobs.append(job)
            self._grow(len(self._jobs) - self._idle)
            self._changed.notify()
        return job.future

    def hold(self) -> Lease:
        """Keep idle workers until the lease is released."""
        with self._changed:
            self._leases += 1
        return Lease(self._let_go)

    def _let_go(self) -> None:
        with self._changed:
            self._leases -= 1
            unwanted = [] if self._is_wanted() else list(self._starting)
            self._changed.notify_all()
        for process in unwanted:  # what it imports by now nobody will use
            process.end()

    def warm(self, count: int) -> None:
        """Start workers before there are jobs, so that they import meanwhile; they stay while held."""
        with self._changed:
            if not self._closed:
                self._grow(count - len(self._threads))

    @property
    def live(self) -> int:
        """How many workers are there or being started."""
        with self._changed:
            return len(self._threads)

    @property
    def is_held(self) -> bool:
        """Whether somebody holds idle workers."""
        with self._changed:
            return self._leases > 0

    def pids(self) -> list[int]:
        """Return the process ids of the workers that are up."""
        with self._changed:
            return [process.pid for process in self._processes]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the pool; what is running may end first, and what waits too unless it is cancelled."""
        while wait and not cancel_futures and self._has_work():
            time.sleep(0.01)
        self.close()

    def _has_work(self) -> bool:
        with self._changed:
            return bool(self._jobs) or self._idle < len(self._threads)

    def close(self) -> None:
        """Cancel what waits, end every worker with all it started, and take no more jobs."""
        with self._changed:
            self._closed = True
            waiting, threads = list(self._jobs), list(self._threads)
            self._jobs.clear()
            processes = list(self._processes)
            self._changed.notify_all()
        for job in waiting:
            job.future.cancel()
        for process in processes:
            process.end()
        for thread in threads:
            thread.join(2.0)

    # -- the workers' threads

    def _grow(self, wanted: int) -> None:
        for _ in range(min(wanted, self.limit - len(self._threads))):
            if self._threads and not self.may_grow():
                return
            thread = threading.Thread(target=self._serve, name="intarsia-worker", daemon=True)
            self._threads.add(thread)
            self._idle += 1
            thread.start()

    def _serve(self) -> None:
        process: WorkerProcess | None = None
        try:
            process = self._started()
            while self._await_jobs():
                if process is not None and not self._fits(process):
                    self._end(process)
                    process = None
                process = process or self._started()
                job = self._take() if process is not None else None
                if process is not None and job is not None:
                    process = self._do(job, process)
        except NoWorker as error:
            self._give_up(error)
            return
        if process is not None:
            self._end(process)

    def _end(self, process: WorkerProcess) -> None:
        process.stop()
        self._forget(process)

    def _fits(self, process: WorkerProcess) -> bool:
        """Say whether a process is where the next job wants it to be."""
        with self._changed:
            place = self._jobs[0].place if self._jobs else None
        return place is None or process.is_of(place)

    def _started(self) -> WorkerProcess | None:
        """Start a process; one that does not come up is tried once more. None where nobody wants it."""
        try:
            return self._start_one()
        except NoWorker as error:
            if self._closed:
                raise
            log.warning("%s; it is tried once more", error)
            return self._start_one()

    def _start_one(self) -> WorkerProcess | None:
        process = WorkerProcess()
        with self._changed:
            self._processes.add(process)
            self._starting.add(process)
            wanted = self._is_wanted()
        if not wanted:
            process.end()
        try:
            process.set_up(self._nice, self._initializer, _START_SECONDS)
            return process
        except NoWorker:
            self._forget(process)
            if not process.was_ended:
                raise
            return None
        finally:
            with self._changed:
                self._starting.discard(process)

    def _is_wanted(self) -> bool:
        """Say whether there is something to do for a worker that is being started."""
        waiting = any(not job.future.cancelled() for job in self._jobs)
        return not self._closed and (waiting or self._leases > 0)

    def _await_jobs(self) -> bool:
        """Wait until there are jobs; False where this worker is to leave, which it then has done."""
        with self._changed:
            while not self._closed:
                if self._jobs:
                    return True
                timeout = None if self._leases else self._linger
                if not self._changed.wait(timeout) and not self._jobs and not self._leases:
                    break
            self._leave()
            return False

    def _take(self) -> _Job | None:
        """Take the next job that is still wanted, if there is one."""
        with self._changed:
            while self._jobs:
                job = self._jobs.popleft()
                if job.begin():
                    self._idle -= 1
                    return job
        return None

    def _leave(self) -> None:
        self._idle -= 1
        self._threads.discard(threading.current_thread())

    def _do(self, job: _Job, process: WorkerProcess) -> WorkerProcess | None:
        """Have a job done; returns the process if it can do another."""
        job.process = process
        if job.stopped:  # after it was taken from the queue and before there was a process to end
            process.end()
        try:
            job.future.set_result(process.ask(job.payload, job.deadline, job.name))
        except Gone as gone:
            self._lost(job, gone)
        except BaseException as error:
            job.fail(error)
        job.process = None
        with self._changed:
            self._idle += 1
        if not process.has_ended:
            return process
        self._forget(process)
        return None

    def _lost(self, job: _Job, gone: Gone) -> None:
        """Have a job whose worker ended tried once more, unless that was what its caller wanted."""
        job.tries += 1
        if job.stopped or self._closed:
            job.stopped = True
            job.fail(gone)
            return
        again = job.tries < _TRIES
        log.warning(
            "a compile worker %s during %s, which %s; its last words:\n%s", gone.how, job.name,
            "is tried once more" if again else "is given up", gone.words or "(none)",
        )  # fmt: skip
        if again:
            with self._changed:
                self._jobs.appendleft(job)
        else:
            where = pass_in(gone.words)
            why = f"{gone.how}, {where}" if where else gone.how
            job.fail(WorkerDied(f"{job.name} took down a compile worker, twice", why=why,
                                subject=job.name))  # fmt: skip

    def _forget(self, process: WorkerProcess) -> None:
        with self._changed:
            self._processes.discard(process)

    def _give_up(self, error: NoWorker) -> None:
        """Leave; the last to do so tells the jobs that nobody will do them."""
        with self._changed:
            self._leave()
            waiting = [] if self._threads else list(self._jobs)
            if waiting:
                self._jobs.clear()
        for job in waiting:
            if job.begin():
                job.fail(error)
