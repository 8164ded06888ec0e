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


CALLED = """
    import json, logging, sys
    sys.path[:0] = {paths!r}
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    import torch, intarsia
    from tests.faults.sabotage import Model, compilers

    torch.manual_seed(0)
    model, x = Model(1), torch.randn(3, 8)
    settings = dict(compilers=["saboteur", "eager"], workers=0, split_at=["torch.sigmoid"],
                    dynamic={{"x": {{0: "n"}}}}, check={check!r},
                    options={{"saboteur": {{"how": {how!r}}}}}, cache={root!r})
    door, deed = {door!r}, {deed!r}
    if door == "file" and deed == "call":
        made = intarsia.load({file!r}, model, cache={root!r}, options=settings["options"])
    elif door == "torch.compile":
        made = torch.compile(model, backend="intarsia", dynamic=True,
                             options={{k: v for k, v in settings.items() if k != "dynamic"}})
    else:
        made = intarsia.compile(model, (x,), **settings)
    if door == "file" and deed == "compile":
        made.save({file!r})
    if deed == "call":
        with torch.no_grad():
            torch.testing.assert_close(made(x), model(x))
    print("done")
"""


def called(
    root: Path, *, deed: str = "call", how: str = "null when called", door: str = "compile",
    check: str = "first",
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Compile in a new process, or take what was compiled before, and call it."""
    paths = [str(ROOT / "core"), str(ROOT / "plugins"), str(ROOT), str(PLUGINS)]
    script = textwrap.dedent(CALLED).format(
        paths=paths, root=str(root / "cache"), file=str(root / "plan"), how=how, deed=deed,
        door=door, check=check,
    )  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False
    )


SKIPPED = "what it made took down process"


@pytest.mark.parametrize(
    ("how", "code", "check"),
    [("null", -11, "none"), pytest.param("exit", 3, "first", marks=pytest.mark.slow)],
)
def test_what_took_down_this_process_when_called_is_skipped_at_the_next_start(
    how: str, code: int, check: str, tmp_path: Path
) -> None:
    def run_it() -> subprocess.CompletedProcess[str]:
        return called(tmp_path, how=f"{how} when called", check=check)

    assert run_it().returncode == code
    for _ in range(2):  # it stays so: a plan without the compiler is not kept
        later = run_it()
        assert later.returncode == 0, later.stderr
        assert SKIPPED in later.stdout
        assert "saboteur failed" in later.stdout
        assert "intarsia cache crashes --forget" in later.stdout

    command = [sys.executable, "-m", "intarsia.cli", "cache", "crashes", "--set",
               f"cache={tmp_path / 'cache'}"]  # fmt: skip
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "piece_0 by saboteur, called" in told
    subprocess.run([*command, "--forget"], capture_output=True, timeout=60, check=True)
    assert run_it().returncode == code


@pytest.mark.parametrize("door", ["compile", "torch.compile", "file"])
def test_a_plan_that_was_loaded_and_took_down_its_process_is_not_loaded_again(
    door: str, tmp_path: Path
) -> None:
    first = called(tmp_path, deed="compile", door=door)
    if door != "torch.compile":  # which compiles when it is called
        assert first.returncode == 0, first.stderr
    assert called(tmp_path, door=door).returncode == -11
    last = called(tmp_path, door=door)
    if door == "file":  # nothing can be compiled in its place
        assert last.returncode == 1
        assert "CacheError" in last.stderr
        assert SKIPPED in last.stderr
    else:
        assert last.returncode == 0, last.stderr
        assert SKIPPED in last.stdout


def test_a_call_that_raises_accuses_nobody(tmp_path: Path) -> None:
    assert called(tmp_path, how="raise when called").returncode == 1
    again = called(tmp_path, how="raise when called")
    assert "sabotage" in again.stderr
    assert SKIPPED not in again.stdout + again.stderr
