"""`intarsia cache`: every action, as a table and as JSON, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from intarsia.cache import key_of
from intarsia.cli import main
from tests.stores import FACTORS, KEY, PAYLOAD, entry_file, opened, ran

PLAN = key_of("plan", {"model": "m"})
OTHER = key_of("piece", {**FACTORS, "torch": "2.12"})
FILL = """
import sys
from tests.stores import FACTORS, KEY, PAYLOAD, entry_file, opened, ran
one = opened(sys.argv[1])
one.save()
one.save({**FACTORS, "torch": "2.12"})
one.cache.save("plan", {"model": "m"}, b"the plan", meta={"uses": [KEY]})
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of two pieces and a plan, named by the environment."""
    root = tmp_path / "cache"
    ran(FILL, root)
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("INTARSIA_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("INTARSIA_CACHE", str(root))
    return root


@pytest.fixture
def told(root: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run an action and return (exit code, standard output, standard error)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["cache", *arguments])
        return code, *capsys.readouterr()

    return run


def test_ls_lists_every_entry_and_their_sum(told: Any, root: Path) -> None:
    code, out, _ = told("ls")
    assert code == 0
    assert all(key[:12] in out for key in (KEY, OTHER, PLAN))
    total = sum(entry_file(root, key).stat().st_size for key in (KEY, OTHER, PLAN))
    assert out.splitlines()[-1] == f"3 entries, {total} bytes in {root}"
    rows = json.loads(told("ls", "--json")[1])
    assert {row["key"]: row["kind"] for row in rows} == {KEY: "piece", OTHER: "piece", PLAN: "plan"}
    assert all(row["bytes"] > 0 and not row["in_use"] for row in rows)


def test_ls_shows_what_a_live_process_uses(told: Any, root: Path) -> None:
    using = opened(root)
    using.load()
    assert [row["key"] for row in json.loads(told("ls", "--json")[1]) if row["in_use"]] == [KEY]


def test_show_takes_the_beginning_of_a_key(told: Any, root: Path) -> None:
    code, out, _ = told("show", PLAN[:6], "--json")
    assert code == 0
    shown = json.loads(out)
    assert shown["key"] == PLAN
    assert shown["meta"] == {"uses": [KEY]}
    assert shown["stores"] == [str(root)]
    assert (shown["payload_bytes"], shown["signed"]) == (8, False)
    assert PLAN in told("show", PLAN)[1]


def test_beginning_of_no_key_or_of_several_is_an_error(told: Any) -> None:
    code, _, err = told("show", "zz")
    assert code == 1
    assert 'begins with "zz"' in err
    code, _, err = told("show", "")
    assert code == 1
    assert "3 cache entries" in err


def test_explain_lists_the_factors(told: Any) -> None:
    code, out, _ = told("explain", KEY[:10])
    assert code == 0
    assert [line.split() for line in out.splitlines()[1:]] == [
        list(item) for item in sorted(FACTORS.items())
    ]
    assert json.loads(told("explain", KEY, "--json")[1])["factors"] == FACTORS


@pytest.mark.parametrize("with_what", [[OTHER], ["--nearest"]])
def test_explain_shows_what_differs(told: Any, with_what: list[str]) -> None:
    code, out, _ = told("explain", KEY, *with_what)
    assert code == 0
    assert out.splitlines()[1:] == ["torch   2.13          2.12"]
    found = json.loads(told("explain", KEY, *with_what, "--json")[1])
    assert found["other"] == OTHER
    assert found["differences"] == [{"name": "torch", "ours": "2.13", "theirs": "2.12"}]


def test_explain_of_a_lone_kind_has_no_nearest(told: Any) -> None:
    code, _, err = told("explain", PLAN, "--nearest")
    assert code == 1
    assert 'no other "plan"' in err


def test_verify_names_what_is_damaged(told: Any, root: Path) -> None:
    assert told("verify")[:2] == (0, "every entry is whole\n")
    data = bytearray(entry_file(root).read_bytes())
    data[-1] ^= 1
    entry_file(root).write_bytes(data)
    code, out, _ = told("verify")
    assert code == 1
    assert KEY[:12] in out
    assert "digest does not match" in out
    (defect,) = json.loads(told("verify", "--json")[1])["defects"]
    assert defect["key"] == KEY
    assert entry_file(root).exists(), "it only looks"


def test_verify_fails_for_a_directory_that_is_not_ours_alone(told: Any, root: Path) -> None:
    root.chmod(0o777)
    code, _, err = told("verify")
    assert code == 1
    assert "mode 0777" in err


def test_gc_removes_and_reports(told: Any, root: Path) -> None:
    os.utime(entry_file(root), (1, 1))
    code, out, _ = told("gc", "--max-age", "30d", "--max-bytes", "1G")
    assert code == 0
    assert out.startswith("removed 1 entries")
    assert not entry_file(root).exists()
    done = json.loads(told("gc", "--max-bytes", "0", "--json")[1])
    assert sorted(done["removed"]) == sorted([OTHER, PLAN])
    assert done["kept"] == 0


def test_gc_says_what_stays_because_it_is_in_use(told: Any, root: Path) -> None:
    using = opened(root)
    using.load()
    assert "1 of them are over the limit, and in use" in told("gc", "--max-bytes", "0")[1]


@pytest.mark.parametrize(
    "arguments", [["--max-bytes", "many"], ["--max-age", "30"], ["--max-bytes", "-1"]]
)
def test_gc_refuses_limits_that_it_does_not_understand(told: Any, arguments: list[str]) -> None:
    assert told("gc", *arguments)[0] == 2


def test_pack_here_and_unpack_at_another_path(told: Any, root: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.pack"
    code, out, _ = told("pack", PLAN[:8], str(file))
    assert (code, out) == (0, f"packed 2 entries into {file}\n")
    there = tmp_path / "there"
    code, out, _ = told("unpack", str(file), "--set", f"cache={there}")
    assert (code, out) == (0, "stored 2 entries; 0 were there already\n")
    assert opened(there).load() is not None
    again = told("unpack", str(file), "--set", f"cache={there}", "--json")[1]
    assert json.loads(again)["present"] == [PLAN, KEY]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_unpack_as_another_user_with_another_home(told: Any, tmp_path: Path) -> None:
    told("pack", PLAN, str(tmp_path / "plan.pack"))
    for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 12345, 12345)
    code = (
        "import os, sys, intarsia.cache.pack, intarsia.cli.cache, intarsia.cli.logs, platformdirs\n"
        "from intarsia.cli import main\n"
        "from tests.stores import opened\n"
        "os.setgid(12345); os.setuid(12345); os.chdir('/')\n"
        "assert main(['cache', 'unpack', sys.argv[1]]) == 0\n"
        "one = opened(True)\n"
        "print(one.cache.root, len(one.load()), one.warnings)\n"
    )
    out = ran(code, tmp_path / "plan.pack", env={"HOME": str(home)})
    assert out.splitlines() == [
        "stored 2 entries; 0 were there already",
        f"{home}/.cache/intarsia {len(PAYLOAD)} []",
    ]


def test_unpack_that_could_not_store_fails(told: Any, root: Path, tmp_path: Path) -> None:
    told("pack", PLAN, str(tmp_path / "p"))
    file = tmp_path / "file"
    file.write_text("no directory")
    assert told("unpack", str(tmp_path / "p"), "--set", f"cache={file}")[0] == 1


def test_no_cache_is_a_usage_error(told: Any) -> None:
    code, _, err = told("ls", "--set", "cache=false")
    assert code == 2
    assert "--set cache=PATH" in err


def test_action_is_required_and_help_names_them_all(told: Any) -> None:
    assert told()[0] == 2
    code, out, _ = told("--help")
    assert code == 0
    for action in ("ls", "show", "explain", "verify", "gc", "pack", "unpack"):
        assert f"    {action} " in out


def test_command_runs_without_torch(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "intarsia.cli", "cache", "ls"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "3 entries" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "intarsia.cache" in imported
    assert not {"torch", "pluggy", "fsspec"} & imported
