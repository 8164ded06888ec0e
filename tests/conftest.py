"""Makes `tests.models` importable from every test and from the processes that tests spawn."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("INTARSIA_CHECK", "1")
# spawned children inherit sys.path, and find the opaque ops of tests.models there
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    """Start every test that has torch loaded without graphs left over from another test."""
    if "torch" in sys.modules:
        import torch  # only where a test has imported it: the torch-free tests stay torch-free

        torch._dynamo.reset()
        torch.manual_seed(0)
