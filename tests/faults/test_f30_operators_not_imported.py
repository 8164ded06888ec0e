"""F30: a warm start in a process that never imported the module of a custom operator."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.warm import Fresh, fresh

pytestmark = pytest.mark.timeout(180)

OPS = """
    import torch
    OPS = torch.library.Library("lazy", "FRAGMENT")
    OPS.define("double(Tensor x) -> Tensor")
    OPS.impl("double", lambda x: x * 2, "CPU")
    torch.library.register_fake("lazy::double", lambda x: x.new_empty(x.shape), lib=OPS)
"""
MODEL = """
    import torch
    class Subject(torch.nn.Module):
        def forward(self, x):
            import lazy_ops
            return torch.sigmoid(torch.ops.lazy.double(x))
    class Bare(torch.nn.Module):
        def forward(self, x):
            return torch.sigmoid(torch.ops.lazy.double(x))
"""
RUN = """
import sys
import intarsia
from lazy_model import Bare, Subject
from tests.models import randn
cls, define = sys.argv[2], sys.argv[3] == "define"
if define:
    OPS = torch.library.Library("lazy", "FRAGMENT")
    OPS.define("double(Tensor x) -> Tensor")
    OPS.impl("double", lambda x: x * 2, "CPU")
    torch.library.register_fake("lazy::double", lambda x: x.new_empty(x.shape), lib=OPS)
x = randn(6, 4)
assert ("lazy_ops" in sys.modules) is False
import logging
from tests.warm import Lines
lines = Lines()
logging.getLogger("intarsia").addHandler(lines)
try:
    start = begin({"Bare": Bare, "Subject": Subject}[cls](), (x,), cache=sys.argv[1],
                  split_at=["torch.sigmoid"])
except intarsia.IntarsiaError as error:
    print("REFUSED", type(error).__name__, *lines.kept, sep="|")
else:
    result = start.compiled(x)
    tell(start, result, same=bool(torch.equal(result, torch.sigmoid(x * 2))),
         imported="lazy_ops" in sys.modules)
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    for name, source in {"lazy_ops": OPS, "lazy_model": MODEL}.items():
        (tmp_path / "site" / f"{name}.py").write_text(textwrap.dedent(source))
    return tmp_path / "site"


def run(site: Path, cls: str, define: str = "do not") -> Fresh:
    return fresh(RUN, site.parent / "c", cls, define, paths=[site])


def test_an_operator_that_forward_registers_by_an_import_is_there_after_a_warm_start(
    site: Path,
) -> None:
    cold, warm = run(site, "Subject").one, run(site, "Subject").one
    assert cold["same"]
    assert cold["counts"][0] == 1
    assert warm["warm"], (cold["log"], warm["log"])
    assert warm["same"]
    assert warm["imported"], "as the trace had done"
    assert not warm["warnings"]
    assert warm["result"] == cold["result"]


def test_an_operator_that_nobody_can_import_is_a_clean_miss_that_names_it(site: Path) -> None:
    first: dict[str, Any] = run(site, "Bare", "define").one
    assert run(site, "Bare", "define").one["warm"], first["log"]
    without = run(site, "Bare")
    assert "REFUSED|CaptureError|" in without.out, "the model itself cannot run there"
    assert "lazy::double" in without.out
    assert "cannot be used here" in without.out
    assert "moved aside" not in without.out
    again = run(site, "Bare", "define").one
    assert again["warm"], "the entry stayed"
    assert again["result"] == first["result"]
