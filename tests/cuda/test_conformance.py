"""The CUDA plugin, and compilers on CUDA, pass the conformance kit as anybody's do."""

from __future__ import annotations

import pytest

from intarsia.testing.suites import CompilerSuite, PlatformSuite, StaticGraphSuite
from intarsia_cuda.device import available
from tests.conformance.test_own_plugins import EVERYTHING

if not available():
    pytest.skip(available().reason, allow_module_level=True)

pytestmark = pytest.mark.cuda


class TestCuda(PlatformSuite):
    name = device = "cuda"


class TestCudaGraphs(StaticGraphSuite):
    name = device = "cuda"


class TestEager(CompilerSuite):
    name, device = "eager", "cuda"
    opened = EVERYTHING


class TestInductor(CompilerSuite):
    name, device = "inductor", "cuda"
    opened = EVERYTHING
