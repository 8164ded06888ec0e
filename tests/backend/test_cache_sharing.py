"""One cache for several users, machines and processes: moved in one file, shared at once, kept small."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from intarsia.cache.entry import decode_entry
from intarsia.cli import main
from tests.stores import STRANGER, as_stranger, files_of, opened
from tests.warm import began, begin, ended, entries_of, fresh, headers

pytestmark = pytest.mark.timeout(240)
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")

RUN = """
import json, os, sys
from pathlib import Path
root, compiles, trait, layers = sys.argv[1:]
from tests.models import ATTENTION, DECODER_DYNAMIC, decoder, decoder_inputs
from types import SimpleNamespace
from intarsia.config import load_config
from intarsia.host import Host
from intarsia.interfaces import Capabilities, CompilerSpec, PlatformSpec
from intarsia_eager.adaptor import EagerCompiler

class Counted(EagerCompiler):
    def compile(self, request):
        with open(compiles, "a") as file:
            file.write(request.key + "\\n")
        return super().compile(request)

everything = Capabilities(dynamic_shapes=True, mutation=True, custom_ops=True, workers=False)
plugin = SimpleNamespace(
    __name__="counted", intarsia_api_version=(1, 0),
    intarsia_compilers=lambda: [CompilerSpec("counted", "1", Counted, capabilities=everything)],
    intarsia_platforms=lambda: [PlatformSpec(
        "counted", "cpu", traits=lambda device: {"colour": trait}, compilers=("counted",), priority=-1)],
)
setting = json.loads(root)
config = load_config(None, compilers=["counted"], platform="counted", cache=setting, workers=0)
host = Host(config, extra_plugins=[plugin])
model = decoder(int(layers), hidden=32)
call = dict(kwargs=decoder_inputs(5), dynamic=DECODER_DYNAMIC, split_at=[ATTENTION],
            compilers=["counted"], platform="counted", cache=setting, host=host, cache_wait=60.0)
print("READY", flush=True)
sys.stdin.readline()
start = begin(model, **call)
inputs = decoder_inputs(9, seed=3)
result = start.compiled(**inputs)
with torch.no_grad():
    right = bool(torch.allclose(result, model(**inputs), atol=2e-4))
tell(start, result, right=right)
"""


def process(root: Any, log: Path, *, trait: str = "red", layers: int = 3, **o: Any) -> Any:
    return began(RUN, json.dumps(root), log, trait, layers, **o)


def go(*processes: Any) -> list[dict[str, Any]]:
    """Let processes compile at the same time, and return what each told."""
    for one in processes:
        if one.stdout.readline() != "READY\n":
            raise AssertionError(one.communicate(timeout=60)[1])
    for one in processes:
        one.stdin.write("go\n")
        one.stdin.flush()
    return [ended(one).one for one in processes]


def compiles(log: Path) -> Counter[str]:
    return Counter(log.read_text().split()) if log.exists() else Counter()


def intarsia(*words: object) -> str:
    """Run a command of the CLI, which must succeed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([str(word) for word in words]) == 0
    return out.getvalue()


# ------------------------------------------------------------------------------------- pack and unpack


@AS_ROOT
def test_a_packed_plan_starts_warm_for_another_user_home_and_path(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    here, log = tmp_path / "here", tmp_path / "compiles"
    (cold,) = go(process(str(here), log))
    assert sum(compiles(log).values()) == 3
    (plan,) = entries_of(here, "bundle")
    intarsia("cache", "pack", plan.name, tmp_path / "plan.pack", "--set", f"cache={here}")
    (tmp_path / "plan.pack").chmod(0o644)
    shutil.rmtree(here)

    home = tmp_path / "another home"
    home.mkdir()
    os.chown(home, STRANGER, STRANGER)
    environment = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home / "x")}
    there = home / "caches" / "of intarsia"
    unpack = (
        "import sys\n"
        "from intarsia.cli import main\n"
        "sys.exit(main(['cache', 'unpack', sys.argv[1], '--set', 'cache=' + sys.argv[2]]))\n"
    )
    fresh(unpack, tmp_path / "plan.pack", there, env=environment, under=as_stranger())
    assert {path.stat().st_uid for path in there.rglob("*")} == {STRANGER}
    (warm,) = go(process(str(there), log, env=environment, cwd="/", under=as_stranger()))
    assert warm["warm"], warm["log"]
    assert warm["result"] == cold["result"]
    assert warm["right"]
    assert sum(compiles(log).values()) == 3
    assert not warm["heavy"]


def test_another_device_trait_is_a_clean_miss_that_names_it(tmp_path: Path) -> None:
    root, log = str(tmp_path / "c"), tmp_path / "compiles"
    (cold,) = go(process(root, log))
    kept = set(files_of(Path(root)))
    (other,) = go(process(root, log, trait="blue"))
    assert other["counts"] == [1, 3, 0]
    assert 'trait colour is "blue" here and "red" there' in other["plan_miss"]
    assert not other["warnings"]
    assert other["result"] == cold["result"]
    assert set(files_of(Path(root))) > kept, "the entries of the other device stay"


# ---------------------------------------------------------------------------------- processes together


def test_eight_processes_with_one_empty_store_compile_each_piece_once(tmp_path: Path) -> None:
    root, log = str(tmp_path / "c"), tmp_path / "compiles"
    told = go(*(process(root, log) for _ in range(8)))
    assert set(compiles(log).values()) == {1}
    assert len(compiles(log)) == 3
    assert sum(one["counts"][1] for one in told) == 3
    assert all(one["right"] for one in told)
    assert len({one["result"] for one in told}) == 1
    assert not any(one["warnings"] for one in told)
    assert sorted(one["counts"] for one in told) == [[0, 0, 1]] * 7 + [[1, 3, 0]]
    assert not [name for name in files_of(Path(root)) if "lock" in name or "tmp" in name]


@pytest.mark.slow
def test_different_plans_share_the_pieces_that_they_have_in_common(tmp_path: Path) -> None:
    root, log = str(tmp_path / "c"), tmp_path / "compiles"
    told = go(*(process(root, log, layers=n) for n in (2, 3, 4, 5)))
    assert set(compiles(log).values()) == {1}, "two plans are not one, their pieces are"
    assert len(compiles(log)) == 3
    assert all(one["right"] for one in told)


def test_two_local_stores_over_one_remote_compile_at_most_once_each(tmp_path: Path) -> None:
    remote, log = f"file://{tmp_path / 'remote'}", tmp_path / "compiles"
    stores = [[str(tmp_path / name), remote] for name in ("one", "two")]
    told = go(*(process(stores[i % 2], log) for i in range(4)))
    assert max(compiles(log).values()) <= 2, "once for each local store"
    assert all(one["right"] for one in told)
    for name in ("one", "two"):
        again = go(process([str(tmp_path / name), remote], log))[0]
        assert again["warm"]
    (third,) = go(process([str(tmp_path / "three"), remote], log))
    assert third["warm"], "the remote one alone is enough"
    assert len(entries_of(tmp_path / "three", "bundle")) == 1, "and it is near from now on"


# -------------------------------------------------------------------------------------- files, collection


def test_a_plan_is_one_file_beside_the_pieces_that_plans_share(tmp_path: Path) -> None:
    root = tmp_path / "c"
    go(process(str(root), tmp_path / "log"))
    # How it is counted: every file below the root, after the process has ended; entries of pieces are
    # shared by all plans that have such a piece, everything else belongs to the plan.
    kinds = Counter(header.kind for header in headers(root).values())
    assert kinds == {"piece": 3, "bundle": 1}
    others = [name for name in files_of(root) if root / name not in headers(root)]
    assert len(others) + kinds["bundle"] <= 3, others
    for path in headers(root):
        decode_entry(path.read_bytes(), key=path.name)


def test_collection_keeps_what_a_living_process_uses(tmp_path: Path) -> None:
    from tests.models import by_name, randn

    root = tmp_path / "c"
    hold = (
        "import sys\n"
        "from tests.models import by_name, randn\n"
        "args = (randn(6, 4),)\n"
        "start = begin(by_name('attributes').build(), args, cache=sys.argv[1])\n"
        "tell(start)\n"
        "sys.stdin.readline()\n"
    )
    holder = began(hold, root)
    assert "TOLD" in holder.stdout.readline()
    # Held: what is collected with its last reference is in use by nobody.
    held = begin(by_name("consumers").build(), (randn(6, 4),), cache=root)
    before = set(headers(root))
    gone = begin(by_name("closure").build(), (randn(6, 4),), cache=False)
    gone.compiled.close()
    collect = (
        "import sys\n"
        "from intarsia.cli import main\n"
        "cache = 'cache=' + sys.argv[1]\n"
        "sys.exit(main(['cache', 'gc', '--max-bytes', '0', '--set', cache]))\n"
    )
    fresh(collect, root)
    left = set(headers(root))
    assert left == before, "this process and the other one use all of it"
    holder.stdin.write("end\n")
    holder.stdin.flush()
    ended(holder)
    fresh(collect, root)
    mine = {h.meta.get("name", "").split("-")[0].split(".")[0] for h in headers(root).values()}
    assert mine == {"Consumers"}, "those of the process that ended are gone"
    held.compiled.close()
    assert begin(by_name("consumers").build(), (randn(6, 4),), cache=root).was_warm
    assert opened(root).cache.counters["quarantined"] == 0
