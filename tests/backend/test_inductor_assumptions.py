"""What Inductor assumed about sizes refuses its result, also where its own caches had the result."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import sys
import torch
from torch._inductor.custom_graph_pass import CustomGraphPass
import intarsia

class Assuming(CustomGraphPass):
    def __call__(self, graph):
        for node in graph.nodes:
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor):
                assert value.shape[0] < 1000  # torch notes it as a condition
                return

    def uuid(self):
        return "assuming 1"

compiled = intarsia.compile(
    torch.nn.Hardswish(), (torch.randn(9, 8),), dynamic={"input": {0: "n"}}, cache=False,
    compilers=["inductor", "eager"], options={"inductor": {"post_grad_custom_post_pass": Assuming()}},
)
(piece,) = compiled.report.piece_reports
print(piece.compiler, [a.reason for b in piece.boxes for a in b.attempts])
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_an_assumption_is_refused_in_the_second_process_too(tmp_path: Path) -> None:
    variables = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", CHILD],
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("eager"), done.stdout
        assert "relied on n < 1000" in done.stdout
