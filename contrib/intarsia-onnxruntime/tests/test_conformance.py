"""The conformance kit over ONNX Runtime."""

from __future__ import annotations

import pytest

from intarsia.testing.suites import CompilerSuite

pytestmark = pytest.mark.contrib


class TestONNXRuntime(CompilerSuite):
    name = "onnxruntime"
    opened = {
        "artifacts",
        "attention",
        "baked-weights",
        "booleans",
        "dynamic-shapes",
        "float16",
        "float64",
        "integers",
        "live-weights",
        "overlap",
        "several-symbols",
        "strides",
    }
