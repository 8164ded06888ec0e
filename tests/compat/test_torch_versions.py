"""The smoke suite under every supported torch: `pytest -m compat`.

Each row is a virtual environment of its own, made on first use under COMPAT_ENVIRONMENTS (default: a
folder in the user's cache directory) and kept. Making one downloads a torch build, several GB with CUDA.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest

ROOT = Path(__file__).resolve().parents[2]
ROWS = [("2.11.0", "3.11"), ("2.12.0", "3.11"), ("2.13.0", "3.11"), ("2.14.0", "3.11"),
        ("2.15.0", "3.11"), ("2.15.0", "3.12")]  # fmt: skip
SUITE = ["tests/backend/test_zoo.py", "tests/backend/test_split_cases.py",
         "tests/backend/test_decoder.py", "tests/backend/test_boxes.py", "tests/backend/test_fusions.py",
         "tests/backend/test_pass_patterns.py", "tests/backend/test_pass_writes.py"]  # fmt: skip
NEEDS = [
    "hypothesis",
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
    "numpy",
    "transformers",
    "setuptools>=77",
]

pytestmark = [pytest.mark.compat, pytest.mark.timeout(3600)]


def environments() -> Path:
    """Return the folder that the environments are kept in."""
    chosen = os.environ.get("COMPAT_ENVIRONMENTS")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("intarsia-compat"))


def interpreter(python: str) -> str:
    """Return a Python of a version, or skip."""
    if f"{sys.version_info.major}.{sys.version_info.minor}" == python:
        return sys.executable
    found = shutil.which(f"python{python}")
    if found is None or subprocess.run([found, "-c", ""], check=False).returncode:
        pytest.skip(f"there is no python{python} on the path")
    return found


def environment(torch: str, python: str) -> Path:
    """Return the Python of an environment with a torch and this checkout, making it if needed."""
    folder = environments() / f"torch-{torch}-py{python}"
    inside = folder / "bin" / "python"
    if not inside.exists():
        subprocess.run([interpreter(python), "-m", "venv", str(folder)], check=True)
        run = [str(inside), "-m", "pip", "install", "-q"]
        subprocess.run([*run, f"torch=={torch}", *NEEDS], check=True)
        subprocess.run([*run, "-e", str(ROOT)], check=True)
    return inside


@pytest.mark.parametrize(("torch", "python"), ROWS, ids=[f"torch-{t}-py{p}" for t, p in ROWS])
def test_the_smoke_suite_passes(torch: str, python: str) -> None:
    inside = environment(torch, python)
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(inside), "-m", "pytest", "-q", "--tb=short", "--show-capture=no", *SUITE],
        cwd=ROOT, env=variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize(("torch", "python"), ROWS, ids=[f"torch-{t}-py{p}" for t, p in ROWS])
def test_every_private_name_is_there(torch: str, python: str) -> None:
    inside = environment(torch, python)
    script = (
        "import json; from intarsia.torch_compat import run_probes; "
        "print(json.dumps({n: [d.ok, d.reason] for n, d in run_probes().items()}))"
    )
    done = subprocess.run([str(inside), "-c", script], capture_output=True, text=True, check=True)
    probes = json.loads(done.stdout.splitlines()[-1])
    assert len(probes) > 20
    assert {name: why for name, (ok, why) in probes.items() if not ok} == {}
