"""The crash journal: work that took its process down is known to the next one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from intarsia.cache import Journal
from intarsia.cache.gc import collect
from intarsia.cache.journal import RUNNING
from tests.stores import blocked, child, files_of

KEY, OTHER = "ab" * 32, "cd" * 32

RUN = """
import ctypes, os, sys
from intarsia.cache import Journal
with Journal(sys.argv[1]).running(sys.argv[2], "piece_1 by them"):
    print("running", flush=True)
    {deed}
"""


@pytest.mark.parametrize(
    "deed", ["os._exit(3)", "os.abort()", "ctypes.string_at(0)", "os.kill(os.getpid(), 9)"]
)
def test_key_whose_work_took_the_process_down_is_the_culprit(tmp_path: Path, deed: str) -> None:
    root = str(tmp_path / "c")
    process = child(RUN.format(deed=deed), root, KEY)
    process.communicate(timeout=60)
    assert process.returncode != 0
    journal = Journal(root)
    crash = journal.culprit(KEY)
    assert crash is not None
    assert (crash.key, crash.pid, crash.what) == (KEY, process.pid, "piece_1 by them")
    assert abs(crash.when - time.time()) < 120
    assert journal.crashes() == [crash]
    assert journal.culprit(OTHER) is None
    journal.clear(KEY)
    assert journal.culprit(KEY) is None
    assert journal.crashes() == []
    assert files_of(tmp_path / "c") == []


@pytest.mark.parametrize("deed", ["pass", "sys.exit(1)", "raise RuntimeError('compiler')"])
def test_work_that_ends_leaves_nothing(tmp_path: Path, deed: str) -> None:
    child(RUN.format(deed=deed), tmp_path / "c", KEY).communicate(timeout=60)
    assert Journal(str(tmp_path / "c")).culprit(KEY) is None
    assert files_of(tmp_path / "c") == []


def test_work_that_runs_is_no_culprit_and_is_not_cleared(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "c"))
    with journal.running(KEY):
        assert journal.culprit(KEY) is None
    with blocked(RUN.format(deed="sys.stdin.readline()"), tmp_path / "c", KEY):
        assert journal.culprit(KEY) is None
        journal.clear(KEY)
        assert len(files_of(tmp_path / "c")) == 1
    assert journal.culprit(KEY) is not None


def test_note_that_cannot_be_removed_is_no_crash(tmp_path: Path) -> None:
    deed = "os.unlink = lambda *args, **kwargs: os.open('/nonexistent', 0)"
    child(RUN.format(deed=deed), tmp_path / "c", KEY).communicate(timeout=60)
    assert len(files_of(tmp_path / "c")) == 1
    assert Journal(str(tmp_path / "c")).culprit(KEY) is None


def test_number_that_another_process_got_meanwhile_hides_no_crash(tmp_path: Path) -> None:
    root = tmp_path / "c"
    with blocked(RUN.format(deed="sys.stdin.readline()"), root, KEY):
        pass
    (file,) = (root / RUNNING).iterdir()
    key, boot, _, _, number = file.name.split("-")
    file.rename(file.with_name(f"{key}-{boot}-{os.getpid()}-1-{number}"))
    assert Journal(str(root)).culprit(KEY) is not None


def test_note_of_another_boot_or_machine_accuses_nobody(tmp_path: Path) -> None:
    root = tmp_path / "c"
    with blocked(RUN.format(deed="sys.stdin.readline()"), root, KEY):
        pass
    (file,) = (root / RUNNING).iterdir()
    key, _, *rest = file.name.split("-")
    file = file.rename(file.with_name("-".join((key, "0" * 32, *rest))))
    journal = Journal(str(root))
    assert journal.culprit(KEY) is None
    assert collect(str(root)).litter == 0
    old = time.time() - 40 * 86400
    os.utime(file, (old, old))
    assert collect(str(root)).litter == 1
    assert files_of(root) == []


NAMESPACE = ["unshare", "-pf", "--mount-proc"]


def can_unshare() -> bool:
    try:
        return (
            subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0
        )
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not can_unshare(), reason="needs namespaces")
def test_work_in_another_container_is_alive_although_its_number_means_nothing_here(
    tmp_path: Path,
) -> None:
    root = tmp_path / "c"
    code = RUN.format(deed="__import__('time').sleep(600)")
    process = subprocess.Popen(
        [*NAMESPACE, "--kill-child", sys.executable, "-c", code, str(root), KEY],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "running"
        assert Journal(str(root)).culprit(KEY) is None
    finally:
        process.kill()
        process.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while Journal(str(root)).culprit(KEY) is None and time.monotonic() < deadline:
        time.sleep(0.02)  # the system ends the child a moment after unshare
    assert Journal(str(root)).culprit(KEY) is not None


def test_journal_that_cannot_be_kept_stops_no_work(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("no directory")
    journal = Journal(str(file))
    done = []
    with journal.running(KEY):
        done.append(True)
    assert journal.culprit(KEY) is None
    journal.clear(KEY)
    assert done == [True]
