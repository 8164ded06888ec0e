"""Garbage collection: the limits hold, oldest first, and what a live process uses stays."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from intarsia.cache import key_of
from intarsia.cache.folder import UntrustedFolder
from intarsia.cache.gc import collect
from tests.stores import PAYLOAD, blocked, entry_file, files_of, opened, ran

SAVED = "import sys; from tests.stores import opened; one = opened(sys.argv[1])\n"
AGED = SAVED + "for n in sys.argv[2:]: one.save({'n': n})"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="byte locks of Linux")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A cache with the entries 0..4, saved by a process that has ended; 0 is the oldest."""
    root = tmp_path / "c"
    ran(AGED, root, *range(5))
    now = time.time()
    for n in range(5):
        os.utime(entry_file(root, key(n)), (now - 1000 + 100 * n,) * 2)
    return root


def key(n: int) -> str:
    return key_of("piece", {"n": str(n)})


def left(root: Path) -> set[int]:
    return {n for n in range(5) if entry_file(root, key(n)).exists()}


def test_nothing_goes_without_a_limit(root: Path) -> None:
    done = collect(str(root))
    assert (done.removed, done.kept, left(root)) == ((), 5, {0, 1, 2, 3, 4})


def test_oldest_go_until_the_bytes_fit(root: Path) -> None:
    size = entry_file(root, key(0)).stat().st_size
    done = collect(str(root), max_bytes=2 * size + 10)
    assert left(root) == {3, 4}
    assert done.removed == (key(0), key(1), key(2))
    assert (done.freed, done.kept, done.kept_bytes) == (3 * size, 2, 2 * size)


def test_those_over_the_age_go(root: Path) -> None:
    collect(str(root), max_age=750)
    assert left(root) == {3, 4}


def test_load_makes_an_entry_young(root: Path) -> None:
    ran(SAVED + "assert one.load({'n': '0'})", root)
    collect(str(root), max_age=500)
    assert left(root) == {0}


@LINUX
@pytest.mark.parametrize("deed", ["one.load({'n': '1'})", "one.save({'n': '5'})"])
def test_entry_that_a_live_process_uses_stays_until_it_is_killed(root: Path, deed: str) -> None:
    used = 1 if "load" in deed else 5
    code = SAVED + f"assert {deed}\nprint('using', flush=True)\nsys.stdin.readline()"
    with blocked(code, root):
        done = collect(str(root), max_bytes=0, max_age=0)
        assert (done.in_use, done.kept) == (1, 1)
        assert entry_file(root, key(used)).exists()
        assert opened(root).load({"n": str(used)}) == PAYLOAD
    done = collect(str(root), max_bytes=0)
    assert (done.in_use, done.kept) == (0, 0)
    assert files_of(root) == [], "the mark left something behind"


@LINUX
def test_entry_that_this_process_uses_stays_as_long_as_the_cache(root: Path) -> None:
    one = opened(root)
    one.load({"n": "2"})
    collect(str(root), max_bytes=0)
    assert left(root) == {2}
    del one
    collect(str(root), max_bytes=0)
    assert left(root) == set()


def test_bad_entries_go_and_a_writers_file_stays_while_it_is_young(root: Path) -> None:
    entry_file(root, key(0)).write_bytes(b"x")
    opened(root).load({"n": "0"})
    young = root / key(1)[:2] / ".tmp-0123456789abcdef"
    young.write_bytes(b"half")
    young.chmod(0o600)
    assert collect(str(root)).litter == 1
    assert young.exists()
    os.utime(young, (1, 1))
    assert collect(str(root)).litter == 1
    assert left(root) == {1, 2, 3, 4}
    assert len(files_of(root)) == 4


def test_what_the_cache_did_not_make_is_left_alone(root: Path) -> None:
    for name in ("README", "zz/file", f"{key(0)[:2]}/notes.txt"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("mine")
    collect(str(root), max_bytes=0, max_age=0)
    assert len(files_of(root)) == 3


def test_directory_that_is_not_ours_alone_is_not_collected(root: Path) -> None:
    root.chmod(0o777)
    with pytest.raises(UntrustedFolder, match="0777"):
        collect(str(root), max_bytes=0)
    assert left(root) == {0, 1, 2, 3, 4}


def test_absent_directory_is_empty(tmp_path: Path) -> None:
    assert collect(str(tmp_path / "none"), max_bytes=0).kept == 0
