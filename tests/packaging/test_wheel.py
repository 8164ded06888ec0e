"""Builds the wheel and looks inside."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str, cwd: Path, **environ: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env=environ or None
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel, built from a copy so that the checkout stays clean."""
    copy = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("core", "plugins"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    out = tmp_path_factory.mktemp("dist")
    build = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(copy))
    run(sys.executable, "-m", "pip", *build, cwd=copy)
    (built,) = out.glob("*.whl")
    with zipfile.ZipFile(built) as opened:
        yield opened


def test_wheel_has_every_module_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    ours = {
        str(file.relative_to(ROOT / folder))
        for folder in ("core", "plugins")
        for file in (ROOT / folder).rglob("*.py")
    }
    inside = {name for name in wheel.namelist() if name.endswith(".py")}
    assert inside == ours
    tops = {name.split("/")[0] for name in wheel.namelist() if ".dist-info" not in name}
    assert all(top == "intarsia" or top.startswith("intarsia_") for top in tops)


def test_wheel_has_the_templates(wheel: zipfile.ZipFile) -> None:
    templates = {str(file.relative_to(ROOT / "core")) for file in (ROOT / "core").rglob("*.tmpl")}
    assert templates
    assert {name for name in wheel.namelist() if name.endswith(".tmpl")} == templates


def test_every_package_is_marked_as_typed(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    packages = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert {f"{package}/py.typed" for package in packages} <= names


def test_wheel_has_licence_entry_points_and_metadata(wheel: zipfile.ZipFile) -> None:
    info = next(name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name)
    assert "Apache License" in wheel.read(f"{info}/licenses/LICENSE").decode()
    entry_points = wheel.read(f"{info}/entry_points.txt").decode()
    for line in (
        "intarsia = intarsia.cli:main",
        "eager = intarsia_eager",
        "inductor = intarsia_inductor",
        "cpu = intarsia_cpu",
        "cuda = intarsia_cuda",
        "intarsia = intarsia.jit:intarsia_backend",
    ):
        assert line in entry_points.splitlines()
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "Name: intarsia\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata


def test_unpacked_wheel_imports_without_torch(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    code = "import sys, intarsia; print(intarsia.__file__, 'torch' in sys.modules)"
    out = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert out.split() == [str(tmp_path / "intarsia" / "__init__.py"), "False"]


def test_version_is_the_same_in_code_and_metadata(wheel: zipfile.ZipFile) -> None:
    import intarsia

    assert any(
        name.startswith(f"intarsia-{intarsia.__version__}.dist-info/") for name in wheel.namelist()
    )
