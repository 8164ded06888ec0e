"""What the benchmarks share: children with caches of their own, CPU seconds, medians, tables."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def child_seconds() -> float:
    """Return the CPU seconds of children that have ended: the C++ compiler's."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


class Measured:
    """A block's wall and CPU seconds, and how much of the CPU its children used."""

    def __enter__(self) -> Measured:
        self._start = time.perf_counter(), cpu_seconds(), child_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        wall, cpu, child = self._start
        self.wall = time.perf_counter() - wall
        self.cpu = cpu_seconds() - cpu
        self.child = child_seconds() - child

    def to_dict(self) -> dict[str, float]:
        """Return the seconds as plain data."""
        return {"wall": self.wall, "cpu": self.cpu, "compiler": self.child}


def run_child(
    script: Path,
    arguments: Sequence[str],
    caches: Path,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run a script in a new process whose Inductor and Triton caches are in a folder; returns its JSON."""
    variables = {
        **os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"), "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "core", ROOT / "plugins", ROOT))),
        **(environment or {}),
    }  # fmt: skip
    variables.pop(
        "PYTHONDONTWRITEBYTECODE", None
    )  # compiled modules are kept, as they are for a user
    done = subprocess.run(
        [sys.executable, str(script), *arguments], env=variables, capture_output=True, text=True,
        timeout=580, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{script.name} {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def fresh_caches(template: Path | None) -> Path:
    """Return a new cache folder, holding only the precompiled headers of a template."""
    folder = Path(tempfile.mkdtemp(prefix="intarsia-bench-"))
    if template is not None:
        headers = template / "inductor" / "precompiled_headers"
        if headers.is_dir():
            shutil.copytree(headers, folder / "inductor" / "precompiled_headers")
    return folder


def interleaved(
    functions: Mapping[str, Callable[[], Any]], *, rounds: int, calls: int
) -> dict[str, dict[str, float]]:
    """Time functions in turns; returns the median and the least microseconds of one call of each.

    The order differs from round to round: who runs after a function of the same weights finds them cached.
    """
    order, chance = list(functions), random.Random(0)
    walls: dict[str, list[float]] = {name: [] for name in functions}
    cpus: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        for _ in range(3):
            function()
    for _ in range(rounds):
        chance.shuffle(order)
        for name in order:
            function = functions[name]
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(calls):
                function()
            walls[name].append((time.perf_counter() - wall) / calls * 1e6)
            cpus[name].append((time.process_time() - cpu) / calls * 1e6)
    return {
        name: {
            "median_us": statistics.median(walls[name]), "min_us": min(walls[name]),
            "cpu_us": statistics.median(cpus[name]), "min_cpu_us": min(cpus[name]),
        }
        for name in functions
    }  # fmt: skip


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return rows as an aligned table."""
    cells = [[_cell(c) for c in row] for row in [list(headers), *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    lines = ["  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in
                       enumerate(zip(row, widths, strict=True))) for row in cells]  # fmt: skip
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def _cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def write_json(path: str | None, data: Any) -> None:
    """Write a benchmark's numbers to a file, if one was asked for."""
    if path:
        Path(path).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
