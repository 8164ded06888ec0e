"""For executors that compile on other machines: a process of its own for every compile, there as here.

An executor takes part in compiles as the setting `executor`. One whose work runs in other processes than the
caller's says so by an attribute `other_processes` that is true; without it `torch.compile` does not use it,
since a thread of this process would wait for a lock that the caller holds until the thread is done.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["run_isolated"]

T = TypeVar("T")


def run_isolated(
    function: Callable[..., T], /, *args: Any, deadline: float | None = None, name: str = "",
    limit: int | None = None,
) -> T:  # fmt: skip
    """Run a function in a compile worker of this machine, and return its result.

    A worker is a process that stays for the next call. What hangs or crashes there is ended, costs one
    retry where it crashed, and leaves the caller's process as it was.

    Args:
        function: a function that another process can import.
        args: what it is called with; they are pickled.
        deadline: after how many seconds it is ended; None: never.
        name: what messages call it.
        limit: how many workers this process may have; None: as many as it may use cores.

    Raises:
        CompileFailed: it took too long, or took down two workers.
        Whatever the function raises.
    """
    from intarsia.compiling.planner import usable_cores
    from intarsia.compiling.workers import workers

    pool = workers.compiling(limit or usable_cores(), bounded=limit is None)
    future = pool.start(
        function, *args, job_deadline=deadline, job_name=name, job_place=(list(sys.path), {})
    )
    result: T = future.result()
    return result
