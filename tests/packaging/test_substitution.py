"""A third party's distribution, installed from a wheel, takes the place of built-in parts by config alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "intarsia-acme"
version = "2.5"
[project.entry-points.intarsia]
acme = "intarsia_acme"
[tool.setuptools]
py-modules = ["intarsia_acme", "intarsia_acme_parts"]
"""

PLUGIN = """
from intarsia.interfaces import (
    Capabilities, CompilerSpec, PassManagerSpec, SplitRuleSpec, StaticGraphSpec,
)

intarsia_api_version = (1, 0)


def intarsia_compilers():
    can = Capabilities(dynamic_shapes=True, mutation=True, custom_ops=True)
    return [CompilerSpec("acme", "2.5", "intarsia_acme_parts:Compiler", capabilities=can)]


def intarsia_split_rules():
    return [SplitRuleSpec("at-tanh", "intarsia_acme_parts:at_tanh")]


def intarsia_pass_managers():
    return [PassManagerSpec("acme", "intarsia_acme_parts:Manager")]


def intarsia_static_graphs():
    return [StaticGraphSpec("acme", "intarsia_acme_parts:Graphs")]
"""

PARTS = """
from intarsia.interfaces import CompileResult, Decision, PassReport


def at_tanh(node):
    return getattr(node.target, "__name__", "") == "tanh"


class Compiler:
    def __init__(self, options, device):
        pass

    def compile(self, request):
        return CompileResult(request.graph.forward, note="by acme")

    def load(self, artifact, signature, device):
        raise NotImplementedError

    def factors(self):
        return {"acme": "2.5"}

    def supports(self, op):
        return Decision(True)


class Manager:
    def order(self, specs, stage, box, config):
        return list(specs)

    def run(self, passes, stage, graph, context):
        return PassReport(stage)

    def factors(self):
        return {"manager": "acme"}


class Graphs:
    def __init__(self, options, device):
        pass

    def budget(self, device):
        return {"slots": 3}
"""

SETTINGS = """
compilers = ["acme"]
split-rule = ["at-tanh"]
pass-manager = "acme"
static-graph-backend = "acme"
"""

SCRIPT = """
import json, sys, torch, intarsia

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
    def forward(self, x):
        return self.linear(torch.tanh(self.linear(x)))

model, x = Model(), torch.randn(3, 4)
compiled = intarsia.compile(model, (x,), config=sys.argv[1] if len(sys.argv) > 1 else None,
                            **({} if len(sys.argv) > 1 else {"compilers": ["eager"]}))
with torch.no_grad():
    torch.testing.assert_close(compiled(x), model(x))
print(json.dumps({"pieces": compiled.report.pieces, "explain": compiled.explain(),
                  "compilers": sorted({p.compiler for p in compiled.report.piece_reports})}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and install it into a folder of its own."""
    source = tmp_path_factory.mktemp("acme")
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "intarsia_acme.py").write_text(PLUGIN)
    (source / "intarsia_acme_parts.py").write_text(PARTS)
    wheels, target = source / "wheels", source / "site"
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(wheels),
                    str(source)], check=True)  # fmt: skip
    (wheel,) = wheels.glob("*.whl")
    subprocess.run(
        [*pip, "install", "-q", "--no-deps", "--target", str(target), str(wheel)], check=True
    )
    return target


def run(site: Path, *arguments: str) -> dict[str, object]:
    """Run the script in a new process that sees the distribution."""
    variables = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    variables.pop("INTARSIA_CHECK", None)
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], env=variables,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_installed_it_changes_nothing_by_itself(site: Path) -> None:
    answer = run(site)
    assert answer["pieces"] == 1
    assert answer["compilers"] == ["eager"]


def test_named_in_a_file_it_replaces_rule_compiler_manager_and_backend(
    site: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "intarsia.toml"
    settings.write_text(SETTINGS)
    answer = run(site, str(settings))
    assert answer["pieces"] == 3
    assert answer["compilers"] == ["acme", "as it is"]
    text = str(answer["explain"])
    for part in ("by acme", "pass-manager in effect = 'acme'", "manager=acme", "budget slots 3"):
        assert part in text
