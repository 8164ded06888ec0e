"""Single flight: one leads, the others wait, and nothing that goes wrong keeps anybody waiting for ever."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from intarsia.cache.flight import LOCKS, Flight, remove_stale_locks
from intarsia.cache.folder import Folder
from tests.stores import blocked, child, files_of, opened

KEY = "ab" * 32

LEADER = """
import sys, time
from intarsia.cache.flight import Flight
with Flight(sys.argv[1]).claim(sys.argv[2], 10) as leads:
    print(leads, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("among", ["threads", "processes"])
def test_one_thread_leads_and_the_others_return_when_it_is_done(tmp_path: Path, among: str) -> None:
    flight = Flight(str(tmp_path / "c") if among == "processes" else None)
    answers: list[bool] = []
    working: list[int] = []
    together: list[int] = []
    barrier = threading.Barrier(8)

    def work() -> None:
        barrier.wait()
        with flight.claim(KEY, 30) as leads:
            if leads:
                working.append(1)
                together.append(len(working))
                time.sleep(0.2)
                working.pop()
            answers.append(leads)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(answers) == [False] * 7 + [True]
    assert together == [1]


def test_two_caches_of_one_process_wait_for_each_other(tmp_path: Path) -> None:
    one, two = opened(tmp_path), opened(tmp_path)
    tmp_path.chmod(0o700)
    with one.cache.claim(KEY, 1) as first, two.cache.claim(KEY, 0.05) as second:
        assert (first, second) == (True, False)
    assert two.cache.counters["waits"] == 1


def test_other_keys_do_not_wait(tmp_path: Path) -> None:
    flight = Flight(str(tmp_path / "c"))
    with flight.claim(KEY, 1) as one, flight.claim("cd" * 32, 1) as two:
        assert one
        assert two


def test_waiter_returns_when_the_leader_is_done_and_does_not_lead(tmp_path: Path) -> None:
    root = tmp_path / "c"
    leader = child(LEADER, root, KEY)
    assert leader.stdout is not None
    assert leader.stdin is not None
    assert leader.stdout.readline().strip() == "True"
    threading.Timer(0.3, lambda: (leader.stdin.write("go\n"), leader.stdin.flush())).start()
    start = time.monotonic()
    with Flight(str(root)).claim(KEY, 30) as leads:
        assert leads is False
    assert 0.2 < time.monotonic() - start < 10
    leader.communicate(timeout=30)
    assert files_of(root) == []


def test_one_waiter_takes_the_place_of_a_leader_who_died(tmp_path: Path) -> None:
    root, answers, start = tmp_path / "c", [], threading.Barrier(5)

    def wait() -> None:
        start.wait()
        with Flight(str(root)).claim(KEY, 30) as leads:
            answers.append(leads)
            time.sleep(0.05)

    waiters = [threading.Thread(target=wait) for _ in range(4)]
    with blocked(LEADER, root, KEY):
        for waiter in waiters:
            waiter.start()
        start.wait()
        time.sleep(0.2)
        assert answers == []
    for waiter in waiters:
        waiter.join(30)
    assert answers.count(True) == 1
    assert answers.count(False) == 3
    assert files_of(root) == []


def test_exception_in_the_block_frees_the_key(tmp_path: Path) -> None:
    flight = Flight(str(tmp_path / "c"))
    with pytest.raises(RuntimeError, match="compiler"), flight.claim(KEY, 1):
        raise RuntimeError("compiler")
    with flight.claim(KEY, 1) as leads:
        assert leads
    assert files_of(tmp_path / "c") == []


def test_lock_file_of_a_dead_leader_goes_with_the_next_claim_or_with_gc(tmp_path: Path) -> None:
    root = tmp_path / "c"
    for key in (KEY, "cd" * 32):
        with blocked(LEADER, root, key):
            pass
    assert len(files_of(root)) == 2
    with Flight(str(root)).claim(KEY, 1) as leads:
        assert leads
    assert files_of(root) == [f"{LOCKS}/{'cd' * 32}"]
    with blocked(LEADER, root, KEY), Folder(str(root)) as folder:
        assert remove_stale_locks(folder) == 1
        assert files_of(root) == [f"{LOCKS}/{KEY}"], "a lock that is held stays"


def test_lock_that_is_a_symlink_is_not_followed(tmp_path: Path) -> None:
    root, target = tmp_path / "c", tmp_path / "target"
    (root / LOCKS).mkdir(parents=True, mode=0o700)
    root.chmod(0o700)
    (root / LOCKS / KEY).symlink_to(target)
    with Flight(str(root)).claim(KEY, 1) as leads:
        assert leads is False
    assert not os.path.lexists(target)


def test_without_locks_everybody_works(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("no directory")
    with Flight(str(file)).claim(KEY, 1) as leads:
        assert leads is False
