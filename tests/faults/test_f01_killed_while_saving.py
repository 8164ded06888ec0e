"""F1: `kill -9` in the middle of a save, at every call that writes.

The child blocks before or inside the n-th call of the system that its save makes, and is killed there.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from intarsia.cache.gc import collect
from tests.stores import KEY, PAYLOAD, blocked, entry_file, opened, ran, works_again

pytestmark = pytest.mark.timeout(120)

SAVE = """
import contextlib, os, sys, time
from intarsia.cache import open_cache
from tests.stores import FACTORS, PAYLOAD

stop_at, inside, seen = int(sys.argv[2]), sys.argv[3] == "inside", 0
NAMES = ("mkdir", "open", "write", "fsync", "close", "link", "unlink", "rename", "utime")

def hooked(name, real):
    def call(*args, **kwargs):
        global seen
        seen += 1
        if name == "write":  # a large payload is written in several calls
            args = (args[0], bytes(args[1])[:4096])
        if stop_at == seen:
            with contextlib.suppress(OSError):  # one looks for a folder that is not there yet
                inside and real(*args, **kwargs)
            print("blocked in", name, flush=True)
            time.sleep(600)
        if stop_at == 0:
            print(name)
        return real(*args, **kwargs)
    return call

cache = open_cache(sys.argv[1])
for name in NAMES:
    setattr(os, name, hooked(name, getattr(os, name)))
cache.save("piece", FACTORS, PAYLOAD)
"""


def calls(tmp_path: Path) -> list[str]:
    return ran(SAVE, tmp_path / "dry", 0, "before").splitlines()


def test_killed_at_every_call_of_a_save_the_next_run_hits_or_misses(tmp_path: Path) -> None:
    names = calls(tmp_path)
    assert {"mkdir", "open", "write", "fsync", "link", "unlink"} <= set(names)
    assert names.count("write") >= 3
    published = names.index("link") + 1
    hits = 0
    for number in range(1, len(names) + 1):
        for where in ("before", "inside"):
            root = tmp_path / f"{number}-{where}"
            with blocked(SAVE, root, number, where):
                pass
            next_run = opened(root)
            found = next_run.load()
            is_there = number > published or (number == published and where == "inside")
            assert found == (PAYLOAD if is_there else None), (names[number - 1], where)
            assert next_run.warnings == []
            hits += found is not None
            assert works_again(root)
    assert hits > 0


def test_what_a_killed_writer_left_is_ignored_and_goes_once_it_is_old(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    with blocked(SAVE, root, calls(tmp_path).index("fsync") + 1, "inside"):
        pass
    (left,) = (root / KEY[:2]).iterdir()
    assert left.name.startswith(".tmp-")
    assert list(opened(root).cache.places[0].keys()) == []
    assert collect(str(root)).litter == 0, "somebody may still be writing it"
    opened(root).save()
    os.utime(left, (1, 1))
    done = collect(str(root))
    assert (done.litter, done.removed, done.kept) == (1, (), 1)
    assert list((root / KEY[:2]).iterdir()) == [entry_file(root)]
    assert works_again(root)
