"""F28: the cache's directory is removed during a run: later misses, and nothing else."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from intarsia.cache.gc import collect
from tests.stores import KEY, PAYLOAD, files_of, opened, works_again

pytestmark = pytest.mark.timeout(60)


def test_removed_between_two_uses_it_is_a_miss_and_made_anew(tmp_path: Path) -> None:
    root = tmp_path / "c"
    one = opened(root)
    one.save()
    assert one.load() == PAYLOAD
    shutil.rmtree(root)
    assert one.load() is None
    assert one.cache.nearest("piece", {}) is None
    assert collect(str(root), max_bytes=0).removed == ()
    assert one.save() is True
    assert one.load() == PAYLOAD
    assert one.warnings == []
    assert collect(str(root), max_bytes=0).in_use == 1, (
        "the mark is in the directory that went away"
    )
    assert works_again(root)


def test_removed_while_somebody_leads_and_keeps_a_journal(tmp_path: Path) -> None:
    root = tmp_path / "c"
    one = opened(root)
    journal = one.cache.journal()
    assert journal is not None
    with one.cache.claim(KEY, 5) as leads, journal.running(KEY):
        assert leads
        shutil.rmtree(root)
        with opened(root).cache.claim(KEY, 5) as other:
            assert other is True, "its lock went with the directory"
        assert one.save() is True
    assert one.warnings == []
    assert journal.culprit(KEY) is None
    assert len(files_of(root)) == 1
    assert works_again(root)


def test_leader_whose_lock_was_removed_does_not_free_the_next_leaders(tmp_path: Path) -> None:
    root = tmp_path / "c"
    with opened(root).cache.claim(KEY, 5):
        shutil.rmtree(root)
        second = opened(root).cache.claim(KEY, 5)
        assert second.__enter__() is True
    with opened(root).cache.claim(KEY, 0.05) as third:
        assert third is False, "two lead at a time"
    second.__exit__(None, None, None)
    assert works_again(root)


def test_removed_over_and_over_while_threads_use_it(tmp_path: Path) -> None:
    root, stop = tmp_path / "c", threading.Event()
    caches = [opened(root) for _ in range(3)]
    failures: list[BaseException] = []

    def use(number: int) -> None:
        try:
            for turn in range(150):
                factors = {"turn": str(turn % 7)}
                with caches[number].cache.claim(KEY, 0.05):
                    found = caches[number].load(factors)
                    assert found in (None, PAYLOAD)
                    caches[number].save(factors)
        except BaseException as problem:
            failures.append(problem)

    def remove() -> None:
        while not stop.wait(0.002):
            shutil.rmtree(root, ignore_errors=True)

    remover = threading.Thread(target=remove)
    users = [threading.Thread(target=use, args=(n,)) for n in range(3)]
    for thread in (remover, *users):
        thread.start()
    for thread in users:
        thread.join(50)
    stop.set()
    remover.join(10)
    assert failures == []
    assert all(len(one.warnings) <= 1 for one in caches)
    assert works_again(root)
