"""The pages say what is true: snippets run, links lead somewhere, commands and errors exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from intarsia import errors
from intarsia.cli import COMMANDS
from tests.toys import write_distribution

ROOT = Path(__file__).resolve().parents[2]
GENERATED = {"hooks.md", "config.md"}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def snippets(language: str) -> list[tuple[str, str]]:
    """Return (page and number, source) of every code block in a language."""
    found = []
    for page in PAGES:
        if page.name in GENERATED:
            continue
        blocks = re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
        found += [(f"{page.name}-{number}", block) for number, block in enumerate(blocks)]
    return found


def readme_plugin() -> str:
    return next(block for _, block in snippets("python") if "intarsia_api_version" in block)


@pytest.mark.parametrize(("name", "source"), snippets("python"))
def test_python_snippet_runs(name: str, source: str, tmp_path: Path) -> None:
    file = tmp_path / "snippet.py"  # a file, because tracing wants to read its source
    file.write_text(source)
    done = subprocess.run(
        [sys.executable, file], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("name", "source"), snippets("toml"))
def test_toml_snippet_is_toml(name: str, source: str) -> None:
    assert tomllib.loads(source)


def test_plugin_of_the_readme_has_14_lines_at_most() -> None:
    assert len([line for line in readme_plugin().splitlines() if line.strip()]) <= 14


def test_plugin_of_the_readme_works(tmp_path: Path) -> None:
    toml = next(block for _, block in snippets("toml") if "intarsia-shout" in block)
    plugins = tomllib.loads(toml)["project"]["entry-points"]["intarsia"]
    write_distribution(tmp_path, "intarsia-shout", plugins, {"intarsia_shout": readme_plugin()})
    tmp_path.joinpath("model.py").write_text(
        "import torch\n"
        "def make():\n"
        "    return {'model': torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Sigmoid()),\n"
        "            'args': (torch.ones(3, 4),), 'dynamic': {'input': {0: 'tokens'}}}\n"
    )
    path = [str(tmp_path), os.environ.get("PYTHONPATH")]
    command = [sys.executable, "-m", "intarsia.cli", "bench", "model.py:make", "--no-stock"]
    settings = ["--compilers", "shout", "--strict", "--seconds", "0.1", "--rounds", "3"]
    done = subprocess.run(
        [*command, *settings],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"nodes, box \{.*\(\d+, \d+\)\}", done.stderr), "the plugin was not heard"
    row = next(line for line in done.stdout.splitlines() if line.startswith("intarsia: shout"))
    assert row.split()[-1] == "0", "its numbers differ from eager's"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    spoken = re.findall(r"(?:`|^ {4}(?:.*&& )?)intarsia ([a-z]+)", text, re.M)
    assert set(spoken) <= set(COMMANDS)


def test_page_of_the_command_line_has_every_command() -> None:
    text = (ROOT / "docs" / "command-line.md").read_text("utf-8")
    assert re.findall(r"^\| `intarsia ([a-z]+)", text, re.M) == list(COMMANDS)


def test_target_of_the_page_compiles(tmp_path: Path) -> None:
    (source,) = (block for name, block in snippets("python") if name.startswith("command-line"))
    tmp_path.joinpath("model.py").write_text(source)
    command = [sys.executable, "-m", "intarsia.cli", "compile", "model.py:make"]
    done = subprocess.run(
        [*command, "--compilers", "eager"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("small: 3 pieces, 2 compiled")


def test_files_that_commands_name_exist_or_are_planned() -> None:
    planned = {"tests/benchmarks/cold.py", "tests/benchmarks/dispatch.py"}
    text = (ROOT / "docs" / "performance.md").read_text("utf-8")
    for file in re.findall(r"python (tests/\S+\.py)", text):
        assert (ROOT / file).exists() or file in planned


def test_every_error_has_a_section() -> None:
    text = (ROOT / "docs" / "errors.md").read_text("utf-8")
    sections = set(re.findall(r"^## `(\w+)`$", text, re.M))
    assert sections == set(errors.__all__) - {"nearest"}


def test_exit_codes_of_the_page_are_those_of_the_command_line() -> None:
    from intarsia.cli import exit_code

    text = (ROOT / "docs" / "errors.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d), [^|]*\| (.*) \|$", text, re.M)
    told = {name: int(code) for code, names in rows for name in re.findall(r"`(\w+)`", names)}
    for name in set(errors.__all__) - {"nearest", "IntarsiaError"}:
        assert told[name] == exit_code(getattr(errors, name)("it happened")), name


def test_glossary_is_in_order_and_has_the_words_of_the_code() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    words = re.findall(r"^\| \*\*(.+?)\*\* \|", text, re.M)
    assert words == sorted(words)
    assert set(words) >= {
        *("graph", "rule", "splitting op", "piece", "compiled piece", "splitting piece", "box"),
        *("size", "compiler", "artifact", "pass", "static graph", "platform", "plan"),
        *("bound plan", "host", "route", "symbol", "contract", "form", "traits"),
    }
