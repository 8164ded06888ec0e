"""F31: every error at every call that the cache makes of the system: a hit, a miss or a skipped save."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from intarsia.cache import Cache, Entry
from intarsia.cache import locks as locks_module
from intarsia.cache.gc import collect
from tests.stores import (
    FACTORS,
    KEY,
    PAYLOAD,
    entry_file,
    files_of,
    opened,
    payload_of,
    works_again,
)

pytestmark = pytest.mark.timeout(120)

CALLS = (
    "open", "close", "read", "write", "fsync", "fstat", "stat", "lstat", "mkdir", "link", "unlink",
    "rename", "listdir", "utime", "dup",
)  # fmt: skip
ERRORS = [
    errno.EBUSY, errno.ESTALE, errno.ENOENT, errno.EEXIST, errno.EIO, errno.EACCES, errno.EPERM,
    errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTSUP, errno.EMFILE, errno.ENAMETOOLONG,
    errno.ELOOP, errno.ENOTDIR, errno.EINTR, errno.ETIMEDOUT,
]  # fmt: skip
NAMED_BY_THE_FAULT = ERRORS[:4]


class Trouble:
    """Makes the n-th call of the system fail, and counts them all."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.fail_at = 0
        self.code = 0
        self.thread = threading.get_ident()

    def hooked(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != self.thread:
                return real(*args, **kwargs)  # of another test's threads, on their way out
            self.made.append(name)
            if len(self.made) == self.fail_at:
                if name == "close":  # it closes, and complains nevertheless
                    real(*args, **kwargs)
                raise OSError(self.code, os.strerror(self.code))
            return real(*args, **kwargs)

        return call


@contextmanager
def trouble(fail_at: int = 0, code: int = 0) -> Iterator[Trouble]:
    """Hook every call of the system that the cache makes, for the block."""
    made = Trouble()
    made.fail_at, made.code = fail_at, code
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, made.hooked(name, getattr(os, name)))
        patch.setattr(locks_module.fcntl, "flock", made.hooked("flock", locks_module.fcntl.flock))
        patch.setattr(locks_module.fcntl, "fcntl", made.hooked("fcntl", locks_module.fcntl.fcntl))
        yield made


def load(cache: Cache) -> None:
    assert cache.load("piece", FACTORS, payload_of) in (None, PAYLOAD)


def save(cache: Cache) -> None:
    assert cache.save("piece", FACTORS, PAYLOAD) in (True, False)


def fails(entry: Entry) -> None:
    raise RuntimeError("it cannot be used")


def move_aside(cache: Cache) -> None:
    assert cache.load("piece", FACTORS, fails) is None


def explain(cache: Cache) -> None:
    assert "\n" not in cache.explain_miss("piece", {**FACTORS, "torch": "2.12"})


def lead(cache: Cache) -> None:
    with cache.claim(KEY, 0.01) as leads:
        assert leads in (True, False)


def journal(cache: Cache) -> None:
    notes = cache.journal()
    assert notes is not None
    with notes.running(KEY):
        pass
    notes.culprit(KEY)
    notes.clear(KEY)


CASES = [
    pytest.param(load, True, id="load"),
    pytest.param(load, False, id="load of nothing"),
    pytest.param(save, False, id="save"),
    pytest.param(save, True, id="save of what is there"),
    pytest.param(move_aside, True, id="move aside"),
    pytest.param(explain, True, id="explain"),
    pytest.param(lead, False, id="lead"),
    pytest.param(journal, False, id="journal"),
]


@pytest.mark.parametrize(("action", "saved"), CASES)
def test_no_error_at_any_call_is_an_exception(
    tmp_path: Path, action: Callable[[Cache], None], saved: bool
) -> None:
    def prepared(name: str) -> Path:
        root = tmp_path / name
        if saved:
            opened(root).save()
        return root

    for number in range(1, _calls_of(action, prepared("dry")) + 1):
        for code in ERRORS:
            root = prepared(f"{number}-{code}")
            one = opened(root)
            with trouble(number, code) as made:
                action(one.cache)
            assert len(made.made) >= number, "nothing was injected"
            assert len(one.warnings) <= 2, (
                one.warnings
            )  # the error, and an entry that is moved aside
            left = [name for name in files_of(root) if ".tmp-" in name] if root.exists() else []
            assert not left or made.made[number - 1] == "unlink", made.made[number - 1]
            assert works_again(root) or entry_file(root).is_symlink()


def _calls_of(action: Callable[[Cache], None], root: Path) -> int:
    with trouble() as made:  # what only a first time does is not counted
        action(opened(root.with_name("first")).cache)
    one = opened(root)
    with trouble() as made:
        action(one.cache)
    return len(made.made)


def test_gc_raises_nothing_but_what_its_command_reports(tmp_path: Path) -> None:
    def prepared(name: str) -> str:
        opened(tmp_path / name).save()
        return str(tmp_path / name)

    dry = prepared("dry")
    with trouble() as counted:
        collect(dry, max_bytes=0)
    for number in range(1, len(counted.made) + 1):
        for code in NAMED_BY_THE_FAULT:
            root = prepared(f"{number}-{code}")
            with trouble(number, code), suppress(OSError):
                collect(root, max_bytes=0)
            assert works_again(Path(root))
