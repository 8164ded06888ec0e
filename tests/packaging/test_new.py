"""What `intarsia new` writes: it installs, is found, is clean, and passes its own tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from intarsia.cli import UsageError, main
from intarsia.cli.new import write
from intarsia.templates import KINDS

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"compiler": "toy-c", "platform": "toy_p", "passes": "toy9"}
LONGEST = "n23456789-123456789-123456789-123456789-"[:39] + "n"


def run(*command: str, cwd: Path, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environ},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One distribution of each kind, as written."""
    work = tmp_path_factory.mktemp("new")
    return {kind: write(kind, name, work / name)[0] for kind, name in NAMES.items()}


@pytest.fixture(scope="module")
def site(projects: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip has installed them."""
    folder = tmp_path_factory.mktemp("site")
    install = ("install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(folder))
    run("pip", *install, *map(str, projects.values()), cwd=folder)
    return folder


def test_there_is_a_name_for_every_kind() -> None:
    assert set(NAMES) == set(KINDS)


def test_they_are_found_and_load(site: Path) -> None:
    rows = run("intarsia.cli", "plugins", "--load", cwd=site, PYTHONPATH=str(site)).splitlines()
    found = {row.split()[0]: row.split() for row in rows if row.startswith("toy")}
    assert {name: row[1] for name, row in found.items()} == {
        "toy-c": "intarsia-toy-c",
        "toy_p": "intarsia-toy-p",
        "toy9": "intarsia-toy9",
    }
    assert {row[4] for row in found.values()} == {"loaded"}


def own_tests(projects: dict[str, Path], site: Path, *chosen: str) -> str:
    """Run tests of the distributions; return the line that counts them."""
    said = run(
        *("pytest", "-q", "-c", os.devnull, "-p", "no:cacheprovider", "-p", "no:xdist"),
        *("--import-mode=importlib", *chosen, *(str(f / "tests") for f in projects.values())),
        cwd=site,
        PYTHONPATH=str(site),
    )
    return said.splitlines()[-1]


def test_their_own_tests_pass(projects: dict[str, Path], site: Path) -> None:
    said = own_tests(projects, site, "-k", "not conformance or artifact or identity")
    assert re.match(r"15 passed, \d+ deselected in ", said)


@pytest.mark.slow
def test_they_pass_the_conformance_kit(projects: dict[str, Path], site: Path) -> None:
    said = own_tests(projects, site, "-k", "conformance")
    assert re.match(r"\d\d passed, 13 deselected in ", said)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_command_says_that_they_conform(kind: str, site: Path) -> None:
    said = run("intarsia.cli", "conformance", NAMES[kind], cwd=site, PYTHONPATH=str(site))
    assert said.splitlines()[-1].endswith(", 0 failed")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["x", LONGEST], ids=["short", "long"])
def test_linters_and_the_type_checker_find_nothing(kind: str, name: str, tmp_path: Path) -> None:
    folder, _ = write(kind, name, tmp_path / "new")
    run("ruff", "check", "--no-cache", cwd=folder)
    run("ruff", "format", "--no-cache", "--check", cwd=folder)
    # Where the core is installed from its wheel, mypy finds it without this path.
    silent = ("--follow-imports=silent", "--cache-dir", str(ROOT / ".mypy_cache" / "new"))
    run("mypy", *silent, cwd=folder, MYPYPATH=str(ROOT / "core"))


def test_device_type_of_a_platform_is_the_one_asked_for(tmp_path: Path) -> None:
    folder, _ = write("platform", "acme-npu", tmp_path / "new", device_type="acme")
    source = folder.joinpath("src/intarsia_acme_npu/__init__.py").read_text()
    assert 'DEVICE_TYPE = "acme"' in source


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("compilr", "acme", 'there is no template "compilr": did you mean "compiler"?'),
        ("compiler", "Acme", "cannot be the name of a plugin"),
        ("compiler", "-acme", "cannot be the name of a plugin"),
        ("compiler", "a.b", "cannot be the name of a plugin"),
        ("compiler", "a/../../b", "cannot be the name of a plugin"),
        ("compiler", "a" * 41, "1 to 40"),
        ("compiler", "", "cannot be the name of a plugin"),
        ("compiler", "auto", "means something else"),
        ("compiler", "eager", 'there is a plugin "eager" already: intarsia '),
    ],
)
def test_kind_or_name_that_cannot_be_is_a_usage_error(
    kind: str, name: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        write(kind, name, tmp_path / "new")
    assert message in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.joinpath("README.md").write_text("mine")
    assert main(["new", "compiler", "acme", "--to", str(tmp_path)]) == 2
    assert "exists: nothing is overwritten" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]


def test_device_type_is_for_platforms_alone(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only a platform has one"):
        write("passes", "acme", tmp_path / "new", device_type="acme")
    with pytest.raises(UsageError, match="is no device type"):
        write("platform", "acme", tmp_path / "new", device_type='cpu"')


def test_command_says_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "passes", "acme"]) == 0
    said = capsys.readouterr().out
    assert "  cd intarsia-acme\n" in said
    written = {str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*") if f.is_file()}
    assert "intarsia-acme/src/intarsia_acme/py.typed" in written
    assert all(file.removeprefix("intarsia-acme/") in said for file in written)
