"""The fused operators' Triton kernels, run by Triton's interpreter, against their plain form."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

CASES = ["add_rms_norm", "rms_norm_fp8", "silu_mul", "silu_mul_fp8", "rotary"]


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("case", CASES)
def test_a_kernel_computes_what_its_plain_form_does(case: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernel_cases", "cpu", case], capture_output=True, text=True,
        cwd=Path(__file__).parents[2], env={**os.environ, "TRITON_INTERPRET": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["right:", case]


def test_the_operators_are_defined_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, intarsia_cuda.fusions\n"
        "x = torch.randn(3, 8)\n"
        "print(torch.ops.intarsia_cuda.silu_mul(x, x).shape == x.shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]
