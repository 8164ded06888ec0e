"""Installs good and broken plugins with pip, side by side, and asks for each of them."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

GOOD = """
    from intarsia.interfaces import CompilerSpec
    intarsia_api_version = (1, 0)
    def intarsia_compilers():
        return [CompilerSpec(name={name!r}, version="1", factory="json:dumps")]
"""
PLUGINS = {
    # distribution: (plugin name, source)
    "toy-good": ("good", GOOD.format(name="good")),
    "toy-fine": ("fine", GOOD.format(name="fine")),
    "toy-import": ("at-import", "raise OSError('libtoy.so: cannot open')"),
    "toy-api": ("api", "intarsia_api_version = (7, 0)"),
    "toy-misspelt": ("misspelt", "intarsia_api_version = (1, 0)\ndef intarsia_compilerz(): pass"),
    "toy-twin-a": ("twin", GOOD.format(name="twin")),
    "toy-twin-b": ("twin", GOOD.format(name="twin")),
    "toy-hook": (
        "hook",
        "intarsia_api_version = (1, 0)\ndef intarsia_compilers(): raise RuntimeError('in hook')",
    ),
    "toy-missing": ("missing", "import toy_driver_that_nobody_has"),
}
ASK = """
    import json, logging, traceback
    logging.basicConfig(filename="log.txt")
    from intarsia.config import load_config
    from intarsia.host import Host
    host = Host(load_config(environ={}))
    toys = [status for status in host.plugins if status.distribution.startswith("toy-")]
    asked = {}
    for name in {status.name for status in toys}:
        try:
            asked[name] = ["found", host.compiler(name).name]
        except Exception as error:
            asked[name] = [type(error).__name__, "".join(traceback.format_exception(error))]
    statuses = {status.distribution: status.to_dict() for status in toys}
    print(json.dumps({"statuses": statuses, "asked": asked}))
"""


def write_project(folder: Path, distribution: str, plugin: str, source: str) -> str:
    module = distribution.replace("-", "_")
    folder.mkdir()
    folder.joinpath("pyproject.toml").write_text(
        textwrap.dedent(f"""
            [build-system]
            requires = ["setuptools"]
            build-backend = "setuptools.build_meta"
            [project]
            name = "{distribution}"
            version = "1.5"
            [project.entry-points.intarsia]
            {plugin} = "{module}"
            [tool.setuptools]
            py-modules = ["{module}"]
        """)
    )
    folder.joinpath(f"{module}.py").write_text(textwrap.dedent(source))
    return str(folder)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a fresh process says of the installed toys, and its log."""
    work = tmp_path_factory.mktemp("projects")
    site = tmp_path_factory.mktemp("site")
    projects = [
        write_project(work / distribution, distribution, plugin, source)
        for distribution, (plugin, source) in PLUGINS.items()
    ]
    install = ("install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(site))
    subprocess.run([sys.executable, "-m", "pip", *install, *projects], check=True)
    code = f"import sys; sys.path.insert(0, {str(site)!r})\n" + textwrap.dedent(ASK)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=work, capture_output=True, text=True, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    answer["log"] = (work / "log.txt").read_text()
    return answer


@pytest.mark.parametrize(
    ("distribution", "state", "error"),
    [
        ("toy-good", "loaded", ""),
        ("toy-fine", "loaded", ""),
        ("toy-import", "failed", "OSError: libtoy.so: cannot open"),
        ("toy-api", "incompatible", "it is written for plugin API 7.0; this intarsia speaks 1.0"),
        ("toy-misspelt", "failed", 'unknown hook "intarsia_compilerz"; did you mean'),
        ("toy-twin-a", "failed", 'the plugin name "twin" is claimed by toy-twin-a 1.5'),
        ("toy-twin-b", "failed", "toy-twin-b 1.5"),
        ("toy-hook", "failed", "RuntimeError: in hook"),
        ("toy-missing", "failed", "No module named 'toy_driver_that_nobody_has'"),
    ],
)
def test_each_plugin_has_its_own_status(
    answers: dict[str, Any], distribution: str, state: str, error: str
) -> None:
    status = answers["statuses"][distribution]
    assert status["state"] == state
    assert error in status["error"]
    assert bool(status["error"]) == bool(error)
    assert status["version"] == "1.5"


def test_good_plugins_work_beside_broken_ones(answers: dict[str, Any]) -> None:
    assert answers["asked"]["good"] == ["found", "good"]
    assert answers["asked"]["fine"] == ["found", "fine"]


@pytest.mark.parametrize(
    ("plugin", "original"),
    [
        ("at-import", "raise OSError('libtoy.so: cannot open')"),
        ("hook", "raise RuntimeError('in hook')"),
        ("missing", "import toy_driver_that_nobody_has"),
        ("misspelt", 'unknown hook "intarsia_compilerz"'),
    ],
)
def test_broken_plugin_that_is_asked_for_raises_with_its_traceback(
    answers: dict[str, Any], plugin: str, original: str
) -> None:
    kind, text = answers["asked"][plugin]
    assert kind == "PluginError"
    assert original in text
    assert "direct cause of the following exception" in text


@pytest.mark.parametrize(
    ("plugin", "parts"),
    [("twin", ("toy-twin-a 1.5", "toy-twin-b 1.5", "prefer")), ("api", ("7.0", "1.0"))],
)
def test_clash_and_wrong_version_say_both_sides(
    answers: dict[str, Any], plugin: str, parts: tuple[str, ...]
) -> None:
    kind, text = answers["asked"][plugin]
    assert kind == "PluginError"
    for part in parts:
        assert part in text


def test_each_broken_plugin_is_one_warning(answers: dict[str, Any]) -> None:
    broken = [d for d in PLUGINS if d not in ("toy-good", "toy-fine")]
    for distribution in broken:
        assert answers["log"].count(f"({distribution} 1.5) is skipped") == 1
    assert "(toy-good 1.5)" not in answers["log"]
