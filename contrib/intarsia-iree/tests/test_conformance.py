"""The conformance kit over IREE."""

from __future__ import annotations

import pytest

from intarsia.testing.suites import CompilerSuite

pytestmark = pytest.mark.contrib


class TestIREE(CompilerSuite):
    name = "iree"
    opened = {
        "artifacts",
        "attention",
        "baked-weights",
        "booleans",
        "dynamic-shapes",
        "float16",
        "integers",
        "live-weights",
        "overlap",
        "several-symbols",
        "strides",
    }
