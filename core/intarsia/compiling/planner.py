"""Decides whether a compile goes to workers, and how many: by tasks, cores and free memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from attrs import frozen

WORKER_BYTES = 1_500_000_000
"""What a worker with torch and Inductor takes at its peak, the C++ compiler that it starts included."""

_COLD, _WARM = 8, 3
"""How many tasks make workers worth it: those that must first be started import for 6 to 8 CPU seconds,
which is what compiling four or five pieces costs; and the others while they are up."""


@frozen
class Plan:
    """Who compiles.

    Attributes:
        workers: how many workers there may be; 0: this process does it.
        here: whether this process compiles as well, whatever no worker has begun.
    """

    workers: int
    here: bool = True


def plan(tasks: int, setting: int | None, *, cores: int, live: int) -> Plan:
    """Return who compiles.

    A number of workers that is set means isolation: all that can go to a worker does. Not set, they are
    there for speed: this process goes on compiling at the front of the queue while they start, so that
    it is at no time slower than without them by more than what they take from its core.

    Args:
        tasks: how many distinct tasks are to be compiled and may go to a worker.
        setting: the setting `workers`.
        cores: how many processors this process may use.
        live: how many workers are up already.
    """
    if setting is not None:
        return Plan(min(setting, tasks), here=False)
    enough = tasks >= (_WARM if live else _COLD)
    return Plan(min(cores - 1, tasks - 1)) if enough and cores > 1 else Plan(0)


def usable_cores() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_room() -> bool:
    """Say whether there is memory for one more worker; yes where nobody knows."""
    free = free_memory()
    return free is None or free >= WORKER_BYTES


def free_memory(root: Path = Path("/")) -> int | None:
    """Return how many bytes this process could still get: the machine's and its control group's limit."""
    if sys.platform != "linux":
        return None
    known = [_available(root), *_left_in_groups(root)]
    found = [value for value in known if value is not None]
    return min(found) if found else None


def _available(root: Path) -> int | None:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def _left_in_groups(root: Path) -> list[int | None]:
    """Return what is left of the memory limit of this process's group and of each one above it."""
    found: list[int | None] = []
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("" if number == "0" else "memory")
        own = mount / path.lstrip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(mount):
                found.extend(_left(folder, *names) for names in _FILES)
    return found


def _left(folder: Path, limit: str, used: str) -> int | None:
    most, now = _lines(folder / limit), _lines(folder / used)
    if not most or not now or not most[0].isdigit():
        return None
    return int(most[0]) - int(now[0]) + _page_cache(folder)


def _page_cache(folder: Path) -> int:
    """Return the bytes of a group that are files in memory, which the kernel gives up when asked."""
    for line in _lines(folder / "memory.stat"):
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return int(value)
    return 0


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []  # this system does not have it
