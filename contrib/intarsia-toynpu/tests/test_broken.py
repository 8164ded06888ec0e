"""A broken plugin: a model on the device raises, naming it, and never runs on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from children import output_of

pytestmark = pytest.mark.contrib

CHILD = """
    import torch, intarsia, intarsia_toynpu
    from npu_models import decoder

    def raises():
        raise OSError("libtoynpu.so.2: cannot open shared object file")

    {broken}
    model, ids = decoder(layers=1).to("toynpu"), torch.randint(0, 64, (4,)).to("toynpu")

    def compiled():
        return intarsia.compile(model, (ids,), cache=False {settings})(ids)

    def through_torch():
        return torch.compile(model, backend="intarsia", options={{"cache": False {options}}})(ids)

    for door in (compiled, through_torch):
        try:
            print("RAN on", door().device)
        except Exception as error:
            print(type(error).__name__, "|", " ".join(str(error).split()))
"""

BROKEN = {
    "a hook raises": (
        "intarsia_toynpu.intarsia_platforms = raises",
        "",
        "cannot open shared object",
    ),
    "another API": ("intarsia_toynpu.intarsia_api_version = (9, 0)", "", "9"),
    "no such module": (
        "sys = __import__('sys'); sys.modules['intarsia_toynpu'] = None",
        "",
        "toynpu",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_raises_through_both_doors_and_names_the_device(case: str) -> None:
    broken, settings, reason = BROKEN[case]
    source = CHILD.format(broken=broken, settings=settings, options="")
    lines = output_of(source).splitlines()
    assert len(lines) == 2, lines
    for line in lines:
        assert "RAN" not in line, line
        assert "toynpu" in line, line
        assert reason in line, line


def test_a_blocked_plugin_raises_and_says_that_it_is_blocked() -> None:
    source = CHILD.format(
        broken="", settings=", plugins={'block': ['toynpu']}",
        options=", 'plugins': {'block': ['toynpu']}",
    )  # fmt: skip
    for line in output_of(source).splitlines():
        assert "RAN" not in line, line
        assert "toynpu" in line, line
        assert "block" in line, line


def test_a_broken_compiler_leaves_the_model_on_the_device_and_says_so() -> None:
    """The next compiler of the platform runs on the device too; named alone, the broken one raises."""
    broken = "import intarsia_toynpu.adaptor as adaptor; del adaptor.NpuCompiler"
    lines = output_of(CHILD.format(broken=broken, settings="", options="")).splitlines()
    named = ", compilers=['toynpu'], strict=True"
    strict = output_of(CHILD.format(broken=broken, settings=named, options="")).splitlines()
    assert all("cpu" not in line for line in lines), lines
    assert "NpuCompiler" in strict[0], strict
    assert "RAN" not in strict[0], strict
