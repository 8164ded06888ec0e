"""The compile phase with and without workers, by the number of distinct tasks, in fresh processes.

    python tests/benchmarks/pool.py [--tasks 2 4 24] [--repeat 3] [--ways ...] [--json FILE]

A chain of small layers, each of another width, so that every piece is a distinct task for Inductor. Every
measurement is a new process with empty caches but for Inductor's precompiled header, and Inductor already
imported in it. Ways:

- here: `workers=0`, everything in this process.
- default: no setting; the planner decides, and this process compiles too.
- default, warm: the same, with workers that have imported Inductor for an earlier compile.
- 2 workers, warm: `workers=2`, so that nothing is compiled in this process.

`wall` is the compile phase alone, as the report has it; `CPU s` is this process, its compilers and its
workers, imports of workers included where they are not warm.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import itertools

from tests.benchmarks.common import cpu_seconds, fresh_caches, run_child, table, write_json

WAYS = ("here", "default", "default, warm", "2 workers, warm")
SETTING = {"here": 0, "default": None, "default, warm": None, "2 workers, warm": 2}


def chain(first: int, count: int) -> Any:
    """Return a model of so many pieces between sigmoids, none equal to another."""
    import torch

    widths = [first + 4 * i for i in range(count + 1)]

    class Chain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            pairs = itertools.pairwise(widths)
            self.layers = torch.nn.ModuleList(torch.nn.Linear(a, b) for a, b in pairs)
            self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(b) for b in widths[1:])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer, norm in zip(self.layers, self.norms, strict=True):
                x = torch.sigmoid(norm(torch.nn.functional.gelu(layer(x))))
            return x

    return Chain(), torch.randn(5, first)


def compiled(first: int, count: int, workers: int | None) -> Any:
    """Compile such a model, check it, and return it."""
    import torch

    import intarsia

    model, x = chain(first, count)
    with torch.no_grad():
        made = intarsia.compile(
            model, (x,), dynamic={"x": {0: "n"}}, compilers=["inductor"], strict=True,
            split_at=["torch.sigmoid"], workers=workers, cache=False,
        )  # fmt: skip
        torch.testing.assert_close(made(x), model(x), rtol=1e-4, atol=1e-4)
    assert made.report.compiler_calls == count, made.report.compiler_calls
    return made


def measure(way: str, count: int) -> dict[str, Any]:
    """Compile in this process, Inductor imported by an earlier compile."""
    import torch

    from intarsia.compiling.planner import usable_cores
    from intarsia.compiling.workers import workers

    torch.set_num_threads(1)
    compiled(900, 1, 0)
    with workers.warm(0):
        if "warm" in way:
            size = SETTING[way] or usable_cores() - 1
            while len(pids := workers.compiling(size).pids()) < size or not _have_compiled(pids):
                compiled(1000 + 8 * len(_seen), 2 * size, size)
        earlier = _of_workers()
        begun, cpu = time.perf_counter(), cpu_seconds()
        made = compiled(64, count, SETTING[way])
        wall = time.perf_counter() - begun
        spent = cpu_seconds() - cpu + _of_workers() - earlier
    return {"wall": made.report.seconds["compile"], "total": wall, "cpu": spent}


_seen: list[int] = []


def _have_compiled(pids: list[int]) -> bool:
    """Say whether every worker has had something to compile: they take jobs as they are free."""
    _seen.append(len(pids))
    return all(_cpu_of(pid) > 5 for pid in pids)


def _of_workers() -> float:
    from intarsia.compiling.workers import workers

    return sum(_cpu_of(pid) for pid in workers.compiling(0).pids())


def _cpu_of(pid: int) -> float:
    """Return the CPU seconds of a process and of its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / float(os.sysconf("SC_CLK_TCK"))


def child(way: str, count: int, caches: Path) -> dict[str, Any]:
    """Measure in a new process."""
    return run_child(Path(__file__), ["--child", way, str(count)], caches)


def main() -> None:
    """Run every way with every number of tasks, in turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 4, 24])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--json")
    parser.add_argument("--child", nargs=2)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child[0], int(options.child[1]))))
        return
    template = fresh_caches(None)
    child("here", 1, template)
    runs: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for count in options.tasks:
        for _ in range(options.repeat):
            for way in options.ways:
                one = child(way, count, fresh_caches(template))
                runs.setdefault((count, way), []).append(one)
                print(f"  {count} tasks, {way}: {one}", flush=True)
    found = {
        key: {name: statistics.median(one[name] for one in many) for name in many[0]}
        for key, many in runs.items()
    }
    rows = [
        [way, count, one["wall"], one["cpu"], one["wall"] / found.get((count, "here"), one)["wall"]]
        for (count, way), one in found.items()
    ]
    print("\n" + table(["way", "tasks", "wall s", "CPU s", "wall / here"], rows))
    write_json(options.json, [{"way": w, "tasks": c, **one} for (c, w), one in found.items()])


if __name__ == "__main__":
    main()
