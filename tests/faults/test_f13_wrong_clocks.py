"""F13: clocks that are wrong or jump: validity never depends on them, ages and deadlines survive them."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from intarsia.cache import key_of
from intarsia.cache.gc import collect
from tests.stores import FACTORS, PAYLOAD, entry_file, opened, ran, works_again

pytestmark = pytest.mark.timeout(60)

FUTURE = 4e9
SAVED = "import sys; from tests.stores import opened; opened(sys.argv[1]).save({'n': sys.argv[2]})"


def saved(root: Path, *names: str) -> list[Path]:
    """Save entries in processes that have ended, so that nobody uses them."""
    for name in names:
        ran(SAVED, root, name)
    return [entry_file(root, key_of("piece", {"n": name})) for name in names]


@pytest.mark.parametrize("moment", [0.0, FUTURE, -1e9])
def test_entry_of_any_date_is_used(tmp_path: Path, moment: float) -> None:
    opened(tmp_path / "c").save()
    os.utime(entry_file(tmp_path / "c"), (moment, moment))
    one = opened(tmp_path / "c")
    assert one.load() == PAYLOAD
    assert one.cache.nearest("piece", FACTORS) is not None
    assert one.warnings == []
    assert works_again(tmp_path / "c")


def test_entry_from_the_future_counts_as_new(tmp_path: Path) -> None:
    root = tmp_path / "c"
    old, future, new = saved(root, "old", "future", "new")
    os.utime(old, (0, 0))
    os.utime(future, (FUTURE, FUTURE))
    done = collect(str(root), max_age=3600)
    assert (done.removed, done.kept) == ((old.name,), 2)
    assert future.exists()
    assert new.exists()


def test_entries_of_one_moment_are_all_kept_or_go_one_after_the_other(tmp_path: Path) -> None:
    root = tmp_path / "c"
    files = saved(root, "a", "b", "c")
    for file in files:
        os.utime(file, (1e9, 1e9))
    size = files[0].stat().st_size
    assert collect(str(root), max_bytes=3 * size).removed == ()
    assert len(collect(str(root), max_bytes=2 * size).removed) == 1


@pytest.mark.parametrize("jump", [-3600.0, 1e9, -2e9])
def test_jump_of_the_clock_ages_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    root = tmp_path / "c"
    (file,) = saved(root, "a")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    assert collect(str(root), max_age=3600).removed == ()
    assert file.exists()
    one = opened(root)
    assert one.load({"n": "a"}) == PAYLOAD
    assert one.save() is True
    assert one.warnings == []


def test_wait_ends_after_its_seconds_whatever_the_clock_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, key, stop = tmp_path / "c", "ab" * 32, threading.Event()
    held = threading.Event()

    def lead() -> None:
        with opened(root).cache.claim(key, 10) as leads:
            assert leads
            held.set()
            stop.wait(30)

    leader = threading.Thread(target=lead)
    leader.start()
    assert held.wait(10)
    real, calls = time.time, []
    # an hour back with every look at the clock
    monkeypatch.setattr(time, "time", lambda: (calls.append(1), real() - 3600 * len(calls))[1])
    start = time.monotonic()
    with opened(root).cache.claim(key, 0.3) as leads:
        assert leads is False
    assert 0.3 <= time.monotonic() - start < 5
    stop.set()
    leader.join(10)
    assert works_again(root)
