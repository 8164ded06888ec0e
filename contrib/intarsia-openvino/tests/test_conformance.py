"""The conformance kit over OpenVINO."""

from __future__ import annotations

import pytest

from intarsia.testing.suites import CompilerSuite

pytestmark = pytest.mark.contrib


class TestOpenVINO(CompilerSuite):
    name = "openvino"
    opened = {
        "artifacts",
        "attention",
        "baked-weights",
        "bfloat16",
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
