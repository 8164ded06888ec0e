"""F2, F3, F5, F6, F7, F28 as a user meets them: `intarsia.compile` goes on, is right, and says one line."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from torch import nn

from intarsia.bundle.bundle import Bundle
from intarsia.cache.entry import Entry, decode_entry, encode_entry
from intarsia.errors import CacheError
from tests.models import randn
from tests.stores import as_stranger, files_of, mounted
from tests.warm import Start, begin, entries_of, fresh

pytestmark = pytest.mark.timeout(180)
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")


class Subject(nn.Module):
    """Two pieces around a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(torch.sigmoid(self.linear(x)) * 1.5)


MODEL = Subject().eval()
X = randn(6, 4)


def go(root: Path | str, **settings: Any) -> Start:
    """Compile the model, and see that the result is right."""
    asked = {"dynamic": {"x": {0: "n"}}, "split_at": ["torch.sigmoid"], "cache": root, **settings}
    start = begin(MODEL, (X,), **asked)
    with torch.no_grad():
        torch.testing.assert_close(start.compiled(X), MODEL(X))
    return start


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A cache with the plan and its pieces."""
    go(tmp_path / "c")
    assert go(tmp_path / "c").was_warm
    return tmp_path / "c"


def warm_again(root: Path) -> bool:
    """Say whether the next start is as if nothing had been, with nothing to complain of."""
    start = go(root)
    return start.was_warm and not start.warnings


def bundle_of(root: Path) -> Path:
    (path,) = entries_of(root, "bundle")
    return path


def rewritten(path: Path, change: Callable[[Bundle], Bundle], secret: bytes | None = None) -> None:
    """Write another bundle in the place of one, with a digest that is right."""
    entry = decode_entry(path.read_bytes(), key=path.name)
    payload, meta = change(Bundle.of(entry)).payload()
    path.write_bytes(encode_entry(Entry("bundle", entry.key, entry.factors, meta, payload), secret))


# ------------------------------------------------------------------------------------------- F2 and F3


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(share * len(data))]


def flipped(share: float) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        at = int(share * (len(data) - 1))
        return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]

    return damage


DAMAGES = {
    "empty": cut(0), "one-byte": lambda data: data[:1], "half": cut(0.5),
    "all-but-one": lambda data: data[:-1], "longer": lambda data: data + b"x",
    "flip-first": flipped(0), "flip-header": flipped(0.02), "flip-factors": flipped(0.2),
    "flip-body": flipped(0.7), "flip-last": flipped(1), "another": lambda data: b"\0" * len(data),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_bundle_is_moved_aside_once_and_made_anew(root: Path, name: str) -> None:
    path = bundle_of(root)
    damaged = DAMAGES[name](path.read_bytes())
    path.write_bytes(damaged)
    start = go(root)
    assert not start.was_warm
    assert start.report.hits == 2, "its pieces are whole"
    assert start.counts[1] == 0
    (warning,) = start.warnings
    assert path.name[:12] in warning
    assert "made anew" in warning
    assert [one.read_bytes() for one in (root / "bad").iterdir()] == [damaged]
    assert warm_again(root)


def test_damaged_pieces_are_moved_aside_and_compiled_again(root: Path) -> None:
    bundle_of(root).unlink()
    pieces = entries_of(root, "piece")
    for path in pieces:
        path.write_bytes(flipped(0.6)(path.read_bytes()))
    start = go(root)
    assert (start.report.hits, start.report.compiler_calls) == (0, len(pieces))
    assert len(start.warnings) == len(pieces)
    assert warm_again(root)


@pytest.mark.parametrize("kind", ["bundle", "piece"])
def test_with_strict_a_damaged_entry_raises_and_is_moved_aside(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "c"
    go(root, strict=True)
    if kind == "piece":
        bundle_of(root).unlink()
    path = entries_of(root, kind)[0]
    path.write_bytes(cut(0.5)(path.read_bytes()))
    with pytest.raises(CacheError, match=path.name[:12]):
        go(root, strict=True)
    assert go(root, strict=True).counts[1] == (kind == "piece")
    assert go(root, strict=True).was_warm


def first_artifact(data: bytes) -> Callable[[Bundle], Bundle]:
    return lambda b: evolve(b, artifacts=[data, *b.artifacts[1:]])


def plan(**parts: Any) -> Callable[[Bundle], Bundle]:
    return lambda b: evolve(b, plan={**b.plan, **parts})


def without_pieces(bundle: Bundle) -> Bundle:
    made = json.loads(json.dumps(bundle.plan))
    for box in made["plans"]["boxes"]:
        box["pieces"] = []
    return evolve(bundle, plan=made)


def swapped(bundle: Bundle) -> Bundle:
    return evolve(bundle, artifacts=list(reversed(bundle.artifacts)))


def without_boxes(bundle: Bundle) -> Bundle:
    return evolve(bundle, plan={**bundle.plan, "plans": {**bundle.plan["plans"], "boxes": []}})


WRONG: dict[str, Callable[[Bundle], Bundle]] = {
    "no-plan": lambda b: evolve(b, plan={}),
    "no-boxes": without_boxes,
    "no-pieces": without_pieces,
    "no-artifacts": lambda b: evolve(b, artifacts=[]),
    "an-artifact-of-nothing": first_artifact(b""),
    "an-artifact-of-noise": first_artifact(bytes(range(256))),
    "an-artifact-that-is-no-graph": first_artifact(b'{"graph": 3, "needs": []}'),
    "artifacts-of-other-pieces": swapped,
    "no-front": plan(front={}),
    "no-reading": plan(reading={"facts": [["value"]], "aliases": {}, "needs": [], "imported": []}),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_whole_bundle_with_nonsense_in_it_is_made_anew(root: Path, name: str) -> None:
    path = bundle_of(root)
    rewritten(path, WRONG[name])
    start = go(root)
    assert not start.was_warm
    (warning,) = start.warnings
    assert path.name[:12] in warning
    assert warm_again(root)


# ------------------------------------------------------------------------------------------- F5 and F6


def test_a_full_disk_costs_one_warning(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=4k,mode=700") as root:
        start = go(root)
        assert start.report.compiler_calls == 2
        assert len(start.warnings) == 1, start.warnings
        assert "No space left" in start.warnings[0]
        assert not [name for name in files_of(root) if "tmp" in name]
        os.system(f"mount -o remount,size=1m {root}")
        go(root)
        assert warm_again(root)


def test_a_read_only_cache_is_used_and_a_save_costs_one_warning(tmp_path: Path) -> None:
    with mounted(tmp_path / "ro", "size=1m,mode=700") as root:
        go(root)
        os.system(f"mount -o remount,ro {root}")
        assert warm_again(root)
        start = go(root, uncovered="eager")
        assert not start.was_warm
        assert len(start.warnings) == 1, start.warnings
        assert "Read-only file system" in start.warnings[0]
        os.system(f"mount -o remount,rw {root}")
        go(root, uncovered="eager")
        assert go(root, uncovered="eager").was_warm


QUIET = """
import os, sys
from tests.models import by_name, randn
written = []
def hear(event, args):
    flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    if event == "open" and isinstance(args[2], int) and args[2] & flags and args[0] != os.devnull:
        written.append(str(args[0]))
    if event in ("os.mkdir", "os.link", "os.rename", "os.symlink", "os.remove", "os.truncate"):
        written.append(f"{event} {args[0]}")
sys.dont_write_bytecode = True
model, x = by_name("attributes").build(), randn(6, 4)
# Torch makes a folder of its own when all of it is imported.
begin(by_name("consumers").build(), (x,), cache=False)
sys.addaudithook(hear)
for _ in range(2):
    start = begin(model, (x,), dynamic={"x": {0: "n"}}, cache=sys.argv[1] == "on")
    tell(start, start.compiled(x), same=bool(torch.equal(start.compiled(x), model(x))), written=written)
"""


def bare(**more: str) -> dict[str, str]:
    """An environment with no home in it."""
    kept = ("PATH", "LANG", "INTARSIA_CHECK", "LD_LIBRARY_PATH")
    return {**{k: v for k, v in os.environ.items() if k in kept}, **more}


@AS_ROOT
def test_no_home_and_no_passwd_entry_run_in_memory_with_one_warning_each() -> None:
    for one in fresh(QUIET, "on", env=bare(), cwd="/", under=as_stranger()).told:
        assert one["same"]
        assert one["counts"] == [1, 1, 0]
        assert len(one["warnings"]) == 1, one["warnings"]
        assert "HOME is not set" in one["warnings"][0]
        assert not one["written"]


@AS_ROOT
def test_a_home_that_cannot_be_written_to_runs_in_memory_with_one_warning() -> None:
    for one in fresh(QUIET, "on", env=bare(HOME="/nonexistent"), cwd="/", under=as_stranger()).told:
        assert one["same"]
        assert len(one["warnings"]) == 1, one["warnings"]
        assert "/nonexistent/.cache" in one["warnings"][0]


def test_with_the_cache_off_nothing_is_written_anywhere(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    for one in fresh(QUIET, "off", env=environment, cwd=str(tmp_path)).told:
        assert one["same"]
        assert one["counts"] == [1, 1, 0]
        assert not one["written"]
        assert not one["log"]
    assert not list(tmp_path.iterdir())
    on = fresh(QUIET, "on", env=environment, cwd=str(tmp_path)).told
    assert on[-1]["warm"]
    assert on[-1]["written"], "the hook would have heard of it"


# --------------------------------------------------------------------------------------------------- F7


class Bomb:
    """Unpickling it creates a directory."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def eager_bomb(marker: Path, honest: bytes) -> bytes:
    """Return an artifact of eager's that makes a directory when its piece is called."""
    data = json.loads(honest)
    bomb = ["fn:os:makedirs", ["tuple", str(marker)], ["dict", ["exist_ok", True]]]
    data["graph"].insert(-1, bomb)
    return json.dumps(data).encode()


def inductor_bomb(marker: Path, _honest: bytes) -> bytes:
    """Return an artifact of Inductor's that makes a directory when it is loaded."""
    from intarsia_inductor.package_file import made_with
    from intarsia_inductor.quick import QuickArtifact

    body = f"import os\nos.mkdir({str(marker)!r})\ndef call(inputs): return inputs\n".encode()
    return QuickArtifact("module", True, made_with(), body, {}).to_bytes()


def inductor_pickle(marker: Path, _honest: bytes) -> bytes:
    """Return an artifact of Inductor's own form, a pickle, that makes a directory when it is loaded."""
    from intarsia import torch_compat
    from intarsia_inductor.package_file import made_with
    from intarsia_inductor.quick import QuickArtifact

    versions = {**made_with(), "torch's sources": torch_compat.torch_key()}
    body = pickle.dumps(Bomb(marker))
    return QuickArtifact("entry", False, versions, body, {}).to_bytes()


BOMBS: dict[str, tuple[str, Callable[[Path, bytes], bytes]]] = {
    "eager": ("eager", eager_bomb),
    "inductor-code": ("inductor", inductor_bomb),
    "inductor-pickle": ("inductor", inductor_pickle),
}
PLACES: dict[str, Callable[[Path, Path], Any]] = {
    "foreign": lambda root, path: os.chown(root, 12345, -1),
    "world-writable": lambda root, path: root.chmod(0o777),
    "foreign-folder": lambda root, path: os.chown(path.parent, 12345, -1),
    "world-writable-folder": lambda root, path: path.parent.chmod(0o777),
    "world-writable-file": lambda root, path: path.chmod(0o666),
    "symlink": lambda root, path: (root.rename(root.with_name("r")), root.symlink_to(root.with_name("r"))),
    "bad-digest": lambda root, path: path.write_bytes(flipped(1)(path.read_bytes())),
}  # fmt: skip


@pytest.fixture(scope="module", params=BOMBS)
def planted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cache whose plan has an artifact with a side effect, what it does, and its settings."""
    folder = tmp_path_factory.mktemp(request.param)
    compiler, bomb = BOMBS[request.param]
    settings = {"compilers": [compiler], "artifact": "quick"}
    go(folder / "c", **settings)
    marker = folder / "it ran"
    rewritten(
        bundle_of(folder / "c"),
        lambda b: evolve(b, artifacts=[bomb(marker, data) for data in b.artifacts]),
    )
    return folder / "c", marker, settings


def plant(planted: Any, tmp_path: Path) -> tuple[Path, Path, dict[str, Any]]:
    root, marker, settings = planted
    if marker.exists():
        marker.rmdir()
    shutil.copytree(root, tmp_path / "c")
    (tmp_path / "c").chmod(0o700)
    return tmp_path / "c", marker, settings


def test_what_is_planted_would_run_in_a_place_that_is_fine(planted: Any, tmp_path: Path) -> None:
    root, marker, settings = plant(planted, tmp_path)
    with contextlib.suppress(Exception):  # it is no piece of this model
        go(root, **settings)
    assert marker.exists(), "the test plants nothing"


@pytest.mark.parametrize("place", PLACES)
def test_what_is_planted_never_runs(planted: Any, tmp_path: Path, place: str) -> None:
    root, marker, settings = plant(planted, tmp_path)
    path = bundle_of(root)
    for piece in entries_of(root, "piece"):
        piece.unlink()
    PLACES[place](root, path)
    start = go(root, **settings)
    assert not marker.exists(), "what was planted ran"
    assert not start.was_warm
    assert start.warnings, "somebody must be told"
    assert len(start.warnings) == 1, start.warnings
    for told in (root, path):  # as its owner would mend it
        if told.is_symlink():
            told.unlink()
    fine = root if root.exists() else root.with_name("r")
    shutil.rmtree(fine)
    go(root, **settings)
    assert go(root, **settings).was_warm
    assert not marker.exists()


@pytest.mark.parametrize("forged", [None, b"a guess, 16 bytes"])
def test_what_is_planted_without_the_key_never_runs(
    planted: Any, tmp_path: Path, forged: bytes | None
) -> None:
    root, marker, settings = plant(planted, tmp_path)
    key = tmp_path / "key"
    key.write_bytes(b"0123456789abcdef")
    key.chmod(0o600)
    rewritten(bundle_of(root), lambda b: b, forged)
    for piece in entries_of(root, "piece"):
        piece.unlink()
    settings = {**settings, "cache_key_file": str(key)}
    start = go(root, **settings)
    assert not marker.exists(), "what was planted ran"
    assert len(start.warnings) == 1, start.warnings
    assert go(root, **settings).was_warm
    assert not marker.exists()


# -------------------------------------------------------------------------------------------------- F28


def test_a_cache_deleted_between_and_during_compiles_costs_misses_only(tmp_path: Path) -> None:
    root = tmp_path / "c"
    first = go(root)
    shutil.rmtree(root)
    with torch.no_grad():
        torch.testing.assert_close(first.compiled(X), MODEL(X))
    second = go(root)
    assert second.counts[1:] == (2, 0)
    assert not second.warnings
    assert warm_again(root)

    def delete(event: Any) -> None:
        if event.phase == "compile" and event.kind == "phase-start":
            shutil.rmtree(root, ignore_errors=True)

    during = go(root, uncovered="eager", on_event=delete)
    assert not during.was_warm
    go(root, uncovered="eager")
    assert go(root, uncovered="eager").was_warm
