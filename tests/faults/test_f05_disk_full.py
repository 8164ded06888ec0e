"""F5: a full disk, a quota, no inodes left: the run goes on without a cache, and says so once."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from tests.stores import FACTORS, PAYLOAD, Opened, files_of, mounted, opened, works_again

pytestmark = pytest.mark.timeout(120)


def goes_on_without(one: Opened) -> None:
    """Check a run that can keep nothing: it never fails, and complains once."""
    for number in range(20):
        factors = {**FACTORS, "n": str(number)}
        assert one.load(factors) is None
        assert one.save(factors) is False
        with one.cache.claim("ab" * 32, 1):
            pass
    assert one.cache.counters["skipped_saves"] == 20
    (warning,) = one.warnings
    assert "cannot save in the cache" in warning


def test_full_disk_costs_the_save_and_nothing_else(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=32k,mode=700") as root:
        (root / "ballast").write_bytes(b"x" * 26_000)
        one = opened(root)
        goes_on_without(one)
        assert "No space left" in one.warnings[0]
        assert files_of(root) == ["ballast"], "a partial file was left"
        (root / "ballast").unlink()
        assert works_again(root)


def test_disk_without_inodes_costs_the_save_and_nothing_else(tmp_path: Path) -> None:
    with mounted(tmp_path / "few", "size=1m,nr_inodes=2,mode=700") as root:
        goes_on_without(opened(root))
        subprocess.run(["mount", "-o", "remount,nr_inodes=100", str(root)], check=True)
        assert works_again(root)


def test_entries_that_fit_before_the_disk_was_full_are_used_still(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=48k,mode=700") as root:
        one = opened(root)
        assert one.save() is True
        (root / "ballast").write_bytes(b"x" * 20_000)
        assert one.save({"n": "2"}, PAYLOAD * 2) is False
        assert one.load() == PAYLOAD
        assert opened(root).load() == PAYLOAD


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("name", ["write", "fsync", "close"])
def test_full_disk_that_is_noticed_late_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    root = tmp_path / "cache"
    written: set[int] = set()
    attempts = []
    real_write, real = os.write, getattr(os, name)

    def write(fd: int, data: bytes) -> int:
        written.add(fd)
        if name == "write":
            attempts.append(fd)
            real_write(fd, bytes(data)[:100])
            raise OSError(code, os.strerror(code))
        return real_write(fd, data)

    def late(fd: int) -> None:
        real(fd)
        if fd in written:
            written.discard(fd)
            attempts.append(fd)
            raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        if name != "write":
            patch.setattr(os, name, late)
        goes_on_without(opened(root))
    assert len(attempts) == 1, "a full disk is not tried again"
    assert files_of(root) == []
    assert works_again(root)
