from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from intarsia import __version__
from intarsia.cli import COMMANDS, main
from tests.toys import write_distribution, write_good

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in list(os.environ):
        if name.startswith("INTARSIA_"):
            monkeypatch.delenv(name)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that plugins can be installed in."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def environment(site: Path | None) -> dict[str, str]:
    """Return the environment of a process that finds the plugins of a folder."""
    path = [str(site)] if site is not None else []
    path += filter(None, [os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def run(*arguments: str, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "intarsia.cli", *arguments],
        capture_output=True,
        text=True,
        env=environment(site),
        check=False,
    )


# ------------------------------------------------------------------------------------ usage


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = re.findall(r"^ {4}([a-z]+)\s", capsys.readouterr().out, re.M)
    assert listed == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    if command == "cache":  # its actions have options of their own
        assert main([command, "ls", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--json" in text
    assert "--traceback" in text
    assert "Exit codes" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"intarsia {__version__}\n"


def test_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compil"]) == 2
    assert "compile" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5"])
def test_counts_are_positive(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", f"--layers={text}"]) == 2
    assert f"expected a whole number, 1 or more, got '{text}'" in capsys.readouterr().err


def test_no_command_is_a_usage_error() -> None:
    assert main([]) == 2


def test_exit_code_reaches_the_shell() -> None:
    done = run("config", "--set", "uncovered=errr")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith('intarsia: wrong value for "uncovered" in --set uncovered=errr')
    assert "Traceback" not in done.stderr


def test_traceback_is_shown_on_request() -> None:
    done = run("config", "--set", "uncovered=errr", "--traceback")
    assert done.returncode == 2
    assert "Traceback (most recent call last)" in done.stderr


def test_reader_that_goes_away_is_no_error() -> None:
    command = f'"{sys.executable}" -m intarsia.cli config --json | head -c 1'
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# ---------------------------------------------------------------------------------- plugins


def test_plugins_lists_what_is_installed(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_good(site, "acme")
    assert main(["plugins"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("acme"))
    assert row.split() == ["acme", "intarsia-acme", "1.0", "acme_plugin", "unloaded"]


def test_plugins_as_json(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_good(site, "acme")
    assert main(["plugins", "--json"]) == 0
    found = {item["name"]: item for item in json.loads(capsys.readouterr().out)}
    assert {"acme", "cpu", "eager", "inductor"} <= set(found)
    assert found["acme"]["state"] == "unloaded"


BROKEN = {
    "raises": "raise RuntimeError('no driver')",
    "exits": "import sys; sys.exit(7)",
    "old": "intarsia_api_version = (0, 1)",
    "misspelt": "intarsia_api_version = (1, 0)\ndef intarsia_compiler(): return []",
    "hook_raises": "intarsia_api_version = (1, 0)\ndef intarsia_compilers(): raise OSError('disk')",
}


def test_plugins_are_listed_when_all_are_broken(site: Path) -> None:
    for name, source in BROKEN.items():
        write_distribution(site, f"intarsia-{name}", {name: f"{name}_x"}, {f"{name}_x": source})
    write_distribution(site, "intarsia-absent", {"absent": "no_such_module"})
    done = run("plugins", "--json", site=site)
    assert done.returncode == 0, done.stderr
    found = {item["name"]: item["state"] for item in json.loads(done.stdout)}
    assert {found[name] for name in (*BROKEN, "absent")} == {"unloaded"}


def test_plugins_load_tells_what_became_of_each(site: Path) -> None:
    write_good(site, "acme")
    for name, source in BROKEN.items():
        write_distribution(site, f"intarsia-{name}", {name: f"{name}_x"}, {f"{name}_x": source})
    done = run("plugins", "--load", "--json", site=site)
    assert done.returncode == 3
    found = {item["name"]: item for item in json.loads(done.stdout)}
    assert found["acme"]["state"] == "loaded"
    assert found["old"]["state"] == "incompatible"
    assert found["raises"]["state"] == "failed"
    assert "no driver" in found["raises"]["error"]
    assert done.stderr == ""


def test_listing_plugins_imports_no_torch_no_rich_and_no_plugin(site: Path) -> None:
    write_good(site, "acme")
    code = (
        "import sys\n"
        "from intarsia.cli import main\n"
        "main(['plugins', '--json'])\n"
        "heavy = {'torch', 'rich', 'intarsia.host', 'acme_plugin', 'intarsia_inductor', 'logging'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(site), check=True
    )
    assert '"acme"' in done.stdout
    assert done.stderr == "[]\n"


def test_blocked_plugin_says_who_blocked_it(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_good(site, "acme")
    assert main(["plugins", "--json", "--set", 'plugins.block=["acme"]']) == 0
    found = {item["name"]: item for item in json.loads(capsys.readouterr().out)}
    assert found["acme"]["state"] == "blocked"
    assert 'plugins.block=["acme"]' in found["acme"]["error"]


# ----------------------------------------------------------------------------------- config


def settings(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, tuple[Any, str]]:
    assert main(["config", "--json", *arguments]) == 0
    rows = json.loads(capsys.readouterr().out)
    return {row["key"]: (row["value"], row["origin"]) for row in rows}


def test_flags_become_settings_with_their_origin(capsys: pytest.CaptureFixture[str]) -> None:
    found = settings(
        capsys,
        *("--compilers", "inductor, eager"),
        *("--split-at", "torch.sigmoid", "--split-at", ".relu"),
        *("--boxes", "tokens=8,256", "--boxes", "batch=4"),
        *("--sizes", "tokens=1"),
        *("--dump", "there", "--strict"),
    )
    assert found["compilers"] == (["inductor", "eager"], "--compilers inductor, eager")
    assert found["split-at"] == (["torch.sigmoid", ".relu"], "--split-at torch.sigmoid .relu")
    assert found["boxes"][0] == {"tokens": [8, 256], "batch": [4]}
    assert found["sizes"] == ({"tokens": [1]}, "--sizes tokens=1")
    assert found["strict"] == (True, "--strict")
    assert found["dump"] == ("there", "--dump there")
    assert found["uncovered"] == ("general", "default")


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("uncovered=error", "uncovered", "error"),
        ('uncovered="error"', "uncovered", "error"),
        ("static-graph=piecewise", "static-graph", "piecewise"),
        ("static_graph=piecewise", "static-graph", "piecewise"),
        ("max-tasks-warning=3", "max-tasks-warning", 3),
        ("dedupe=false", "dedupe", False),
        ("passes.limit=2", "passes.limit", 2),
        ("options.inductor.max-autotune=true", "options.inductor.max-autotune", True),
        ("boxes={n = [8, 9]}", "boxes", {"n": [8, 9]}),
    ],
)
def test_set_takes_any_setting(
    text: str, key: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert settings(capsys, "--set", text)[key] == (value, f"--set {text}")


def test_set_takes_routes_as_they_are_written_in_files(capsys: pytest.CaptureFixture[str]) -> None:
    text = 'route=[{piece = {min-nodes = 3}, compilers = ["eager"]}]'
    (route,), _ = settings(capsys, "--set", text)["routes"]
    assert route["piece"]["min_nodes"] == 3
    assert route["compilers"] == ["eager"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "uncoverd=error"], 'did you mean "uncovered"?'),
        (["--set", "strict=maybe"], "expected true or false, got 'maybe'"),
        (["--set", "strict"], "it needs a key and a value"),
        (["--set", "passes.limits=1"], 'did you mean "passes.limit"?'),
        (["--boxes", "tokens"], 'wrong value for "boxes" in --boxes tokens'),
        (["--config", "absent.toml"], "absent.toml cannot be read"),
    ],
)
def test_wrong_settings_are_usage_errors(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_file_is_found_upward_and_flags_win(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "intarsia.toml"
    file.write_text('uncovered = "error"\nstrict = true\n')
    monkeypatch.setenv("INTARSIA_DEDUPE", "0")
    found = settings(capsys, "--set", "uncovered=eager")
    assert found["uncovered"] == ("eager", "--set uncovered=eager")
    assert found["strict"] == (True, str(file))
    assert found["dedupe"] == (False, "INTARSIA_DEDUPE")


def test_named_file_is_read_instead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "intarsia.toml").write_text("strict = true\n")
    other = tmp_path / "other.toml"
    other.write_text('check = "always"\n')
    found = settings(capsys, "--config", str(other))
    assert found["check"] == ("always", str(other))
    assert found["strict"] == (False, "default")


def test_origin_is_shown_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--strict"]) == 0
    assert "--strict" not in capsys.readouterr().out
    assert main(["config", "--strict", "--show-origin"]) == 0
    assert "--strict" in capsys.readouterr().out


# ----------------------------------------------------------------------------------- doctor


def findings(capsys: pytest.CaptureFixture[str]) -> dict[tuple[str, str], dict[str, Any]]:
    told = json.loads(capsys.readouterr().out)
    return {(item["section"], item["name"]): item for item in told["findings"]}


def test_doctor_finds_nothing_wrong_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = findings(capsys)
    assert found["plugin", "inductor"]["state"] == "ok"
    assert found["compiler", "eager"]["state"] == "ok"
    assert found["platform", "cpu"]["state"] == "ok"
    assert "supported: 2.11 to 2.15" in found["version", "torch"]["detail"]
    assert sum(section == "private torch name" for section, _ in found) > 10


def test_doctor_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "private torch name" in text
    assert text.endswith("everything is fine\n")


DOCTOR = """
    from intarsia.interfaces import Check, CompilerSpec, Decision
    intarsia_api_version = (1, 0)
    def bad(): return Decision(False, "driver is too old")
    def raises(): raise OSError("no bus")
    def no_card(): return Decision(False, "no card found")
    def intarsia_doctor():
        return [Check("driver", bad), Check("bus", raises), Check("lost", "no_such_module:check"),
                Check("word", lambda: "fine")]
    def intarsia_compilers():
        return [CompilerSpec(name="card", version="1", factory=print, available=no_card,
                             install_hint="Plug one in.")]
"""


def test_doctor_runs_the_checks_of_plugins(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_distribution(site, "intarsia-sick", {"sick": "sick_x"}, {"sick_x": DOCTOR})
    assert main(["doctor", "--json"]) == 1
    found = findings(capsys)
    assert found["check", "driver"]["detail"] == "driver is too old"
    assert found["check", "bus"]["detail"] == "OSError: no bus"
    assert "no_such_module" in found["check", "lost"]["detail"]
    assert "not a Decision" in found["check", "word"]["detail"]
    assert {found["check", name]["state"] for name in ("driver", "bus", "lost", "word")} == {
        "failed"
    }
    card = found["compiler", "card"]
    assert (card["state"], card["detail"]) == ("absent", "no card found. Plug one in.")


def test_doctor_fails_for_a_broken_plugin(site: Path) -> None:
    write_distribution(site, "intarsia-raises", {"raises": "raises_x"}, {"raises_x": "1 / 0"})
    done = run("doctor", site=site)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stdout
    assert done.stdout.endswith("1 failed: raises\n")
    assert done.stderr == ""
