"""F11: a compiler raises, exits, dereferences null or aborts, in a worker and in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.faults.sabotage import (
    PLUGINS,
    compiled,
    compilers,
    needs_linux,
    no_worker_is_left,
    warnings,
)

pytestmark = [pytest.mark.timeout(240), pytest.mark.usefixtures("saboteur"), needs_linux]

ROOT = Path(__file__).resolve().parents[2]
NEXT = ["saboteur failed", "eager compiled"]
CLEAN = [["saboteur compiled"]]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_exception_moves_on_to_the_next_compiler(
    workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    made = compiled("raise", workers=workers)
    assert compilers(made) == [NEXT]
    assert len(warnings(caplog, "RuntimeError: sabotage")) == 1
    assert compilers(compiled("")) == CLEAN


@pytest.mark.parametrize(
    ("how", "ending"),
    [
        ("exit", "exit code 3"),
        ("null", "SIGSEGV"),
        pytest.param("abort", "SIGABRT", marks=pytest.mark.slow),
        pytest.param("kill", "SIGKILL", marks=pytest.mark.slow),
    ],
)
def test_a_crash_in_a_worker_costs_one_retry_and_then_the_next_compiler_is_asked(
    how: str, ending: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = compiled(how)
    assert compilers(made) == [NEXT]
    (again,) = warnings(caplog, "which is tried once more")
    (given_up,) = warnings(caplog, "which is given up")
    assert ending in again
    assert ending in given_up
    assert no_worker_is_left()
    assert compilers(compiled("")) == CLEAN


def test_a_crash_that_does_not_come_again_costs_one_retry(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = compiled("null", once=tmp_path / "once")
    assert compilers(made) == CLEAN
    assert made.report.compiler_calls == 1
    assert len(warnings(caplog, "which is tried once more")) == 1
    tries = [line.split() for line in (tmp_path / "once").read_text().splitlines()]
    assert len(tries) == 2
    assert str(os.getpid()) not in {pid for pid, _ in tries}


SCRIPT = """
    import json, logging, sys
    sys.path[:0] = {paths!r}
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    from tests.faults.sabotage import compiled, compilers

    print(json.dumps(compilers(compiled({how!r}, workers={workers}, cache={root!r}))))
"""


def run(how: str, workers: int | None, root: Path) -> subprocess.CompletedProcess[str]:
    """Compile in a new process whose cache has a crash journal."""
    paths = [str(ROOT / "core"), str(ROOT / "plugins"), str(ROOT), str(PLUGINS)]
    script = textwrap.dedent(SCRIPT).format(paths=paths, root=str(root), how=how, workers=workers)
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False
    )


@pytest.mark.parametrize(
    ("how", "code"), [("null", -11), pytest.param("exit", 3, marks=pytest.mark.slow)]
)
def test_what_took_down_this_process_is_not_compiled_in_the_next_one(
    how: str, code: int, tmp_path: Path
) -> None:
    first = run(how, 0, tmp_path)
    assert first.returncode == code
    if how == "null":
        assert "in string_at" in first.stderr  # the stack of the crash

    second = run(how, 0, tmp_path)
    assert second.returncode == 0, second.stderr
    line, answer = second.stdout.splitlines()
    assert json.loads(answer) == [NEXT]
    assert "saboteur failed" in line
    assert "it took down a process that compiled it" in line

    # Where there may be workers, one of them tries it.
    third = run("", None, tmp_path)
    assert third.returncode == 0, third.stderr
    line, answer = third.stdout.splitlines()
    assert json.loads(answer) == CLEAN
    assert "so saboteur compiles it in a worker" in line
