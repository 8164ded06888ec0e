"""F7: a directory of somebody else, one that others can write to, or a symlink: nothing in it is used.

What is planted is a whole entry whose payload is a pickle with a side effect. `use` unpickles it, as a
careless reader would, so that the test sees whether it ever gets that far.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from intarsia.cache import Entry
from intarsia.cache.entry import encode_entry
from tests.stores import FACTORS, KEY, Opened, entry_file, files_of, opened, ran, works_again

pytestmark = pytest.mark.timeout(60)

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a directory away")


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def unpickled(entry: Entry) -> Any:
    return pickle.loads(bytes(entry.payload))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "it ran"


@pytest.fixture
def root(tmp_path: Path, marker: Path) -> Path:
    """A cache with the planted entry, in a directory that is fine so far."""
    root = tmp_path / "cache"
    opened(root).save(payload=pickle.dumps(Bomb(marker)))
    return root


def refused(root: Path, marker: Path, path: Path, *told: str) -> Opened:
    """Check that nothing is used or written, and that one warning says why."""
    before = files_of(root)
    one = opened(root)
    for _ in range(3):
        assert one.load(use=unpickled) is None
        assert one.save({"n": "1"}) is False
    assert not marker.exists(), "the planted pickle ran"
    (warning,) = one.warnings
    assert f"{path} is not used" in warning
    for text in told:
        assert text in warning
    assert files_of(root) == before
    with one.cache.claim(KEY, 1):
        pass
    return one


def test_entry_would_run_if_the_directory_were_fine(root: Path, marker: Path) -> None:
    opened(root).load(use=unpickled)
    assert marker.exists(), "the test plants nothing"


def give_away(path: Path) -> None:
    os.chown(path, 12345, -1)


def world_writable(path: Path) -> None:
    path.chmod(0o777)


def group_writable(path: Path) -> None:
    path.chmod(0o770)


def symlinked(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to(path.with_name("real"))


DEFECTS = [
    pytest.param(give_away, ("uid 12345", "mode 0700"), marks=AS_ROOT, id="foreign"),
    pytest.param(world_writable, ("mode 0777", "others can write"), id="world-writable"),
    pytest.param(group_writable, ("mode 0770", "others can write"), id="group-writable"),
    pytest.param(symlinked, ("symbolic link of uid",), id="symlink"),
]


@pytest.mark.parametrize(("defect", "told"), DEFECTS)
def test_root_that_is_not_ours_alone_is_refused(
    root: Path, marker: Path, defect: Callable[[Path], None], told: tuple[str, ...]
) -> None:
    defect(root)
    refused(root, marker, root, *told)
    mended(root, root)
    assert works_again_without_the_bomb(root)


@pytest.mark.parametrize(("defect", "told"), DEFECTS)
def test_folder_of_the_entry_that_is_not_ours_alone_is_refused(
    root: Path, marker: Path, defect: Callable[[Path], None], told: tuple[str, ...]
) -> None:
    shelf = root / KEY[:2]
    defect(shelf)
    refused(root, marker, shelf, *told)
    mended(root, shelf)
    assert works_again_without_the_bomb(root)


@pytest.mark.parametrize(
    "defect", [pytest.param(give_away, marks=AS_ROOT), world_writable, group_writable, symlinked]
)
def test_file_that_is_not_ours_alone_is_moved_aside(
    root: Path, marker: Path, defect: Callable[[Path], None]
) -> None:
    defect(entry_file(root))
    one = opened(root)
    assert one.load(use=unpickled) is None
    assert not marker.exists()
    assert len(one.warnings) == 1
    assert not entry_file(root).exists()
    assert works_again(root)


@pytest.mark.parametrize("place", [8, 30, 60, 200, -1])
def test_planted_pickle_with_a_bad_digest_never_runs(root: Path, marker: Path, place: int) -> None:
    data = bytearray(entry_file(root).read_bytes())
    data[place] ^= 1
    entry_file(root).write_bytes(data)
    one = opened(root)
    assert one.load(use=unpickled) is None
    assert not marker.exists()
    assert works_again(root)


def test_planted_pickle_without_the_signature_never_runs(
    root: Path, marker: Path, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"0123456789abcdef")
    key.chmod(0o600)
    forged = Entry("piece", KEY, FACTORS, {}, pickle.dumps(Bomb(marker)))
    for secret in (None, b"a guess, 16 bytes"):
        entry_file(root).write_bytes(encode_entry(forged, secret))
        entry_file(root).chmod(0o600)
        one = opened(root, key_file=str(key))
        assert one.load(use=unpickled) is None
        assert not marker.exists()
        assert len(one.warnings) == 1
        assert one.save(payload=b"fine")
        entry_file(root).unlink()


@AS_ROOT
def test_another_user_uses_nothing_of_ours(root: Path, marker: Path, tmp_path: Path) -> None:
    for folder in (root, root / KEY[:2], tmp_path, *tmp_path.parents):
        if folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    entry_file(root).chmod(0o644)
    code = (
        "import os, pickle, sys\n"
        "from tests.stores import opened\n"
        "one = opened(sys.argv[1])\n"
        "os.setgid(12345); os.setuid(12345)\n"
        "open(sys.argv[2], 'rb').close()  # it could read it\n"
        "print(one.load(use=lambda entry: pickle.loads(bytes(entry.payload))), *one.warnings)\n"
    )
    told = ran(code, root, entry_file(root))
    assert told.startswith(f"None {root} is not used")
    assert "uid 0 " in told
    assert not marker.exists()


def mended(root: Path, path: Path) -> None:
    """Undo a defect, as the owner would."""
    if path.is_symlink():
        path.unlink()
        path.with_name("real").rename(path)
    os.chown(path, os.geteuid(), -1)
    path.chmod(0o700)


def works_again_without_the_bomb(root: Path) -> bool:
    entry_file(root).unlink()
    return works_again(root)
