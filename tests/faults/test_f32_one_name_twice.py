"""F32: two plugins claim one name, or two versions of one distribution are visible."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.toys import write_distribution

pytestmark = pytest.mark.timeout(120)

PLUGIN = """
    from intarsia.interfaces import Capabilities, CompilerSpec
    intarsia_api_version = (1, 0)
    def intarsia_compilers():
        can = Capabilities(dynamic_shapes=True, mutation=True, custom_ops=True)
        return [CompilerSpec("acme", "1", "intarsia_eager.adaptor:EagerCompiler", capabilities=can)]
"""

CHILD = """
import sys
import torch
import intarsia
model = torch.nn.Linear(4, 4)
x = torch.randn(3, 4)
try:
    compiled = intarsia.compile(model, (x,), compilers=["acme"], cache=sys.argv[1], artifact="quick")
except intarsia.IntarsiaError as error:
    print(type(error).__name__, str(error).replace("\\n", " "))
else:
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
    print("right by", compiled.report.piece_reports[0].compiler)
"""


def told(site: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(site.parent / "cache")],
        capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])},
    )  # fmt: skip
    (line,) = done.stdout.splitlines()
    return line


def test_one_compiler_of_two_distributions_is_an_error_that_names_both(tmp_path: Path) -> None:
    site = tmp_path / "site"
    for name in ("first", "second"):
        write_distribution(
            site, f"acme-{name}", {f"acme-{name}": f"acme_{name}"}, {f"acme_{name}": PLUGIN}
        )
    line = told(site)
    assert line.startswith("PluginError")
    assert "acme-first" in line
    assert "acme-second" in line
    shutil.rmtree(site / "acme_second-1.0.dist-info")
    assert told(site) == "right by acme"


def test_two_versions_of_one_distribution_are_an_error_that_names_both(tmp_path: Path) -> None:
    site = tmp_path / "site"
    for version in ("1.0", "2.0"):  # the first was left behind by an installer
        write_distribution(site, "acme", {"acme": "acme_plugin"}, {"acme_plugin": PLUGIN}, version)
    line = told(site)
    assert line.startswith("PluginError")
    assert "1.0" in line
    assert "2.0" in line
    shutil.rmtree(site / "acme-1.0.dist-info")
    assert told(site) == "right by acme"
