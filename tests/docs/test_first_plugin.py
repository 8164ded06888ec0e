"""The page "a first plugin" is followed to the letter: its files are written, its commands run in order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "first-plugin.md").read_text("utf-8")
FIRST, SECOND = TEXT.split("## One to build on")
PIP = ("pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target")


def files(text: str) -> dict[str, str]:
    blocks = re.findall(r"^```\w+\n# (\S+)\n(.*?)^```", text, re.M | re.S)
    return {name: f"# {name}\n{source}" for name, source in blocks}


def commands(text: str) -> list[list[str]]:
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return [shlex.split(line) for line in re.findall(r"^ {4}(.+)$", prose, re.M)]


def shown(text: str) -> list[str]:
    """Return the lines that the page says are printed."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    return "".join(block for language, block in blocks if not language).splitlines()


class Follower:
    """Follows the page in a folder of its own; what it installs goes into a folder too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.site = folder / "site"
        self.printed: list[str] = []

    def follow(self, command: list[str]) -> None:
        if command[0] == "cd":
            self.folder /= command[1]
            return
        if command[:2] == ["pip", "install"]:
            command = [*PIP, str(self.site), "."]
        module = {"intarsia": "intarsia.cli"}.get(command[0], command[0])
        path = os.pathsep.join(filter(None, [str(self.site), os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            [sys.executable, "-m", module, *command[1:]],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        self.printed += done.stdout.splitlines()


@pytest.fixture
def follower(tmp_path: Path) -> Follower:
    for name, source in files(FIRST).items():
        tmp_path.joinpath(name).write_text(source)
    return Follower(tmp_path)


def test_14_lines_work_as_written(follower: Follower) -> None:
    installation, *steps = commands(FIRST)
    assert installation == ["pip", "install", "-c", "constraints.txt", "."]
    assert len(steps) == 3
    for command in steps:
        follower.follow(command)
    assert any(line.split()[:2] == ["shout", "intarsia-shout"] for line in follower.printed)
    assert set(shown(FIRST)) <= set(follower.printed)


def test_plugin_of_the_page_is_that_of_the_readme() -> None:
    source = files(FIRST)["intarsia_shout.py"]
    assert f"```python\n{source}```" in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.slow
def test_compiler_to_build_on_comes_about_as_written(follower: Follower) -> None:
    steps = commands(SECOND)
    assert [" ".join(step[:2]) for step in steps] == [
        *("intarsia new", "cd intarsia-acme", "pip install", "intarsia plugins", "pytest"),
        *("intarsia conformance", "intarsia compile"),
    ]
    for command in steps:
        follower.follow(command)
    assert any(line.split()[:2] == ["acme", "intarsia-acme"] for line in follower.printed)
    assert set(shown(SECOND)) <= set(follower.printed)
