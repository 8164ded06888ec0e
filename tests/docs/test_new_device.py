"""The page "a new device" builds a device: its files make a package, and every step of it runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "new-device.md"
BLOCKS = re.findall(r"^```py\n# (\S+)(.*?)\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
STEPS = [number for number, (kind, _, _) in enumerate(BLOCKS) if kind == "try:"]


def install(site: Path, until: int) -> None:
    """Write the files that stand before a step, and say as pip would which entry points there are."""
    for kind, _, source in BLOCKS[:until]:
        if kind != "try:":
            file = site / kind.removeprefix("src/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source)
    site.joinpath("intarsia_toynpu", "__init__.py").touch()  # there is none before step 2
    (toml,) = re.findall(r"^```toml\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    project = tomllib.loads(toml)["project"]
    info = site / f"intarsia_toynpu-{project['version']}.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = [
        f"[{group}]\n" + "\n".join(f"{name} = {value}" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    info.joinpath("entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("step", STEPS, ids=[BLOCKS[n][1].strip() for n in STEPS])
def test_a_step_of_the_new_device_runs(step: int, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    install(site, step)
    file = tmp_path / "step.py"
    file.write_text(BLOCKS[step][2])
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "TORCH_DEVICE_BACKEND_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, file], capture_output=True, text=True, check=False, cwd=tmp_path, env=env
    )
    assert done.returncode == 0, done.stderr


def test_the_page_has_a_step_for_each_part() -> None:
    assert len(STEPS) == 5
    assert {kind.rpartition("/")[2] for kind, _, _ in BLOCKS if kind != "try:"} == {
        "__init__.py", "compiler.py", "device.py", "graphs.py", "platform.py", "rewriting.py",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["platform", "static-graph"])
def test_the_device_of_the_page_passes_the_kit(kind: str, tmp_path: Path) -> None:
    install(tmp_path, len(BLOCKS))
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "TORCH_DEVICE_BACKEND_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "intarsia.cli", "conformance", "toynpu", "--kind", kind],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
