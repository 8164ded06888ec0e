"""F29: somebody kills a compile worker while it compiles, and then another compile runs."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.faults.sabotage import (
    compiled,
    compilers,
    needs_linux,
    no_worker_is_left,
    warnings,
)
from tests.processes import eventually

pytestmark = [pytest.mark.timeout(240), pytest.mark.usefixtures("saboteur"), needs_linux]

CLEAN = [["saboteur compiled"]]


def kill_when_it_compiles(noted: Path, killed: list[int]) -> None:
    """Wait until a worker has written down that it compiles, and kill it."""
    assert eventually(noted.exists, 60)
    time.sleep(0.1)
    killed.append(int(noted.read_text().split()[0]))
    os.kill(killed[0], signal.SIGKILL)


def test_a_worker_that_is_killed_costs_one_retry(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    noted, killed = tmp_path / "once", list[int]()
    killer = threading.Thread(target=kill_when_it_compiles, args=(noted, killed))
    killer.start()
    made = compiled("hang", once=noted)  # the first time it hangs, until it is killed
    killer.join()
    assert compilers(made) == CLEAN
    (line,) = warnings(caplog, "was ended by SIGKILL")
    assert "which is tried once more" in line
    tries = [int(line.split()[0]) for line in noted.read_text().splitlines()]
    assert tries[0] == killed[0]
    assert killed[0] not in tries[1:]
    assert compilers(compiled("")) == CLEAN
    assert no_worker_is_left()


def test_no_child_is_left_a_second_after_a_compile(tmp_path: Path) -> None:
    noted = tmp_path / "pids"
    compiled("", once=noted, workers=2, pieces=2)
    begun = time.monotonic()
    assert no_worker_is_left()
    assert time.monotonic() - begun <= 1.0
    assert str(os.getpid()) not in noted.read_text().split()
