"""An executor whose compiles run on a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, TypeVar

from distributed import Client, get_worker

from intarsia.executors import run_isolated

__all__ = ["DaskExecutor"]

T = TypeVar("T")
DEADLINE = 1200.0
"""Seconds, as the setting `compile-timeout` has."""


class DaskExecutor(Executor):
    """Runs compile tasks on the workers of a Dask cluster; given as the setting `executor`.

    Each compile runs in a process of its own beside the Dask worker, which survives whatever a compiler
    does. One that hangs costs the deadline and one that crashes costs a retry; then the next compiler of
    the route is asked. What a worker cannot compile, since it lacks a plugin or would make something else,
    is compiled by the process that asks, with a warning.
    """

    other_processes = True

    def __init__(
        self,
        client: Client | str,
        *,
        deadline: float | None = DEADLINE,
        patience: float = 60.0,
        resources: Mapping[str, float] | None = None,
        workers: Sequence[str] | None = None,
    ) -> None:
        """Use a cluster.

        Args:
            client: a client, which stays open, or the scheduler's address.
            deadline: how many seconds one compile may take from when a worker begins it; None: no limit.
            patience: how many seconds to wait for a first worker.
            resources: what a compile takes of Dask's abstract resources.
            workers: names or addresses of the workers that may compile; None: all.

        Raises:
            OSError: there is no scheduler at the address.
        """
        self._own = isinstance(client, str)
        self.client = Client(client, set_as_default=False) if isinstance(client, str) else client
        self.deadline = deadline
        self.patience = patience
        chosen = {"resources": dict(resources or {}) or None, "workers": workers}
        self._executor = self.client.get_executor(
            pure=False, **{name: value for name, value in chosen.items() if value is not None}
        )

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run a function on the cluster.

        Raises:
            TimeoutError: there is no worker.
        """
        if not self.client.scheduler_info(n_workers=-1)["workers"]:
            self.client.wait_for_workers(1, timeout=self.patience)
        call = partial(fn, *args, **kwargs)
        sent: Future[T] = self._executor.submit(_isolated, call, self.deadline)
        return sent

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more; a client that was opened here is closed."""
        self._executor.shutdown(wait=wait and not cancel_futures)
        if self._own:
            self.client.close()


def _isolated(call: Callable[[], T], deadline: float | None) -> T:
    """Run a call beside a Dask worker."""
    worker = get_worker()
    return run_isolated(
        call, deadline=deadline, name=f"a compile at {worker.address}", limit=worker.state.nthreads
    )
