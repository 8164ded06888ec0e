"""F4: many processes want one key at the same moment, from an empty cache, again and again."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from intarsia.cache import key_of
from tests.stores import blocked, child, files_of, opened, works_again

pytestmark = pytest.mark.timeout(600)

WORKER = """
import os, sys, time
from pathlib import Path
from intarsia.cache import key_of, open_cache

setting, log, gate, rounds = sys.argv[1].split(","), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
warnings = []
cache = open_cache(tuple(setting), warn=warnings.append)

def expected(turn):
    return bytes([turn % 256]) * 50_000

def look(factors):
    return cache.load("piece", factors, lambda entry: bytes(entry.payload))

def compiled(turn, factors):
    with open(log, "a") as file:
        print(turn, file=file)
    time.sleep(0.005)
    cache.save("piece", factors, expected(turn))
    return expected(turn)

def wanted(turn):
    factors = {"turn": str(turn)}
    found = look(factors)
    if found is None:
        with cache.claim(key_of("piece", factors), 60) as leads:
            found = look(factors)
            if found is None:
                found = compiled(turn, factors)
    return found

print("ready", flush=True)
sys.stdin.readline()
wrong = 0
for turn in range(rounds):
    # everybody starts a round at the same moment
    Path(gate, f"{turn}-{os.getpid()}").touch()
    deadline = time.monotonic() + 60
    while len(list(gate.glob(f"{turn}-*"))) < int(sys.argv[5]) and time.monotonic() < deadline:
        time.sleep(0.001)
    wrong += wanted(turn) != expected(turn)
print(wrong, len(warnings), *warnings)
"""


NO_LOCKS = """
import fcntl
def no_locks(*args):
    raise OSError(37, "No locks available")
fcntl.flock = fcntl.fcntl = no_locks
"""


def race(settings: list[str], tmp_path: Path, rounds: int, before: str = "") -> Counter[str]:
    """Run one process for each setting and return how often each round's entry was compiled."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    gate.mkdir()
    log.touch()
    workers = [
        child(before + WORKER, setting, log, gate, rounds, len(settings)) for setting in settings
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline().strip() == "ready"
    answers = []
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        out, err = worker.communicate(timeout=500)
        assert worker.returncode == 0, err
        answers.append(out.strip())
    assert answers == ["0 0"] * len(settings)
    return Counter(log.read_text().split())


@pytest.mark.parametrize(
    ("processes", "rounds"), [(4, 12), pytest.param(16, 50, marks=pytest.mark.slow)]
)
def test_processes_with_one_empty_cache_compile_each_key_once(
    tmp_path: Path, processes: int, rounds: int
) -> None:
    root = tmp_path / "cache"
    counts = race([str(root)] * processes, tmp_path, rounds)
    assert counts == {str(turn): 1 for turn in range(rounds)}
    keys = [key_of("piece", {"turn": str(turn)}) for turn in range(rounds)]
    assert files_of(root) == sorted(f"{key[:2]}/{key}" for key in keys), "something was left over"
    assert works_again(root)


@pytest.mark.parametrize(
    ("processes", "rounds"), [(4, 6), pytest.param(16, 25, marks=pytest.mark.slow)]
)
def test_two_local_stores_over_one_shared_store_compile_each_key_once_each_at_most(
    tmp_path: Path, processes: int, rounds: int
) -> None:
    shared = tmp_path / "shared"
    settings = [f"{tmp_path / f'host{n % 2}'},file://{shared}" for n in range(processes)]
    counts = race(settings, tmp_path, rounds)
    assert len(counts) == rounds
    assert max(counts.values()) <= 2
    assert len(files_of(shared)) == rounds
    assert works_again(shared)


def test_without_locks_every_process_is_right_all_the_same(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    counts = race([str(root)] * 4, tmp_path, 10, NO_LOCKS)
    assert len(counts) == 10
    assert max(counts.values()) > 1, "there were locks"
    entries = [name for name in files_of(root) if not name.startswith("locks/")]
    assert len(entries) == 10
    assert works_again(root)


LEADER = """
import sys, time
from intarsia.cache import open_cache
with open_cache(sys.argv[1]).claim(sys.argv[2], 10) as leads:
    print(leads, flush=True)
    time.sleep(600)
"""


def test_leader_that_is_killed_blocks_nobody(tmp_path: Path) -> None:
    root, key = tmp_path / "cache", "ab" * 32
    one = opened(root)
    with blocked(LEADER, root, key):
        start = time.monotonic()
        with one.cache.claim(key, 0.3) as leads:
            assert leads is False
        assert 0.3 <= time.monotonic() - start < 5
    start = time.monotonic()
    with one.cache.claim(key, 60) as leads:
        assert leads is True
    assert time.monotonic() - start < 5
    assert files_of(root) == []
    assert one.cache.counters["waits"] == 1
    assert works_again(root)
