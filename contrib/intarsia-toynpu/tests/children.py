"""Python in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

HERE = Path(__file__).parent


def run_child(source: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run source in a new interpreter that finds the models of these tests."""
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        env=env, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def output_of(source: str, **environment: str) -> str:
    """Run source in a new interpreter; returns what it printed, and raises where it failed."""
    done = run_child(source, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout
