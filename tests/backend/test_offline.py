"""Compiling without weights: nothing is allocated, and what is left serves a process that has them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import intarsia
from intarsia.offline import weightless, with_memory, without_weights

MODEL = """
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(16, {wide}), torch.nn.Linear({wide}, 4)
        self.register_buffer("shift", torch.randn({wide}))
        self.second_again = self.second

    def forward(self, x):
        return self.second(torch.sigmoid(self.first(x)) + self.shift)

def make():
    model = Model().eval()
    if {look}:
        model.bias = float(model.shift.sum())
    return {{"model": model, "args": (torch.randn(3, 16),), "dynamic": {{"x": {{0: "n"}}}}, "name": "m",
            "config": {{"compilers": ["eager"], "split_at": ["torch.sigmoid"], "cache": {cache!r}}}}}
"""


def target(folder: Path, wide: int = 16, look: bool = False) -> str:
    cache = str(folder / "cache")
    folder.joinpath("model.py").write_text(MODEL.format(wide=wide, look=look, cache=cache))
    return "model.py:make"


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "intarsia.cli", *arguments],
        capture_output=True, text=True, check=False, cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "INTARSIA_CACHE"},
    )  # fmt: skip


@pytest.mark.timeout(120)
def test_what_is_compiled_offline_serves_a_process_with_weights(tmp_path: Path) -> None:
    model = target(tmp_path)
    missed = command(tmp_path, "cache", "why-miss", model)
    assert (missed.returncode, missed.stdout) == (1, "m: miss: no entry yet\n")
    done = command(tmp_path, "compile", "--offline", "--output", "m.bundle", model)
    assert done.returncode == 0, done.stderr
    hit = command(tmp_path, "cache", "why-miss", model)
    assert (hit.returncode, hit.stdout) == (0, "m: hit\n")
    folder = tmp_path / "model.py"
    folder.write_text(folder.read_text().replace("+ self.shift", "- self.shift"))
    changed = command(tmp_path, "cache", "why-miss", model)
    assert changed.returncode == 1
    assert "source of model is" in changed.stdout


@pytest.mark.timeout(120)
def test_a_model_larger_than_memory_is_compiled_offline(tmp_path: Path) -> None:
    done = command(tmp_path, "compile", "--offline", target(tmp_path, wide=1 << 35))
    assert done.returncode == 0, done.stderr  # 2 TB of weights
    assert done.stdout.startswith("m: 3 pieces, 2 compiled")


@pytest.mark.timeout(120)
def test_a_model_that_looks_at_values_is_told_so(tmp_path: Path) -> None:
    done = command(tmp_path, "compile", "--offline", target(tmp_path, look=True))
    assert done.returncode == 1
    assert "cannot be made without weights" in done.stderr


def test_tied_weights_stay_tied_and_arguments_get_memory() -> None:
    def make() -> torch.nn.Module:
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        model[1].weight = model[0].weight
        return model

    made = weightless(without_weights(make))
    assert made[0].weight is made[1].weight
    assert made[0].weight is not made[0].bias
    (x, [y]) = without_weights(lambda: (torch.randn(2, 4), [torch.ones(3)]))
    x, [y] = with_memory((x, [y]))
    assert type(x) is torch.Tensor
    assert (x.shape, y.shape, y.dtype) == ((2, 4), (3,), torch.float32)


def test_a_model_on_meta_compiles_and_the_bundle_runs_with_weights(tmp_path: Path) -> None:
    with torch.device("meta"):
        empty = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Sigmoid(), torch.nn.Linear(8, 2)
        )
    compiled = intarsia.compile(
        weightless(empty.eval()), (torch.zeros(3, 4),), compilers=["eager"],
        dynamic={"input": {0: "n"}},
    )  # fmt: skip
    compiled.save(tmp_path / "bundle")
    full = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.Sigmoid(), torch.nn.Linear(8, 2)
    ).eval()
    loaded = intarsia.load(tmp_path / "bundle", full)
    x = torch.randn(5, 4)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), full(x))
    assert loaded.report.compiler_calls == 0
