"""The parent's side of one compile worker: start it, ask it, look into it, end it with all it started."""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.spawn import get_executable
from typing import IO, Any

from intarsia.compiling import worker
from intarsia.errors import CompileFailed

log = logging.getLogger("intarsia")

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""What a worker runs: a function that can be imported, its arguments and keywords."""

Place = tuple[list[str], Mapping[str, str | None]]
"""What a job wants of its worker: `sys.path`, and environment variables with their values."""

_STACK_SECONDS = 1.0
"""How long a worker that is going to be ended may take to print its stacks."""

_STACK = "most recent call first"

_GRACE_SECONDS = 0.3
"""How long an idle worker may take to end by itself, so that its compilers are closed."""


class NoWorker(CompileFailed):
    """A compile worker cannot be started, so nothing is known about the job."""


class WorkerDied(CompileFailed):
    """A compile worker ended during a job, and so did the second one that tried it."""


class WorkerTimeout(CompileFailed):
    """A job in a compile worker took longer than it may."""


_IN_PASS = re.compile(
    r'File "([^"\n]+)", line (\d+) in \S+\n\s*File "[^"\n]*intarsia.passes.checks\.py", line \d+ in run\n'
)


def pass_in(stacks: str) -> str:
    """Return where the pass is that a worker was in, by its stacks: "in a pass, at FILE:LINE"; or ""."""
    found = _IN_PASS.search(stacks)
    return "" if found is None else f"in a pass, at {found[1]}:{found[2]}"


class Gone(Exception):
    """The process ended.

    Attributes:
        how: one clause that says how.
        words: what it printed last; the stacks, where it crashed.
    """

    def __init__(self, how: str, words: str) -> None:
        super().__init__(how)
        self.how = how
        self.words = words


class _Tail(threading.Thread):
    """Keeps the last lines that a worker and what it starts have printed."""

    def __init__(self, stream: IO[bytes], pid: int) -> None:
        super().__init__(name=f"intarsia-worker-{pid}-output", daemon=True)
        self._stream = stream
        self._pid = pid
        self._lines: collections.deque[str] = collections.deque(maxlen=200)
        self.start()

    def run(self) -> None:
        with contextlib.suppress(ValueError, OSError), self._stream as stream:
            for line in stream:
                text = line.decode(errors="replace").rstrip()
                self._lines.append(text)
                log.debug("worker %s: %s", self._pid, text)

    def text(self) -> str:
        """Return the lines."""
        return "\n".join(self._lines.copy())

    def since(self, mark: str) -> str:
        """Return the lines from the last one that begins with a mark, or all of them."""
        lines = list(self._lines.copy())
        starts = [i for i, line in enumerate(lines) if line.startswith(mark)]
        return "\n".join(lines[starts[-1] :] if starts else lines)


class WorkerProcess:
    """One worker, in a session of its own; `set_up` comes before the first job.

    Attributes:
        was_ended: whether `end` was called.

    Raises:
        NoWorker: it cannot be started.
    """

    def __init__(self) -> None:
        self._path, self._environment = list(sys.path), dict(os.environ)
        ours, theirs = socket.socketpair()
        try:
            self._process = _spawn(theirs.fileno(), self._environment)
        except OSError as error:
            ours.close()
            raise NoWorker("a compile worker cannot be started", why=str(error)) from error
        finally:
            theirs.close()
        self._connection = Connection(ours.detach())
        self._ending = threading.Lock()
        self.was_ended = False
        assert self._process.stdout is not None
        self._tail = _Tail(self._process.stdout, self.pid)

    @property
    def pid(self) -> int:
        """Its process id, which is its process group's too."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it was seen to end."""
        return self._process.returncode is not None

    def is_of(self, place: Place) -> bool:
        """Say whether it was started where imports and the named variables are as in a place."""
        path, variables = place
        ours = self._environment
        return path == self._path and all(ours.get(n) == v for n, v in variables.items())

    def set_up(self, nice: int, initializer: Call | None, deadline: float) -> None:
        """Wait until it is ready for jobs.

        Raises:
            NoWorker: it ends, fails or takes too long before that; nothing of it is left.
        """
        first = None if initializer is None else pickle.dumps(initializer)
        setup = {"path": self._path, "nice": nice, "initializer": first}
        try:
            self.ask(pickle.dumps(setup), deadline, "the start")
        except Gone as gone:
            raise NoWorker(f"a compile worker did not start: {gone.how}", why=gone.words) from gone
        except BaseException as error:
            self.kill()
            raise NoWorker("a compile worker did not start", why=str(error)) from error

    def ask(self, payload: bytes, deadline: float | None, name: str) -> Any:
        """Have a job done, and return its value or raise its error.

        Raises:
            WorkerTimeout: it took longer than the deadline, in seconds; the worker is gone.
            Gone: the worker ended.
        """
        try:
            self._connection.send_bytes(payload)
            if not self._connection.poll(deadline):
                raise self._overdue(deadline, name)
            data = self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            self.kill()
            words = self._tail.since("Fatal Python error")
            raise Gone(_ending(self._process.returncode), words) from error
        return _value(data)

    def _overdue(self, deadline: float | None, name: str) -> WorkerTimeout:
        stacks = self.stacks()
        self.kill()
        log.warning(
            "%s took longer than %g s in a compile worker, which was ended with all it had started; "
            "it was at:\n%s", name, deadline, stacks,
        )  # fmt: skip
        return WorkerTimeout(
            f"{name} took longer than {deadline:g} s in a compile worker",
            why=f"it was {where}" if (where := pass_in(stacks)) else "",
            next_step="Raise compile_timeout if it needs more.",
            subject=name,
        )

    def stacks(self) -> str:
        """Return the stack of every thread of the worker, as it prints them itself."""
        os.kill(self.pid, worker.STACKS)
        end = time.monotonic() + _STACK_SECONDS
        before, text = "", self._tail.text()
        while time.monotonic() < end and (text != before or _STACK not in text):
            time.sleep(0.1)
            before, text = text, self._tail.text()
        return self._tail.since("Thread 0x") if "\nThread 0x" in text else text

    def stop(self) -> None:
        """End an idle worker: it may close its compilers first."""
        self._connection.close()
        _wait_unreaped(self.pid, _GRACE_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the worker and every process that it started, now."""
        with self._ending:
            self._end_group()
            self._process.wait()
        self._connection.close()
        self._tail.join(1.0)

    def end(self) -> None:
        """The same, for a thread that is not the one that asks: that one notices and clears up."""
        self.was_ended = True
        with self._ending:
            self._end_group()

    def _end_group(self) -> None:
        # Before the process is waited for: until then its id, and so the group's, is its own.
        if not self.has_ended:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)


def _spawn(descriptor: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    program = [get_executable(), "-P", worker.__file__, str(descriptor), str(os.getpid())]
    return subprocess.Popen(
        program, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        pass_fds=(descriptor,), start_new_session=True,
        env=environment,  # Python's, and not what libraries have set behind its back
    )  # fmt: skip


def _wait_unreaped(pid: int, seconds: float) -> None:
    """Wait until a process has ended, leaving it to be reaped: its group is still to be ended."""
    end = time.monotonic() + seconds
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    with contextlib.suppress(ChildProcessError):
        while os.waitid(os.P_PID, pid, flags) is None and time.monotonic() < end:
            time.sleep(0.01)


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (the system does that where memory runs out)" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"


class RemoteTraceback(Exception):
    """Where an error was raised in a worker; the `__cause__` of the error."""


def _value(data: bytes) -> Any:
    went_well, value, text = pickle.loads(data)
    if went_well:
        return value
    value.__cause__ = RemoteTraceback(f"\n{text}")
    raise value
