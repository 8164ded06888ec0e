"""F6: a read-only directory, no HOME, a uid that nobody knows: the run goes on in memory."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest

from tests.stores import PAYLOAD, files_of, mounted, opened, ran, works_again

pytestmark = pytest.mark.timeout(120)

RUN = """
import json, os, sys
import platformdirs
from tests.stores import opened
written = []
def hear(event, args):
    if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        written.append(str(args[0]))
    if event in ("os.mkdir", "os.link", "os.rename"):
        written.append(str(args[0]))
uid = int(sys.argv[1])
if uid:
    os.setgid(uid)
    os.setuid(uid)
sys.addaudithook(hear)
setting = json.loads(sys.argv[2])
one = opened(tuple(setting) if isinstance(setting, list) else setting)
found = [one.load(), one.save(), one.load()]
with one.cache.claim("ab" * 32, 1):
    pass
journal = one.cache.journal()
if journal is not None:
    with journal.running("ab" * 32):
        found.append(journal.culprit("ab" * 32))
print(json.dumps([str(item) for item in found]))
print(json.dumps(one.warnings))
print(json.dumps(written))
"""


def run(
    setting: object, uid: int = 0, **environment: str
) -> tuple[list[str], list[str], list[str]]:
    out = ran(RUN, uid, json.dumps(setting), env=environment)
    found, warnings, written = map(json.loads, out.splitlines())
    return found, warnings, written


def test_read_only_directory_with_entries_hits_and_complains_of_nothing_but_a_save(
    tmp_path: Path,
) -> None:
    with mounted(tmp_path / "c", "size=1m,mode=700") as root:
        opened(root).save()
        os.system(f"mount -o remount,ro {root}")
        one = opened(root)
        assert one.load() == PAYLOAD
        assert one.warnings == []
        assert one.save({"n": "1"}) is False
        assert one.save({"n": "2"}) is False
        with one.cache.claim("ab" * 32, 1):
            pass
        (warning,) = one.warnings
        assert "Read-only file system" in warning
        os.system(f"mount -o remount,rw {root}")
        assert works_again(root)


def test_read_only_place_without_a_cache_means_none(tmp_path: Path) -> None:
    with mounted(tmp_path / "ro", "size=1m,ro") as place:
        found, warnings, _ = run(str(place / "cache"))
        assert found == ["None", "False", "None", "None"]
        assert len(warnings) == 1
        assert "Read-only file system" in warnings[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_unknown_user_without_a_home_runs_in_memory_with_one_warning() -> None:
    found, warnings, written = run(True, uid=12345)
    assert found == ["None", "False", "None"]
    assert len(warnings) == 1
    assert "HOME is not set" in warnings[0]
    assert written == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
@pytest.mark.parametrize("home", ["/", "/nonexistent", "/proc/1"])
def test_home_that_cannot_be_written_to_means_memory_with_one_warning(home: str) -> None:
    found, warnings, _ = run(True, uid=12345, HOME=home)
    assert found == ["None", "False", "None", "None"]
    assert len(warnings) == 1
    assert home.rstrip("/") + "/.cache" in warnings[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_unknown_user_has_a_cache_at_a_path_of_its_own(tmp_path: Path) -> None:
    for folder in tmp_path.parents:
        if folder != Path(tempfile.gettempdir()) and tempfile.gettempdir() in str(folder):
            folder.chmod(0o755)  # pytest keeps others out
    tmp_path.chmod(0o777)
    root = tmp_path / "mine"
    found, warnings, _ = run(str(root), uid=12345)
    assert found[1:3] == ["True", str(PAYLOAD)]
    assert warnings == []
    assert len(files_of(root)) == 1
    # what another user keeps there is not for us
    ours = opened(root)
    assert ours.load() is None
    assert "uid 12345" in ours.warnings[0]


def test_cache_off_writes_nothing(tmp_path: Path) -> None:
    code = RUN.replace("one = opened(", "import intarsia.cache\nnone = intarsia.cache.open_cache(")
    code = code.partition("found = ")[0] + "print(none, written)"
    assert ran(code, 0, "false", env={"HOME": str(tmp_path)}) == "None []"
    assert list(tmp_path.iterdir()) == []
