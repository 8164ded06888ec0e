"""Measures calls side by side: interleaved, so that a change of the machine's mood hits all alike."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from attrs import define, frozen

__all__ = ["Spent", "Timing", "interleaved", "measured"]

Call = Callable[[], object]
_SAMPLE = 0.005
"""Seconds: a sample repeats a call until it lasts about this long, so that clocks can see it."""


@define
class Spent:
    """What a block of work cost, in seconds."""

    wall: float = 0.0
    cpu: float = 0.0
    """CPU time of this process and of the children that have ended, such as a C++ compiler."""


@frozen
class Timing:
    """The median time of one call, in seconds."""

    wall: float
    cpu: float
    samples: int


@contextmanager
def measured() -> Iterator[Spent]:
    """Measure the block."""
    spent = Spent()
    wall, cpu = time.perf_counter(), _cpu()
    try:
        yield spent
    finally:
        spent.wall, spent.cpu = time.perf_counter() - wall, _cpu() - cpu


def _cpu() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def interleaved(
    calls: Mapping[str, Call],
    *,
    rounds: int = 15,
    seconds: float = 10.0,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Timing]:
    """Return the median wall and CPU time of each call.

    Every round measures every call once, in turn, and begins with another one than the round before.

    Args:
        calls: name -> call; each should have run before, so that nothing is compiled here.
        rounds: how many samples of each; fewer where they do not fit into `seconds`, but at least three.
        seconds: the time for all together.
        tell: told of (rounds done, rounds) after each.
    """
    names = list(calls)
    repeats = {name: _repeats(call) for name, call in calls.items()}
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    deadline = time.perf_counter() + seconds
    for index in range(rounds):
        if index >= 3 and time.perf_counter() > deadline:
            break
        first = index % len(names)
        for name in names[first:] + names[:first]:
            sample = _sample(calls[name], repeats[name])
            wall[name].append(sample[0])
            cpu[name].append(sample[1])
        tell(index + 1, rounds)
    return {
        name: Timing(statistics.median(wall[name]), statistics.median(cpu[name]), len(wall[name]))
        for name in names
    }


def _sample(call: Call, repeats: int) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats


def _repeats(call: Call) -> int:
    once = min(_sample(call, 1)[0] for _ in range(2))
    return max(1, min(1000, round(_SAMPLE / max(once, 1e-7))))
