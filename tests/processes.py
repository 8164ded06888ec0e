"""What tests of worker processes share: jobs that a worker runs, and a look at who is alive."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path


def is_alive(pid: int) -> bool:
    """Say whether a process runs: a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def children_of(pid: int) -> set[int]:
    """Return the living processes that a process has started, and those that they have."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and is_alive(int(folder.name)):
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(folder.name)] = int(fields[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Wait until something is so; says whether it became so in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def are_gone(pids: Iterable[int], seconds: float = 1.0) -> bool:
    """Say whether processes end within a second."""
    return eventually(lambda: not any(map(is_alive, pids)), seconds)


# ------------------------------------------------------------------------------ what workers run


def where(*_: object) -> int:
    """Return the process id."""
    return os.getpid()


def slow_where(seconds: float) -> int:
    """Return the process id after a while."""
    time.sleep(seconds)
    return os.getpid()


def exit_once(file: str) -> int:
    """Take the process down the first time; then say which process it is."""
    path = Path(file)
    if not path.exists():
        path.touch()
        os._exit(7)
    return os.getpid()


def note_and_sleep(file: str) -> None:
    """Write down this process and one that it starts, and sleep."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    write_whole(file, f"{os.getpid()} {child.pid}")
    time.sleep(1000)


def note_and_hold(file: str) -> None:
    """Write down this process and sleep with Python's lock held: no thread of it can run."""
    import ctypes

    write_whole(file, str(os.getpid()))
    ctypes.PyDLL(None).sleep(1000)


def write_whole(file: str, text: str) -> None:
    """Write a file so that a reader sees all of it or none."""
    Path(file + ".part").write_text(text)
    os.replace(file + ".part", file)


def read_pids(file: Path, seconds: float = 60.0) -> list[int]:
    """Wait for such a file; returns the processes in it."""
    assert eventually(file.exists, seconds), f"{file} never came"
    return [int(word) for word in file.read_text().split()]


class TwoArguments(Exception):
    """An error that can be pickled, and not unpickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


def raise_two() -> None:
    """Raise it."""
    raise TwoArguments("left", "right")


def environment() -> dict[str, str]:
    """Return the environment variables."""
    return dict(os.environ)


def niceness() -> int:
    """Return the priority."""
    return os.nice(0)


def shout(text: str) -> None:
    """Print, to both outputs, as C code does."""
    os.write(1, text.encode() + b"\n")
    os.write(2, text.encode() + b"\n")


def fail_to_begin() -> None:
    """Fail, as an initializer."""
    raise RuntimeError("no such device")
