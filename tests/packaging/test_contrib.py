"""Each distribution under contrib/ is built, installed alone into an empty environment, and tested there.

    pytest -m contrib tests/packaging/test_contrib.py

The core comes from a wheel in a local folder, everything else from the index, held by constraints.txt.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(p.parent for p in ROOT.glob("contrib/*/pyproject.toml"))
COMPILERS = ("intarsia-onnxruntime", "intarsia-openvino", "intarsia-iree")

pytestmark = [pytest.mark.contrib, pytest.mark.timeout(1800)]


def run(*command: str, cwd: Path = ROOT) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, check=False,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the wheels of the core and of every distribution."""
    folder = tmp_path_factory.mktemp("wheels")
    for source in (ROOT, *FOLDERS):
        run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
            "--wheel-dir", str(folder), str(source))  # fmt: skip
    return folder


def environment(folder: Path, wheels: Path, *wanted: str) -> Path:
    """Return the Python of an empty environment with some distributions."""
    venv.create(folder, with_pip=True)
    inside = folder / "bin" / "python"
    run(str(inside), "-m", "pip", "install", "--quiet", "--find-links", str(wheels),
        "-c", str(ROOT / "constraints.txt"), *wanted)  # fmt: skip
    return inside


def torch_of(inside: Path) -> str:
    return run(
        str(inside), "-c", "import importlib.metadata as m; print(m.version('torch'))"
    ).strip()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_distribution_alone_passes_its_tests(folder: Path, wheels: Path, tmp_path: Path) -> None:
    name = tomllib.loads(folder.joinpath("pyproject.toml").read_text())["project"]["name"]
    inside = environment(tmp_path / "venv", wheels, f"{name}[test]")
    pinned = re.search(r"^torch==(\S+)", ROOT.joinpath("constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert torch_of(inside).startswith(pinned[1]), "something moved torch"
    printed = run(
        str(inside), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "contrib",
        str(folder / "tests"), cwd=tmp_path,
    )  # fmt: skip
    print(printed.splitlines()[-1])
    assert " passed" in printed
    assert str(ROOT) not in run(str(inside), "-c", "import intarsia; print(intarsia.__file__)",
                                cwd=tmp_path)  # fmt: skip


SWAP = """
import sys
import torch
import intarsia

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(3))
    def forward(self, x):
        for layer in self.layers:
            x = x + torch.cumsum(torch.nn.functional.silu(layer(x)), -1)
        return x

torch.manual_seed(0)
model, x = Block().requires_grad_(False), torch.randn(4, 16)
dynamic = {"x": {0: "rows"}}
for name in ("eager", "inductor", "onnxruntime", "openvino", "iree"):
    made = intarsia.compile(model, (x,), dynamic=dynamic, config=sys.argv[1], compilers=[name])
    for rows in (4, 1, 9):
        x = torch.randn(rows, 16)
        torch.testing.assert_close(made(x), model(x), rtol=1e-4, atol=1e-4)
    assert {b.compiler for p in made.report.piece_reports for b in p.boxes[:1]} == {name}, made.explain()
made = intarsia.compile(model, (x,), dynamic=dynamic, config=sys.argv[2])
for rows in (4, 1, 9):
    x = torch.randn(rows, 16)
    torch.testing.assert_close(made(x), model(x), rtol=1e-4, atol=1e-4)
print(made.explain())
"""
ROUTES = """
split-at = ["torch.cumsum"]
compilers = ["eager"]

[[route]]
piece = { index = 0 }
compilers = ["onnxruntime"]

[[route]]
piece = { index = 2 }
compilers = ["openvino"]

[[route]]
piece = { index = 4 }
compilers = ["iree"]
"""


def test_compilers_are_swapped_by_config_alone(wheels: Path, tmp_path: Path) -> None:
    inside = environment(tmp_path / "venv", wheels, *COMPILERS)
    for name, text in (
        ("plain.toml", "cache = false\n"),
        ("routes.toml", "cache = false\n" + ROUTES),
    ):
        tmp_path.joinpath(name).write_text(text)
    shown = run(str(inside), "-c", SWAP, "plain.toml", "routes.toml", cwd=tmp_path)
    for name in ("onnxruntime", "openvino", "iree"):
        assert name in shown
