"""A compile worker: the program that a pool starts, one job after the other.

It is started by its path, not through `multiprocessing`, which would import the user's main module: a
script without `if __name__ == "__main__"` would then compile in every worker. Nothing of intarsia or torch
is imported before a job or the pool's initializer asks for it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection

STACKS = signal.SIGUSR1
"""A worker that gets it prints the stack of every thread, also while C code holds the interpreter."""

_PARENT_DIED = 1  # PR_SET_PDEATHSIG of Linux' prctl


def main(descriptor: int, parent: int) -> None:
    """Answer jobs from a socket until it is closed."""
    os.set_inheritable(descriptor, False)  # a C++ compiler that we start must not keep it open
    _die_with(parent)
    faulthandler.enable()
    faulthandler.register(STACKS, all_threads=True)
    connection = Connection(descriptor)
    setup = pickle.loads(connection.recv_bytes())
    sys.path[:] = setup["path"]
    sys.argv[:] = [""]
    if setup["nice"]:
        os.nice(setup["nice"])
    inbox = _Inbox(connection)
    connection.send_bytes(answer(setup["initializer"]))
    while (job := inbox.next()) is not None:
        connection.send_bytes(answer(job))


def _die_with(parent: int) -> None:
    """Have the kernel end this process when the thread that started it is gone, however it went.

    A C++ compiler that runs at that moment then ends by itself, a few seconds later. Without this a
    worker whose native code holds Python's lock would stay.
    """
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):  # a libc without it: the socket tells us
            ctypes.CDLL(None).prctl(_PARENT_DIED, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class _Inbox:
    """Reads jobs in a thread of its own, so that the end of the parent is noticed during a job too."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._jobs: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._busy = False
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def next(self) -> bytes | None:
        """Wait for a job; None when there will be no more."""
        self._busy = False
        job = self._jobs.get()
        self._busy = job is not None
        return job

    def _read(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._jobs.put(self._connection.recv_bytes())
        self._jobs.put(None)
        if self._busy:  # nobody waits for the job any more, nor for the compilers that it started
            os.killpg(os.getpgrp(), signal.SIGKILL)


def answer(payload: bytes | None) -> bytes:
    """Run a pickled (function, arguments, keywords); returns (it went well, value or error, traceback)."""
    try:
        if payload is None:
            return pickle.dumps((True, None, ""))
        function, arguments, keywords = pickle.loads(payload)
        return pickle.dumps((True, function(*arguments, **keywords), ""))
    except BaseException as error:  # also SystemExit: the worker goes on, the job has its answer
        return _failure(error, traceback.format_exc())


def _failure(error: BaseException, text: str) -> bytes:
    try:
        data = pickle.dumps((False, error, text))
        pickle.loads(data)  # some errors can be written and not read
    except Exception:
        data = pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}"), text))
    return data


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
