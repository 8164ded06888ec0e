"""The conformance kit, with no exception: what the toy lacks is not opened, and is refused."""

from __future__ import annotations

import pytest

from intarsia.testing.suites import CompilerSuite, PassSuite, PlatformSuite, StaticGraphSuite

pytestmark = pytest.mark.contrib


class TestPlatform(PlatformSuite):
    name = "toynpu"
    device = "toynpu"


class TestStaticGraphs(StaticGraphSuite):
    name = "toynpu"
    device = "toynpu"


class TestCompiler(CompilerSuite):
    """All but `mutation` and `custom-ops`, which it refuses."""

    name = "toynpu"
    device = "toynpu"
    opened = {
        "artifacts", "attention", "bfloat16", "booleans", "dynamic-shapes", "float16", "float64", "integers",
        "live-weights", "overlap", "several-symbols", "strides", "views",
    }  # fmt: skip


class TestPasses(PassSuite):
    name = "toynpu"
    device = "toynpu"


class TestPassesOnTheHost(PassSuite):
    """Whoever enables the pass elsewhere gets right numbers too."""

    name = "toynpu"
